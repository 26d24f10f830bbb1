"""Data sets: what is known of them (torch-free), and loading them.

Importing this package is torch-free; what needs torch resolves on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from phalanx.data import catalog
from phalanx.data.catalog import DataInfo, default_root, default_threat, info, names

if TYPE_CHECKING:
    from phalanx.data.folder import Reading, load_evaluation_folder, load_folder
    from phalanx.data.sets import Data, Split, load_data

__all__ = [
    "Data",
    "DataInfo",
    "Reading",
    "Split",
    "catalog",
    "default_root",
    "default_threat",
    "info",
    "load_data",
    "load_evaluation_folder",
    "load_folder",
    "names",
]

_LAZY = {
    "sets": ("Data", "Split", "load_data"),
    "folder": ("Reading", "load_evaluation_folder", "load_folder"),
}
"""Module -> names that it has, which resolve on first use."""


def __getattr__(name: str) -> Any:
    for module, names_ in _LAZY.items():
        if name in names_:
            return getattr(importlib.import_module(f"phalanx.data.{module}"), name)
    raise AttributeError(f"module 'phalanx.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
