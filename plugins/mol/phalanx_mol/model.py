"""What MoL serves: experts' logits, weighed for each image by an aggregator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from phalanx.api import Combined, DefendedModel, Member, View, generator as keyed
from phalanx_mol.config import Weighting
from phalanx_mol.losses import aggregate, weights


class MoLModel(DefendedModel):
    """F(x) = Σ_j a_j(x) f_j(x), eq. (12); deterministic.

    Experts are asked one after another. The members are the experts: a warm start from another
    network's weights fills them, and leaves the aggregator as it is built.

    Args:
        experts: m networks by name, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        aggregator: images to scores ``(N, m)``.
        weighting: what is made of these scores.
    """

    def __init__(
        self, experts: Mapping[str, Member], aggregator: Member, *, weighting: Weighting
    ) -> None:
        super().__init__()
        self.names = tuple(experts)
        self.experts = nn.ModuleList(experts.values())
        self.aggregator = aggregator
        self.weighting: Weighting = weighting

    @property
    def members(self) -> Sequence[Member]:
        """The experts, in the order of `names`."""
        return cast(Sequence[Member], tuple(self.experts))

    def extra_repr(self) -> str:
        """Which experts, and how they are weighed, for `print`."""
        return f"experts={', '.join(self.names)}, weighting={self.weighting!r}"

    def weights(self, x: Tensor) -> Tensor:
        """The aggregator's weights: images ``(N, C, H, W)`` to ``(N, m)``."""
        return weights(self.aggregator(x), self.weighting)

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, K)``."""
        return aggregate(self.weights(x), (expert(x) for expert in self.experts))

    def combined(self, x: Tensor) -> Combined:
        """The experts' logits times m times their weights, whose mean is the system's logits."""
        a = self.weights(x).T * len(self.members)  # (m, N)
        logits = torch.stack([expert(x) for expert in self.experts])
        return Combined(a[:, :, None] * logits, "logits")

    def views(self) -> Mapping[str, View]:
        """``deployed``, and ``one-expert``: one expert, chosen at opening and fixed.

        Examples of an expert are judged on the system: if they fool it more often than examples of
        the system itself, its gradients are hidden.
        """
        one = View(self.one_expert, rowwise=True, fixed_draw=True)
        return {**super().views(), "one-expert": one}

    def one_expert(self, seed: int) -> nn.Module:
        """The expert that a seed chooses."""
        stream = keyed(seed, "one-expert")
        return self.members[int(torch.randint(len(self.members), (), generator=stream))]
