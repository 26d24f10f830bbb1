"""The phase that most defenses share: cross-entropy of one network or of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phalanx.phase import Batch, JointPhase, PhaseContext


@dataclass(kw_only=True)
class CrossEntropyPhase(JointPhase):
    """Minimises the mean cross-entropy of the module's members, or of the module itself.

    With an adversarial twin in the batch: the mean over clean images and twins.
    """

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The mean of the members' cross-entropies, as ``cross_entropy``."""
        networks = tuple(getattr(self.module, "members", ())) or (self.module,)
        losses = [
            F.cross_entropy(network(images), batch.y)
            for images in (batch.x, batch.adv)
            if images is not None
            for network in networks
        ]
        return {"cross_entropy": torch.stack(losses).mean()}
