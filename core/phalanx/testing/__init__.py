"""For authors of plugins: `check_component` holds a component against the interface's promises."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phalanx.testing.conformance import ConformanceError, check_component

__all__ = ["ConformanceError", "check_component"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'phalanx.testing' has no attribute {name!r}")
    return getattr(importlib.import_module("phalanx.testing.conformance"), name)
