"""Which layers are pruned, and what a run file calls them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from torch import nn

from phalanx.api import Member, convolutions

_SHOWN = 8
"""Layers that an error lists."""


def prunable(module: nn.Module, *, heads: bool) -> dict[str, nn.Module]:
    """Convolutions and, with `heads`, members' linear classifiers, by their names in `module`."""
    found = convolutions(module)
    if heads:
        own = {id(m.backbone.get_classifier()) for m in module.modules() if isinstance(m, Member)}
        found |= {
            name: part
            for name, part in module.named_modules()
            if id(part) in own and isinstance(part, nn.Linear)
        }
    return found


def within(name: str) -> str:
    """A layer's name within its backbone: the same whether a phase trains a model or a member."""
    return name.rpartition("backbone.")[2]


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits a layer's name within its backbone."""
    return any(fnmatch.fnmatchcase(within(name), pattern) for pattern in patterns)


def listed(layers: Iterable[str]) -> str:
    """The names within the backbone, each once."""
    names = list(dict.fromkeys(map(within, layers)))
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
