"""Transforms change the batch as they say, and leave the model as it was."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from phalanx import randomness
from phalanx.phase import Batch, JointPhase, PhaseContext
from phalanx.training.transforms import Adversarial, Augment, random_crop, random_flip


class Context(PhaseContext):
    def __init__(self, phase=None):
        self.phase, self.epoch, self.index, self.batches = phase, 0, 0, 1
        self.device = torch.device("cpu")

    def generator(self, *purpose):
        return randomness.generator("test", self.epoch, self.index, *purpose)

    def batch(self, stream):
        raise AssertionError("not asked for here")

    def minimise(self, loss, *groups):
        raise AssertionError("not asked for here")


class Darken:
    """An attack that subtracts 0.1 and notes the modes it meets."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, x, y, *, generator, observe=None):
        self.seen = [part.training for part in model.modules()]
        self.frozen = not any(p.requires_grad for p in model.parameters())
        return (x - 0.1).clamp(0, 1)


@dataclass(kw_only=True)
class Plain(JointPhase):
    def objective(self, batch, ctx):
        return {}


@pytest.fixture
def phase():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())
    module[2].eval()
    module[0].bias.requires_grad_(False)
    return Plain(name="plain", module=module, epochs=1)


@pytest.fixture
def batch():
    return Batch(0.5 * torch.rand(6, 1, 8, 8) + 0.5, torch.arange(6))


@pytest.mark.parametrize(("mode", "changed"), [("replace", 6), ("half", 3), ("twin", 0)])
def test_adversarial_modes(phase, batch, mode, changed):
    attack = Darken()
    result = Adversarial(attack, mode)(batch, Context(phase))
    differs = (result.x != batch.x).flatten(1).any(1)
    assert differs.tolist() == [i < changed for i in range(6)]
    if mode == "twin":
        assert torch.allclose(result.adv, batch.x - 0.1)
    else:
        assert result.adv is None


def test_half_of_one_image_is_no_image(phase):
    batch = Batch(torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    assert Adversarial(Darken(), "half")(batch, Context(phase)) is batch


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_model_comes_back_as_it_was(phase, batch, batchnorm):
    modes = [part.training for part in phase.module.modules()]
    flags = [p.requires_grad for p in phase.module.parameters()]
    state = {k: v.clone() for k, v in phase.module.state_dict().items()}
    attack = Darken()
    transform = Adversarial(attack, batchnorm=batchnorm)
    transform(batch, Context(phase))
    assert attack.frozen
    assert attack.seen == [False, False, batchnorm == "train", False, False]
    assert [part.training for part in phase.module.modules()] == modes
    assert [p.requires_grad for p in phase.module.parameters()] == flags
    assert all(torch.equal(state[k], v) for k, v in phase.module.state_dict().items())


def test_running_statistics_are_restored_after_an_attack_in_train_mode(phase, batch):
    class Forward(Darken):
        def __call__(self, model, x, y, *, generator, observe=None):
            model(x)
            return x

    before = phase.module[1].running_mean.clone()
    Adversarial(Forward(), batchnorm="train")(batch, Context(phase))
    assert torch.equal(phase.module[1].running_mean, before)


def test_a_crop_is_a_shift_of_the_padded_image():
    x = torch.rand(5, 2, 6, 7)
    generator = randomness.generator(0)
    cropped = random_crop(x, padding=2, generator=generator)
    padded = torch.nn.functional.pad(x, (2,) * 4)
    for image, original in zip(cropped, padded, strict=True):
        shifts = [original[:, i : i + 6, j : j + 7] for i in range(5) for j in range(5)]
        assert any(torch.equal(image, shift) for shift in shifts)


def test_a_flip_mirrors_about_half_of_the_images():
    x = torch.rand(400, 1, 2, 3)
    flipped = random_flip(x, generator=randomness.generator(0))
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ mirrored).all()
    assert 160 < int(mirrored.sum()) < 240


def test_augmentation_is_keyed_by_position(batch):
    ctx = Context()
    augment = Augment(("crop", "flip"))
    first, second = augment(batch, ctx), augment(batch, ctx)
    assert torch.equal(first.x, second.x)
    ctx.index = 1
    assert not torch.equal(augment(batch, ctx).x, first.x)
