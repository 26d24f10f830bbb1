"""Distillation by its worked values, and the diversity that it measures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.api import Backbone, Member, Task, build_member, generator
from phalanx.randomness import seeded
from phalanx_dverge.distillation import FeatureDistance, distil, vulnerability_diversity

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=9, mean=(0.3,), std=(0.4,))


class Linear(nn.Module):
    """f(z) = W z over two pixels, as a timm classifier."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        flat = x.flatten(1)
        return flat if pre_logits else self.fc(flat)

    def get_classifier(self) -> nn.Module:
        return self.fc


def pixels(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, 2)


def linear_distilled(source: Tensor, target: Tensor, steps: int) -> Tensor:
    member = Member(Linear(), nn.Identity())
    distance = FeatureDistance(member, "fc", target, every_call=False)
    return distil(distance, source, eps=0.07, step=0.007, steps=steps)


def small(seed: int = 0, name: str = "small_cnn", **params: object) -> Member:
    with seeded(seed, "build"):
        return build_member(Backbone(use=name, params=params), TASK).eval()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=generator(seed, "images"))


# ---------------------------------------------------------------- worked values


def test_worked_example() -> None:
    source, target = pixels(0.5, 0.5), pixels(0.8, 0.1)
    torch.testing.assert_close(linear_distilled(source, target, 1), pixels(0.507, 0.493))
    torch.testing.assert_close(linear_distilled(source, target, 10), pixels(0.57, 0.43))


def test_worked_gradient() -> None:
    member = Member(Linear(), nn.Identity())
    distance = FeatureDistance(member, "fc", pixels(0.8, 0.1), every_call=False)
    z = pixels(0.5, 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(-distance(z).sum(), z)
    torch.testing.assert_close(gradient, pixels(-0.3, 1.6))
    torch.testing.assert_close(gradient / gradient.abs().sum(), pixels(-0.157895, 0.842105))


@pytest.mark.parametrize("steps", range(1, 11))
def test_the_box_is_kept(steps: int) -> None:
    z = linear_distilled(pixels(0.99, 0.02), pixels(1.5, -0.5), steps)
    assert bool(((z >= 0) & (z <= 1)).all())


def test_the_momentum_is_a_plain_sum_of_normalised_gradients() -> None:
    member, source, target = small(), images(4), images(4, seed=1)
    distance = FeatureDistance(member, "conv2", target, every_call=False)
    z, total = source, torch.zeros_like(source)
    for _ in range(6):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(z).sum(), z)
        total = total + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        moved = z.detach() + 0.02 * total.sign()
        z = torch.minimum(torch.maximum(moved, source - 0.05), source + 0.05).clamp(0, 1)
    found = distil(distance, source, eps=0.05, step=0.02, steps=6)
    torch.testing.assert_close(found, z)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc"])
def test_features_come_nearer_within_the_ball(layer: str) -> None:
    member, source = small(), images(8)
    distance = FeatureDistance(member, layer, images(8, seed=1), every_call=False)
    assert bool(distance.first.isnan())
    z = distil(distance, source, eps=0.1, step=0.01, steps=10)
    assert distance.last < distance.first
    assert bool((-distance(z) < -distance(source)).all())
    assert float((z - source).abs().max()) <= 0.1 + 1e-6
    assert not z.requires_grad


def test_an_image_is_its_own_target() -> None:
    member, source = small(name="resnet20_cifar", width=4), images(3)
    distance = FeatureDistance(member, "layer2.0.bn1", source, every_call=False)
    assert torch.equal(distil(distance, source, eps=0.1, step=0.01, steps=5), source)


def test_without_a_radius_nothing_moves() -> None:
    distance = FeatureDistance(small(), "conv2", images(3, seed=1), every_call=False)
    assert torch.equal(distil(distance, images(3), eps=0.0, step=0.01, steps=5), images(3))


@pytest.mark.parametrize("training", [False, True])
def test_reading_targets_at_each_call_changes_running_statistics_only(training: bool) -> None:
    results, counts = [], []
    for every_call in (False, True):
        member = small(name="resnet20_cifar", width=4).train(training)
        distance = FeatureDistance(member, "layer1.0.bn1", images(6, seed=1), every_call=every_call)
        results.append(distil(distance, images(6), eps=0.1, step=0.01, steps=4))
        counts.append(int(member.backbone.bn1.num_batches_tracked))
    assert torch.equal(*results)
    assert counts == ([5, 8] if training else [0, 0])  # 4 passes of z, and 1 or 4 of the targets


def test_gradients_reach_images_only() -> None:
    member = small()
    distance = FeatureDistance(member, "conv2", images(3, seed=1), every_call=True)
    distil(distance, images(3), eps=0.1, step=0.01, steps=2)
    assert all(p.grad is None for p in member.parameters())


# ---------------------------------------------------------------- diversity


def test_vulnerability_diversity() -> None:
    members = [small(seed) for seed in range(3)]
    distilled, y = [images(5, seed) for seed in range(3)], torch.tensor([0, 1, 2, 3, 4])
    found = vulnerability_diversity(members, distilled, y)
    with torch.no_grad():
        for i in range(3):
            for j in range(3):
                cross = F.cross_entropy(members[i](distilled[j]), y)
                back = F.cross_entropy(members[j](distilled[i]), y)
                assert float(found[i, j]) == pytest.approx(float(cross + back) / 2, rel=1e-5)
    assert math.isclose(float(found[0, 1]), float(found[1, 0]))
