"""Small classifiers whose nearest boundary is known, and one that answers at random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phalanx.api import generator


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


class Counting:
    """Any function of images as a model that counts the images it is asked about."""

    def __init__(self, scores, *, rowwise=True):
        self.scores, self.rowwise, self.rows = scores, rowwise, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.scores(x)


@pytest.fixture
def counting():
    return Counting


@pytest.fixture
def halfspace():
    """A function of (w, level) to a classifier with label 1 where ``w·x > level``."""

    def make(w, level, **rest):
        w = torch.as_tensor(w)

        def scores(x):
            lead = x.flatten(1).to(w.dtype) @ w - level
            return torch.stack([-lead, lead], 1)

        return Counting(scores, **rest)

    return make


@pytest.fixture
def network():
    """A function of a seed to a random network on ``(3, 3, 2)``, images and its own labels.

    In float64, so that a batch and its rows alone agree to the last decision.
    """

    def make(seed, rows=5, classes=3, **rest):
        draws = generator("blackbox", seed)
        first, second = (
            torch.randn(shape, generator=draws, dtype=torch.float64)
            for shape in ((18, 12), (12, classes))
        )
        model = Counting(lambda x: torch.tanh((x.flatten(1) - 0.5) @ first) @ second, **rest)
        x = torch.rand((rows, 3, 3, 2), generator=draws, dtype=torch.float64)
        y = model.scores(x).argmax(1)
        return model, x, y

    return make


@pytest.fixture
def unreliable():
    """A function of (model, share) to one whose scores are negated in a share of answers.

    With two classes that turns the label.
    """

    def make(model, share, seed=0):
        draws = generator("unreliable", seed)

        def scores(x):
            turned = torch.rand((len(x), 1), generator=draws) < share
            answers = model.scores(x)
            return torch.where(turned, -answers, answers)

        return Counting(scores, rowwise=False)

    return make
