"""What is served, and what an attacker may differentiate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from phalanx.api import Member, Task, attacking, generator
from phalanx.randomness import seeded
from phalanx_mol.config import MoLConfig
from phalanx_mol.defense import MoL
from phalanx_mol.model import MoLModel

TASK = Task(name="toy", shape=(3, 16, 16), classes=4, train_size=8, mean=(0.4,) * 3, std=(0.2,) * 3)
EXPERTS = [
    {"name": "clean"},
    {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}},
    {"name": "fog", "perturbation": "fog"},
]
RESNET = {"use": "resnet18_cifar", "params": {"width": 4}}


def build(**settings: Any) -> MoLModel:
    given = {"experts": EXPERTS, "backbone": RESNET, **settings}
    defense = MoL(MoLConfig.model_validate(given), TASK)
    with seeded(0, "build"):
        model = defense.build()
    return model.eval()


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, *TASK.shape, generator=generator(seed, "images"))


def test_the_experts_weighed_are_served() -> None:
    model, x = build(), images()
    a = model.aggregator(x).softmax(1)
    logits = torch.stack([expert(x) for expert in model.members])
    torch.testing.assert_close(model(x), torch.einsum("nm,mnk->nk", a, logits))
    assert (tuple(a.shape), tuple(logits.shape)) == ((4, 3), (3, 4, 4))
    torch.testing.assert_close(model.weights(x), a)


@pytest.mark.parametrize("weighting", ["linear", "sigmoid"])
def test_other_weightings(weighting: str) -> None:
    model, x = build(weighting=weighting), images()
    a = model.aggregator(x) if weighting == "linear" else model.aggregator(x).sigmoid()
    logits = torch.stack([expert(x) for expert in model.members])
    torch.testing.assert_close(model(x), torch.einsum("nm,mnk->nk", a, logits))


def test_gradients_reach_the_image_through_sleeping_experts_and_the_aggregator() -> None:
    model, x = build(), images()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = []
    for frozen in ((), model.members, (model.aggregator,)):
        z = x.clone().requires_grad_()
        handles = [part.register_forward_hook(_detached) for part in frozen]
        with attacking(model):
            (gradient,) = torch.autograd.grad(model(z).square().sum(), z)
        for handle in handles:
            handle.remove()
        found.append(gradient)
    whole, weights_only, experts_only = found
    assert all(bool((gradient != 0).any()) for gradient in found)
    torch.testing.assert_close(whole, weights_only + experts_only)


def _detached(module: object, inputs: object, scores: Tensor) -> Tensor:
    return scores.detach()


def test_the_members_are_the_experts() -> None:
    model = build()
    assert model.names == ("clean", "linf", "fog")
    assert all(isinstance(member, Member) for member in model.members)
    assert len(model.members) == 3
    assert model.aggregator not in model.members


def test_one_expert_is_fixed_at_opening() -> None:
    model, x = build(), images()
    view = model.views()["one-expert"]
    assert set(model.views()) == {"deployed", "one-expert"}
    assert view.rowwise
    assert view.fixed_draw
    opened = [view.open(seed) for seed in range(20)]
    assert {id(one) for one in opened} == {id(member) for member in model.members}
    assert torch.equal(view.open(3)(x), view.open(3)(x))


def test_the_aggregators_size_follows_the_pruners_rate() -> None:
    full = {"use": "resnet18_cifar", "params": {"width": 16}}
    pruned = build(backbone=full, pruner={"use": "block", "params": {"rate": 4}})
    expert, aggregator = (
        sum(p.numel() for p in part.parameters()) for part in (pruned.members[0], pruned.aggregator)
    )
    assert 0.2 < aggregator / expert <= 0.26
