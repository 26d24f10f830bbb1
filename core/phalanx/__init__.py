"""Phalanx: adversarial defenses for PyTorch image classifiers, installable one by one.

Importing this package is torch-free; names resolve on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phalanx.art.reading import from_art
    from phalanx.evaluation.evaluate import evaluate
    from phalanx.nn.foreign import wrap
    from phalanx.registry import default_registry, defense, register
    from phalanx.report.model import Report
    from phalanx.specs import L1, L2, Linf, NoBall, Union
    from phalanx.training.artifacts import load
    from phalanx.training.run import Run, train

__version__ = "0.1.0"

_MODULE_OF = {
    "L1": "phalanx.specs",
    "L2": "phalanx.specs",
    "Linf": "phalanx.specs",
    "NoBall": "phalanx.specs",
    "Report": "phalanx.report.model",
    "Run": "phalanx.training.run",
    "Union": "phalanx.specs",
    "default_registry": "phalanx.registry",
    "defense": "phalanx.registry",
    "evaluate": "phalanx.evaluation.evaluate",
    "from_art": "phalanx.art.reading",
    "load": "phalanx.training.artifacts",
    "register": "phalanx.registry",
    "train": "phalanx.training.run",
    "wrap": "phalanx.nn.foreign",
}

__all__ = [
    "L1",
    "L2",
    "Linf",
    "NoBall",
    "Report",
    "Run",
    "Union",
    "default_registry",
    "defense",
    "evaluate",
    "from_art",
    "load",
    "register",
    "train",
    "wrap",
]


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module 'phalanx' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
