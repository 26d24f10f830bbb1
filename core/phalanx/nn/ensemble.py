"""Models made of members: their mean probability, or one of them chosen at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn

from phalanx.combine import log_mean
from phalanx.defense import Combined, DefendedModel
from phalanx.nn.member import Member


class _Group(DefendedModel):
    """Holds the members as ``networks``, so that their weights are ``networks.0.…``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ValueError(f"{type(self).__name__} needs at least one member, found none")
        self.networks = nn.ModuleList(members)

    @property
    def members(self) -> Sequence[Member]:
        """The members, in the order in which they were given."""
        return cast(Sequence[Member], tuple(self.networks))

    def combined(self, x: Tensor) -> Combined:
        """The members' logits, whose probabilities are averaged."""
        return Combined(torch.stack([network(x) for network in self.networks]), "probabilities")


class MeanEnsemble(_Group):
    """Serves the mean of the members' probabilities; deterministic.

    Its scores are log-probabilities; with a single member they are that member's own logits.

    Args:
        members: M >= 1 networks, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
    """

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """``log (1/M) Σ_m softmax(member_m(x))``: images ``(N, C, H, W)`` to ``(N, K)``."""
        scores = [network(x) for network in self.networks]
        return scores[0] if len(scores) == 1 else log_mean(scores)


class Population(_Group):
    """Each query is answered by one member, chosen uniformly at random; stochastic.

    Its support is its members, so the view ``expected`` is their mean probability in closed form.

    Args:
        members: M >= 1 networks, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        granularity: what is a query: ``sample``, each image of a batch has a member of its own
            (default); ``batch``, one member answers a whole call.
    """

    stochastic = True

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        granularity: Literal["sample", "batch"] = "sample",
    ) -> None:
        super().__init__(members)
        self.granularity = granularity

    def extra_repr(self) -> str:
        """What one member answers, for `print`."""
        return f"granularity={self.granularity!r}"

    def choose(self, count: int, generator: Generator) -> Tensor:
        """The answering members' indices ``(count,)`` in [0, M), on the generator's device."""
        queries = count if self.granularity == "sample" else 1
        chosen = torch.randint(
            len(self.networks), (queries,), generator=generator, device=generator.device
        )
        return chosen.expand(count)

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """The chosen members' logits: images ``(N, C, H, W)`` to ``(N, K)``.

        Every chosen member runs once, on its rows alone.

        Raises:
            ValueError: without a generator, from which the members are chosen.
        """
        if generator is None:
            raise ValueError("a population chooses members at random: draw needs a generator")
        chosen = self.choose(len(x), generator).to(x.device)
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self.networks)).tolist()
        parts = torch.split(x[order], counts)
        scores = [
            network(rows) for network, rows in zip(self.networks, parts, strict=True) if len(rows)
        ]
        return torch.cat(scores)[order.argsort()]

    def support(self) -> Sequence[nn.Module]:
        """The members: equally likely functions."""
        return self.members
