"""Distilled images, and the diversity of vulnerabilities that they measure.

Yang, Zhang, Dong, Inkawhich, Gardner, Touchet, Wilkes, Berry, Li, "DVERGE: Diversifying
Vulnerabilities for Enhanced Robust Generation of Ensembles", NeurIPS 2020, arXiv 2009.14720. An
image distilled from member i and layer l looks like its source x_s, while member i's features at l
are those of an unrelated target x_t:

    x'_i(x_s → x_t) = argmin_z ‖f_i^l(z) − f_i^l(x_t)‖²,  ‖z − x_s‖_∞ ≤ ε,  z in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phalanx.api import Linf, Member, ascend
from phalanx_dverge.layers import read


class FeatureDistance:
    """Minus the mean squared distance of a layer's features from those of target images.

    Args:
        member: whose features.
        layer: as `phalanx_dverge.layers` names it.
        target: images ``(N, C, H, W)``.
        every_call: read the targets' features again at each call, which changes nothing but the
            running statistics of a member in training mode.

    Attributes:
        first: mean distance at the first call, a scalar; NaN before.
        last: the same at the latest call.
    """

    def __init__(self, member: Member, layer: str, target: Tensor, *, every_call: bool) -> None:
        self._member = member
        self._layer = layer
        self._target = target
        self._every_call = every_call
        self._wanted: Tensor | None = None
        self._called = False
        self.first = self.last = target.new_full((), torch.nan)

    def __call__(self, z: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to ``(N,)``, to be ascended."""
        difference = read(self._member, self._layer, z).float() - self._target_features().float()
        distance = difference.square().flatten(1).mean(1)
        self.last = distance.detach().mean()
        if not self._called:
            self.first, self._called = self.last, True
        return -distance

    @torch.no_grad()
    def _target_features(self) -> Tensor:
        if self._wanted is None or self._every_call:
            self._wanted = read(self._member, self._layer, self._target)
        return self._wanted


def distil(
    objective: FeatureDistance, source: Tensor, *, eps: float, step: float, steps: int
) -> Tensor:
    """Images that look like their sources and have the targets' features.

    Signed steps along the sum of normalised gradients (momentum 1, no decay), from the source
    itself.

    Args:
        objective: of the member, the layer and the targets.
        source: images ``(N, C, H, W)`` in [0, 1].
        eps: ε, radius of the L-inf ball.
        step: length of a step.
        steps: their number.

    Returns:
        Images ``(N, C, H, W)``, constants for autograd.
    """
    return ascend(objective, source, Linf(eps), steps=steps, size=step, momentum=1.0)


@torch.no_grad()
def vulnerability_diversity(
    members: Sequence[Member], distilled: Sequence[Tensor], y: Tensor
) -> Tensor:
    """How little the members' distilled images mislead the others; larger is more diverse.

    Args:
        members: K of them, in evaluation mode.
        distilled: x'_j of each member j, ``(N, C, H, W)``. The paper takes images that all members
            classify correctly.
        y: labels of the sources ``(N,)``.

    Returns:
        ``(K, K)``: half the sum of CE(f_i(x'_j), y) and CE(f_j(x'_i), y); on the diagonal, how
        much a member's own images mislead it.
    """
    losses = torch.stack(
        [torch.stack([F.cross_entropy(member(x), y) for x in distilled]) for member in members]
    )
    return (losses + losses.T) / 2
