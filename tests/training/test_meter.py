"""Passes are counted on the module and on the copies that attacks take their steps on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import phalanx
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


def test_a_copy_of_a_module_without_members_counts_too():
    module = member().backbone.eval()
    meter = PassMeter(module)
    with attacking(module):
        copied = lighter(module, IMAGES)
        assert isinstance(copied, Prepared)
        copied(IMAGES)
    assert meter.forwards == 32


def test_a_module_that_others_watch_is_not_copied(ensemble):
    PassMeter(ensemble)
    ensemble.members[0].register_forward_hook(lambda *_: None)
    with attacking(ensemble):
        assert lighter(ensemble, IMAGES) is ensemble


def test_nothing_is_copied_under_autocast(ensemble):
    with attacking(ensemble), torch.autocast("cpu", torch.bfloat16):
        assert lighter(ensemble, IMAGES) is ensemble


def test_a_training_takes_its_attacks_steps_on_copies(monkeypatch, tmp_path):
    """With its meter on, and its log counts their passes."""
    copied = []
    forward = Prepared.forward

    def seen(self, x):
        copied.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Prepared, "forward", seen)
    attack = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2, "start": "clean"}}
    run = phalanx.train(
        {
            "data": {"use": "digits", "limit": 1024},
            "defense": {
                "use": "none",
                "params": {"backbone": {"use": "small_cnn", "params": {"width": 4}}},
            },
            "training": {"epochs": 1, "batch_size": 1024, "adversarial": {"attack": attack}},
        },
        out=tmp_path / "run",
    )
    assert sum(copied) >= 2 * 1024
    (line,) = run.metrics
    assert line["backwards_per_example"] == 3.0  # two steps and the update


def test_a_module_without_members_is_counted_whole():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    meter = PassMeter(module)
    module(IMAGES)
    assert meter.forwards == 32
