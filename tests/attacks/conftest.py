"""Linear classifiers, whose nearest adversarial examples are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from phalanx.randomness import generator
from phalanx.specs import L1, L2, Linf, Threat

DUAL = {Linf: 1, L2: 2, L1: torch.inf}


class Linear(nn.Module):
    """``f(x) = W x`` on flattened images; counts its passes and the rows that went through."""

    def __init__(self, weight: Tensor, *, rowwise: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.rowwise = rowwise
        self.forwards = self.backwards = self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.rows += len(x)
        if x.requires_grad:
            x.register_hook(self._count)
        return x.flatten(1) @ self.weight.T

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1

    def distances(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Each row's distance to its nearest adversarial example, if no wall is in the way."""
        scores = x.flatten(1) @ self.weight.T
        found = []
        for row, label in enumerate(y.tolist()):
            gaps = [
                (scores[row, label] - scores[row, j])
                / torch.linalg.vector_norm(
                    self.weight[label] - self.weight[j], ord=DUAL[type(threat)]
                )
                for j in range(len(self.weight))
                if j != label
            ]
            found.append(min(gaps))
        return torch.stack(found)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> Generator:
    return generator("tests", "attacks")


@pytest.fixture
def linear_case():
    """A function of (classes, rows) to a linear model, images well inside the box, labels."""

    def make(classes: int = 2, rows: int = 24, *, rowwise: bool = True):
        draws = generator("linear", classes)
        x = 0.4 + 0.2 * torch.rand((rows, 3, 6, 6), generator=draws)
        weight = torch.randn((classes, 108), generator=draws)
        weight = weight - weight.mean(1, keepdim=True)  # else a grey image decides
        model = Linear(weight, rowwise=rowwise)
        with torch.no_grad():
            y = model(x).argmax(1)
        model.forwards = model.rows = 0
        return model, x, y

    return make
