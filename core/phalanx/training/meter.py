"""Counts the passes that a training takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from phalanx.nn.member import Member


class PassMeter:
    """Counts images sent forward and gradients sent backward through each member's classifier.

    One image through one member is one pass, whoever sends it: the objective, an attack inside a
    transform, or a gradient of a gradient (which passes backward twice).

    Attributes:
        forwards: images times members, sent forward.
        backwards: the same, sent backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forwards = 0
        self.backwards = 0
        heads = {
            part.backbone.get_classifier() for part in module.modules() if isinstance(part, Member)
        }
        self._handles = [head.register_forward_hook(self._count) for head in (heads or {module})]

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], scores: Tensor) -> None:
        self.forwards += len(scores)
        if scores.requires_grad:
            scores.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
