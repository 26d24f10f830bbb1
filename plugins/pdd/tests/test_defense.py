"""The phase's objective on small networks, without a trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from phalanx.api import Batch, Phase, PhaseContext, Task, generator, log_mean
from phalanx_pdd.config import PDDConfig
from phalanx_pdd.defense import PDD, PDDPhase, input_gradient, rows

TASK = Task(name="digits-like", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
VARIANTS = ["pdd", "deg", "pdd+deg"]


class Context(PhaseContext):
    """One step of one epoch, with a seed of its own."""

    def __init__(self, phase: Phase, seed: int = 0) -> None:
        self.phase, self.seed = phase, seed
        self.epoch, self.index, self.batches = 0, 0, 1
        self.device = torch.device("cpu")

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.seed, *purpose)

    def batch(self, stream: str) -> Batch:
        raise NotImplementedError

    def minimise(self, loss: Tensor, *groups: str) -> None:
        raise NotImplementedError


def make(**settings: Any) -> PDDPhase:
    """The phase of a small ensemble, always from the same initial weights."""
    config = PDDConfig.model_validate({"backbone": "small_cnn", "members": 3, **settings})
    defense = PDD(config, TASK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = defense.build()
    (phase,) = defense.phases(model)
    assert isinstance(phase, PDDPhase)
    return phase


def images(n: int = 16, seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


def weights_gradient(phase: PDDPhase, loss: Tensor) -> Tensor:
    parameters = list(phase.module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("members", [3, 5])
def test_objective_is_finite_and_named(variant: str, members: int) -> None:
    phase = make(variant=variant, members=members)
    batch = images()
    terms = phase.objective(batch, Context(phase))
    pairs = [f"{i}-{j}" for i in range(members) for j in range(i + 1, members)]
    expected = {"cross_entropy"}
    if "pdd" in variant:
        expected |= {f"log/kept/{k}" for k in range(members)}
    if "deg" in variant:
        expected |= {"dispersion"} | {f"log/cosine/{pair}" for pair in pairs}
        cosines = torch.stack([terms[f"log/cosine/{pair}"] for pair in pairs])
        torch.testing.assert_close(terms["dispersion"], 0.01 * cosines.sum())
    assert set(terms) == expected
    assert all(term.shape == () and bool(term.isfinite()) for term in terms.values())
    total = terms["cross_entropy"] + terms.get("dispersion", torch.zeros(()))
    assert bool(weights_gradient(phase, total).isfinite().all())
    assert not batch.x.requires_grad


def test_the_phase_has_the_papers_setting() -> None:
    phase = make()
    assert (phase.name, phase.epochs, phase.batch_size) == ("pdd", 40, 64)
    optimizer = phase.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 0.02, 0.9)
    assert optimizer.weight_decay == 5e-4
    assert phase.schedule(0.0) == 1.0
    assert phase.schedule(1.0) * 0.02 == pytest.approx(1e-4)


def test_members_differ_in_weights_only() -> None:
    members = make().module.members
    shapes = [[tuple(p.shape) for p in member.parameters()] for member in members]
    assert shapes[0] == shapes[1] == shapes[2]
    assert not torch.equal(next(members[0].parameters()), next(members[1].parameters()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_served_is_never_masked(variant: str) -> None:
    model = make(variant=variant).module.eval()
    x = images().x
    members = [member.head(member.features(x)) for member in model.members]
    assert torch.equal(model(x), log_mean(members))


def test_the_mask_reaches_the_heads() -> None:
    phase = make(variant="pdd", alpha=0.0, beta=0.0)  # nothing is kept: logits are the biases
    batch = images()
    terms = phase.objective(batch, Context(phase))
    biases = [
        member.head(torch.zeros_like(member.features(batch.x))) for member in phase.module.members
    ]
    expected = torch.stack([F.cross_entropy(z, batch.y) for z in biases]).mean()
    torch.testing.assert_close(terms["cross_entropy"], expected)
    assert all(float(terms[f"log/kept/{k}"]) == 0.0 for k in range(3))


def test_kept_features_are_not_rescaled() -> None:
    phase = make(variant="pdd")
    batch = images()
    members = phase.module.members
    with torch.no_grad():
        features = [member.features(batch.x) for member in members]
    mask = phase.mask(features, Context(phase))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    expected = torch.stack(
        [
            F.cross_entropy(member.head(f * mask[:, k]), batch.y)
            for k, (member, f) in enumerate(zip(members, features, strict=True))
        ]
    ).mean()
    terms = phase.objective(batch, Context(phase))
    torch.testing.assert_close(terms["cross_entropy"], expected)


def test_the_first_member_keeps_most() -> None:
    phase = make(variant="pdd")
    ctx = Context(phase)
    skewed = [torch.rand(32, 512, generator=generator(k)) ** 6 for k in range(3)]
    kept = phase.mask(skewed, ctx).mean((0, 2))
    assert kept[0] > 0.5
    assert bool((kept[1:] < 0.25).all())


def test_the_draw_is_keyed_by_the_context() -> None:
    phase, batch = make(variant="pdd"), images()
    first, again, other = (phase.objective(batch, Context(phase, seed)) for seed in (0, 0, 1))
    assert torch.equal(first["cross_entropy"], again["cross_entropy"])
    assert not torch.equal(first["cross_entropy"], other["cross_entropy"])


def test_global_random_state_is_untouched() -> None:
    phase, before = make(), torch.get_rng_state()
    phase.objective(images(), Context(phase))
    assert torch.equal(before, torch.get_rng_state())


def test_the_penalty_reaches_the_weights() -> None:
    phase, batch = make(variant="deg"), images()
    terms = phase.objective(batch, Context(phase))
    both = weights_gradient(phase, terms["cross_entropy"] + 100 * terms["dispersion"])
    terms = phase.objective(batch, Context(phase))
    without = weights_gradient(phase, terms["cross_entropy"])
    assert not torch.allclose(both, without)  # without create_graph they were equal


def test_a_step_against_the_penalty_lowers_it() -> None:
    phase, batch = make(variant="deg", dispersion_weight=1.0), images()
    parameters = list(phase.module.parameters())
    penalty = phase.objective(batch, Context(phase))["dispersion"]
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
    length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.01 * gradient / length
    assert phase.objective(batch, Context(phase))["dispersion"] < penalty


def test_input_gradients_are_those_of_single_images() -> None:
    member = make(variant="deg").module.eval().members[0]
    batch = images(4)
    x = batch.x.clone().requires_grad_()
    together = input_gradient(F.cross_entropy(member(x), batch.y) * 4, x)
    for row in range(4):
        one = batch.x[row : row + 1].clone().requires_grad_()
        single = input_gradient(F.cross_entropy(member(one), batch.y[row : row + 1]), one)
        torch.testing.assert_close(together[row : row + 1], single)


def test_sum_is_members_times_the_mean() -> None:
    batch = images()
    values = {}
    for ece in ("mean", "sum"):
        phase = make(variant="deg", ece=ece)
        values[ece] = phase.objective(batch, Context(phase))["cross_entropy"]
    torch.testing.assert_close(values["sum"], 3 * values["mean"])


def test_a_twin_adds_its_rows() -> None:
    clean, other = images(seed=0), images(seed=1)
    twin = replace(clean, adv=other.x)
    x, y = rows(twin)
    assert torch.equal(x, torch.cat([clean.x, other.x]))
    assert torch.equal(y, torch.cat([clean.y, clean.y]))
    phase = make()
    with_twin = phase.objective(twin, Context(phase))
    by_hand = phase.objective(Batch(x, y), Context(phase))
    assert all(torch.equal(with_twin[name], by_hand[name]) for name in by_hand)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_steps_fit_a_batch(variant: str) -> None:
    phase = make(variant=variant)
    x = images(20).x / 4
    y = torch.arange(20) % 2
    x[y == 1] += 0.5  # dark and bright images
    optimizer = torch.optim.SGD(phase.module.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        terms = phase.objective(Batch(x, y), Context(phase, step))
        loss = torch.stack([v for name, v in terms.items() if not is_log(name)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool((phase.module(x).argmax(1) == y).all())


def is_log(name: str) -> bool:
    return name.startswith("log/")
