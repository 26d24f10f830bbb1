"""Regularizers: terms and actions that ride on any phase of any defense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from phalanx.phase import Batch, PhaseContext


class Regularizer(nn.Module):
    """Adds terms to a phase's objective, or acts on its weights; its buffers are checkpointed.

    Every method does nothing by default.
    """

    def begin(self, ctx: PhaseContext) -> None:
        """Before the first step; idempotent, also run before a resume."""

    def terms(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """Weighted scalar terms to be minimised with the phase's own; ``log/…`` is only logged."""
        return {}

    def after_step(self, ctx: PhaseContext) -> None:
        """After each update, e.g. to re-apply a mask."""

    def after_epoch(self, ctx: PhaseContext) -> None:
        """After each epoch, e.g. to update dual variables."""

    def end(self, ctx: PhaseContext) -> None:
        """After the last step, e.g. to project."""
