"""The bridge to the Adversarial Robustness Toolbox (ART), in both directions.

`estimator` makes a defended model an ART estimator, `attack` runs ART's evasion attacks as ours,
`offer` lends our attacks to an ART pipeline. Importing this package imports neither torch nor ART;
`ArtAttack`, `as_art` and `as_art_attack` resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phalanx.art.attack import ArtAttack
    from phalanx.art.estimator import as_art
    from phalanx.art.offer import as_art_attack

__all__ = ["ArtAttack", "as_art", "as_art_attack"]

_LAZY = {"ArtAttack": "attack", "as_art": "estimator", "as_art_attack": "offer"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'phalanx.art' has no attribute {name!r}")
    return getattr(import_module(f"phalanx.art.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
