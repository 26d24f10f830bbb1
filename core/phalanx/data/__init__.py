"""Data sets: what is known of them (torch-free), and loading them.

Importing this package is torch-free; `load_data`, `Data` and `Split` resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phalanx.data import catalog
from phalanx.data.catalog import DataInfo, default_root, default_threat, info, names

if TYPE_CHECKING:
    from phalanx.data.sets import Data, Split, load_data

__all__ = [
    "Data",
    "DataInfo",
    "Split",
    "catalog",
    "default_root",
    "default_threat",
    "info",
    "load_data",
    "names",
]

_LAZY = ("Data", "Split", "load_data")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'phalanx.data' has no attribute {name!r}")
    from phalanx.data import sets

    return getattr(sets, name)


def __dir__() -> list[str]:
    return sorted(__all__)
