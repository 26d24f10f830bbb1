"""What pruners share: which layers, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from phalanx.config import PrunerConfig
from phalanx.errors import ConfigError
from phalanx.pruner import Pruner, convolutions


class Halving(Pruner[PrunerConfig]):
    def project(self, name, weight):
        return weight.where(torch.arange(len(weight)).view(-1, 1, 1, 1) % 2 == 0, 0.0)

    def compact(self, model):
        return model


def test_convolutions_of_any_dimension_by_name():
    network = nn.Sequential(
        nn.Conv1d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)), nn.Conv3d(1, 1, 1)
    )
    assert list(convolutions(network)) == ["0", "1.0", "2"]


def test_transposed_ones_are_left_out():
    assert convolutions(nn.Sequential(nn.ConvTranspose2d(1, 1, 1))) == {}  # weight is (I, O, …)


def test_a_shared_weight_counts_once():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    network[1].weight = network[0].weight
    assert list(convolutions(network)) == ["0"]


def test_a_computed_weight_is_left_out():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    parametrize.register_parametrization(network[0], "weight", nn.Identity())
    assert list(convolutions(network)) == ["1"]


def test_a_model_without_convolutions_is_refused():
    Halving(PrunerConfig()).check(nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError) as caught:
        Halving(PrunerConfig()).check(nn.Sequential(nn.Linear(2, 2)))
    assert caught.value.problems == (
        "pruner: Sequential has no convolution that is left to prune: choose a backbone with "
        "convolutions, such as resnet18_cifar",
    )


class Skipping(Halving):
    def layers(self, module):
        return {}


def test_a_model_whose_convolutions_are_all_left_out_is_refused_for_that():
    network = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError) as caught:
        Skipping(PrunerConfig()).check(network)
    assert caught.value.problems == (
        "pruner: all 2 convolutions of Sequential are left out: let it prune one, such as '1', "
        "with fewer or narrower patterns in its skip",
    )
