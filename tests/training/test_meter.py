"""Passes are counted on the module and on the copies that attacks take their steps on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from phalanx.attack import attacking
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.crafting import lighter
from phalanx.attacks.gradient import PGD
from phalanx.nn import MeanEnsemble, Member
from phalanx.nn.prepare import Prepared
from phalanx.specs import Linf
from phalanx.training.meter import PassMeter

IMAGES = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 10


def member() -> Member:
    network = timm.create_model("resnet20_cifar", num_classes=10, width=4)
    return Member(network, nn.Identity())


@pytest.fixture
def ensemble() -> MeanEnsemble:
    torch.manual_seed(0)
    return MeanEnsemble([member(), member()]).eval()


def test_each_image_through_each_member_is_a_pass(ensemble):
    meter = PassMeter(ensemble)
    F.cross_entropy(ensemble(IMAGES), LABELS).backward()
    assert (meter.forwards, meter.backwards) == (64, 64)
    with torch.no_grad():
        ensemble(IMAGES)
    assert (meter.forwards, meter.backwards) == (128, 64)


def test_an_attack_on_a_copy_counts_as_one_on_the_module(ensemble):
    attack = PGD(PGDConfig(threat=Linf(0.03), steps=3))
    meter = PassMeter(ensemble)
    counts = []
    with attacking(ensemble):
        copied = lighter(ensemble, IMAGES)
        assert isinstance(copied, Prepared)
        assert (meter.forwards, meter.backwards) == (0, 0)  # trying it is nobody's pass
        for target in (ensemble, copied):
            before = meter.forwards, meter.backwards
            attack(target, IMAGES, LABELS, generator=torch.Generator().manual_seed(1))
            counts.append((meter.forwards - before[0], meter.backwards - before[1]))
    assert counts[0] == counts[1]
    assert counts[0][1] == 3 * 64


def test_counts_are_restored_and_hooks_go_when_it_is_closed(ensemble):
    meter = PassMeter(ensemble)
    meter.restore(5, 7)
    ensemble(IMAGES[:1])
    assert (meter.forwards, meter.backwards) == (7, 7)
    meter.close()
    ensemble(IMAGES[:1])
    assert meter.forwards == 7


def test_a_module_without_members_is_counted_whole():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    meter = PassMeter(module)
    module(IMAGES)
    assert meter.forwards == 32
