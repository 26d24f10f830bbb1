"""Three small defenses, trained for a moment on digits: an ensemble, a population, a noisy net."""

import pytest
import torch
from torch import nn

from phalanx.config import Backbone
from phalanx.data import load_data
from phalanx.defense import DefendedModel
from phalanx.nn import MeanEnsemble, Population, build_member
from phalanx.randomness import seeded

DIGITS = load_data("digits")


class Noisy(DefendedModel):
    """Input noise, fresh for each image, so no support; batch normalisation; an idle member."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 64, 10),
            )
            for _ in range(2)
        )

    def draw(self, x, generator):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return self.networks[0](x + 0.05 * noise)


def members():
    backbone = Backbone(use="small_cnn", params={"width": 8})
    return [build_member(backbone, DIGITS.task) for _ in range(3)]


KINDS = {
    "mean": lambda: MeanEnsemble(members()),
    "one-of": lambda: Population(members()),
    "noisy": Noisy,
}


@pytest.fixture(scope="session")
def digits():
    batch = DIGITS.train.fetch(slice(None))
    return batch.x, batch.y


@pytest.fixture(scope="session")
def weights(digits):
    """A state for each kind, its members trained for a second."""
    x, y = digits
    states = {}
    with seeded("tests/art"):
        for kind in ("mean", "noisy"):
            model = KINDS[kind]()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(150):
                rows = torch.randint(len(x), (64,))
                losses = [nn.functional.cross_entropy(m(x[rows]), y[rows]) for m in model.networks]
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
            states[kind] = model.state_dict()
    return states | {"one-of": states["mean"]}


@pytest.fixture
def build(weights):
    """A trained model of a kind, fresh weights each time: mean, one-of or noisy."""

    def make(kind="mean"):
        with seeded("build"):
            model = KINDS[kind]()
        model.load_state_dict(weights[kind])
        model.task = DIGITS.task
        return model.eval()

    return make


@pytest.fixture
def batch():
    """Forty test digits that the attacks have to do with."""
    test = DIGITS.test.fetch(slice(40))
    return test.x, test.y
