"""Ensembles of linear members, which count what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Generator, Tensor, nn

from phalanx.api import Combined, generator, log_mean

Rule = Literal["probabilities", "logits", "votes"]


class Linear(nn.Module):
    """``z = W (x − 1/2) + b`` on flattened images."""

    def __init__(self, weight: Tensor, bias: Tensor, *, rowwise: bool = True) -> None:
        super().__init__()
        self.weight, self.bias, self.rowwise = weight, bias, rowwise
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return (x - 0.5).flatten(1) @ self.weight.T + self.bias


class Ensemble(nn.Module):
    """Linear members, averaged by a rule.

    `asked` has the rows of each pass by `combined`, `whole` those of each pass by `forward`.
    """

    def __init__(self, members: list[Linear], rule: Rule, *, rowwise: bool) -> None:
        super().__init__()
        self.members, self.rule, self.rowwise = members, rule, rowwise
        self.asked: list[int] = []
        self.whole: list[int] = []

    def combined(self, x: Tensor) -> Combined:
        self.asked.append(len(x))
        return Combined(torch.stack([member(x) for member in self.members]), self.rule)

    def forward(self, x: Tensor) -> Tensor:
        self.whole.append(len(x))
        z = torch.stack([member(x) for member in self.members])
        if self.rule == "probabilities":
            return log_mean(list(z))
        if self.rule == "logits":
            return z.mean(0)
        votes = nn.functional.one_hot(z.argmax(-1), z.shape[-1]).to(z).mean(0)
        return votes.clamp_min(1e-6).log()


Make = Callable[..., tuple[Ensemble, Tensor, Tensor]]


@pytest.fixture
def random_ensemble() -> Make:
    """(rule, rows, rowwise) to three random members, images inside the box, their labels."""

    def make(
        rule: Rule = "probabilities", rows: int = 12, *, rowwise: bool = True
    ) -> tuple[Ensemble, Tensor, Tensor]:
        draws = generator("random ensemble")
        members = [
            Linear(
                torch.randn((4, 18), generator=draws, dtype=torch.float64),
                torch.zeros(4, dtype=torch.float64),
                rowwise=rowwise,
            )
            for _ in range(3)
        ]
        model = Ensemble(members, rule, rowwise=rowwise)
        x = torch.rand((rows, 2, 3, 3), generator=draws, dtype=torch.float64)
        y = model(x).argmax(1)
        model.whole.clear()
        for member in members:
            member.batches.clear()
        return model, x, y

    return make


@pytest.fixture
def planted() -> Make:
    """(margin, rowwise) to three members, of which the average hides the two that can be broken.

    Members 0 and 1 look at the right half of the image and lead by `margin`, but their logits are
    a hundredfold: saturated, they have next to no part in the average's gradient. Member 2 looks
    at the left half, and nothing within L-inf 0.1 or L2 0.1 fools it.
    """

    def make(margin: float, *, rowwise: bool = True) -> tuple[Ensemble, Tensor, Tensor]:
        rows = 8
        right = torch.zeros(8, 16)
        right[:, 8:] = 0.4
        axis = torch.tensor([-1.0, 1.0, 0.0])[:, None]
        lead = torch.tensor([margin, 0.0, -1.0])
        saturated = Linear(100.0 * axis * right.flatten(), 100.0 * lead, rowwise=rowwise)
        weak = Linear(axis * (0.4 - right).flatten() / 10.0, torch.tensor([1.5, 0, -1]))
        weak.rowwise = rowwise
        x = 0.5 + 0.002 * torch.rand((rows, 1, 8, 16), generator=generator("planted"))
        model = Ensemble([saturated, saturated, weak], "probabilities", rowwise=rowwise)
        return model, x, torch.zeros(rows, dtype=torch.long)

    return make


@pytest.fixture
def rng() -> Generator:
    return generator("tests", "ensemble attacks")
