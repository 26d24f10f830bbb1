"""The model set: M sub-models, the networks sampled from them, and what an attacker may attack.

Lee et al., arXiv 2005.10757: sampling of section 3.1, inference and attacks of sections 3.3 and
4.2 to 4.4.

Choice: μ of eq. (2) is uniform; the paper gives no values.
Choice: a draw belongs to a call, not to an image: all images of a batch meet the same networks.
Choice: the N networks of an answer are drawn independently, so they may repeat.
Choice: "attacks multiple sampled models" (Table 4) is the mean prediction of n networks, chosen
    once and kept while they are attacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn

from phalanx.api import DefendedModel, Member, View, generator, log_mean
from phalanx_rls.units import Choice, Unit, assemble, check_alike

ATTACKED = (5, 10, 15)
"""Numbers of sampled networks that Table 4 attacks, besides one."""
EXPECTED_DRAWS = 20
"""Single sampled networks that view ``expected`` averages at each call."""


class RandomLayers(DefendedModel):
    """Serves the mean prediction of N networks whose every layer is drawn from M sub-models.

    Every call draws anew, in evaluation mode too. With one sub-model there is nothing to draw: it
    is that network, its logits unchanged, and deterministic.

    Args:
        members: M >= 1 sub-models of one architecture, images ``(N, C, H, W)`` in [0, 1] to
            logits ``(N, K)``.
        units: their L units (`phalanx_rls.units.find_units`).
        samples: N.

    Raises:
        ConfigError: if the sub-models' layers do not pair up by name and shape.
    """

    def __init__(
        self, members: Sequence[nn.Module], units: Sequence[Unit], *, samples: int = 10
    ) -> None:
        super().__init__()
        check_alike(members)
        self.networks = nn.ModuleList(members)
        self.units = tuple(units)
        self.samples = samples
        self.stochastic = len(members) > 1

    def extra_repr(self) -> str:
        """L and N, for `print`."""
        return f"units={len(self.units)}, samples={self.samples}"

    @property
    def members(self) -> Sequence[Member]:
        """The sub-models."""
        return cast(Sequence[Member], tuple(self.networks))

    @property
    def combinations(self) -> int:
        """M^L: how many different networks can be sampled."""
        return int(len(self.networks) ** len(self.units))

    def choose(self, count: int, generator: Generator) -> list[Choice]:
        """Independent draws r ~ categorical, uniform over the sub-models for each unit: eq. (2).

        Args:
            count: how many.
            generator: on any device.
        """
        drawn = torch.randint(
            len(self.networks),
            (count, len(self.units)),
            generator=generator,
            device=generator.device,
        )
        return [tuple(row) for row in drawn.tolist()]

    def choose_different(self, count: int, generator: Generator) -> list[Choice]:
        """As `choose`, drawn again until all differ; `count` is at most `combinations`.

        Raises:
            ValueError: if there are not so many.
        """
        if count > self.combinations:
            raise ValueError(
                f"{count} different sampled networks were asked for, but "
                f"{len(self.networks)} sub-models of {len(self.units)} units make "
                f"{self.combinations}"
            )
        found: dict[Choice, None] = {}
        while len(found) < count:
            found[self.choose(1, generator)[0]] = None
        return list(found)

    def sampled(self, choice: Choice) -> Member:
        """The network of one draw; it shares its layers with the sub-models."""
        return cast(Member, assemble(self.members, self.units, choice))

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Log of the mean probability of N fresh networks: ``(N, C, H, W)`` to ``(N, K)``.

        Raises:
            ValueError: without a generator, from which the layers are chosen.
        """
        if not self.stochastic:
            return cast(Tensor, self.networks[0](x))
        if generator is None:
            raise ValueError("layers are drawn at random: draw needs a generator")
        return log_mean([self.sampled(r)(x) for r in self.choose(self.samples, generator)])

    def views(self) -> Mapping[str, View]:
        """The functions an attacker may differentiate, by name.

        ``deployed``: N fresh networks a call. ``one-draw``: one sampled network, the paper's
        attacker. ``n-draws-5``, ``-10``, ``-15``: the mean of as many, Table 4. These are chosen
        at opening and kept. ``expected``: 20 single sampled networks a call, the adaptive attack.
        """
        views = {"deployed": View(self.serve, rowwise=not self.stochastic)}
        if self.stochastic:
            views["one-draw"] = View(self._open_one, fixed_draw=True)
            for n in ATTACKED:
                views[f"n-draws-{n}"] = View(partial(self._open_mean, n), fixed_draw=True)
            views["expected"] = View(lambda seed: FreshMean(self, seed), rowwise=False)
        return views

    def _open_one(self, seed: int) -> nn.Module:
        return self.sampled(self.choose(1, generator(seed, "one-draw"))[0])

    def _open_mean(self, n: int, seed: int) -> nn.Module:
        chosen = self.choose(n, generator(seed, "n-draws", n))
        return FixedMean([self.sampled(choice) for choice in chosen])


class FixedMean(nn.Module):
    """The log of the mean probability of networks that stay the same; row by row.

    Args:
        networks: images ``(N, C, H, W)`` to logits ``(N, K)``.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to log-probabilities ``(N, K)``."""
        return log_mean([network(x) for network in self.networks])


class FreshMean(nn.Module):
    """The log of the mean probability of single networks, sampled anew at each call.

    Args:
        model: what they are sampled from.
        seed: keys the draws, with the number of the call.
        count: networks a call.
    """

    def __init__(self, model: RandomLayers, seed: int, *, count: int = EXPECTED_DRAWS) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.count = count
        self.calls = 0

    @property
    def members(self) -> Sequence[nn.Module]:
        """The sub-models, on whose examples it is judged too."""
        return self.model.members

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to log-probabilities ``(N, K)``."""
        self.calls += 1
        drawn = generator(self.seed, "expected", self.calls, device=x.device)
        return log_mean([self.model.sampled(r)(x) for r in self.model.choose(self.count, drawn)])


@torch.no_grad()
def sampled_bits(
    model: RandomLayers, x: Tensor, y: Tensor, *, samples: int = 10, seed: int = 0
) -> Tensor:
    """Whether each of some sampled networks is right on each image: the table of Table 5's κ.

    Args:
        model: in evaluation mode.
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.
        samples: L, networks; the paper: 10, repeated 10 times (ten seeds).
        seed: of the draw.

    Returns:
        Booleans ``(L, N)``, for `phalanx.api.interrater_agreement`.
    """
    chosen = model.choose(samples, generator(seed, "agreement"))
    return torch.stack([model.sampled(choice)(x).argmax(1) == y for choice in chosen])
