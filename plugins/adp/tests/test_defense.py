"""The phase's objective, its adversarial form and the views, on small networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from phalanx.api import Adversarial, Batch, Linf, Phase, PhaseContext, Task, generator, log_mean
from phalanx.config import TrainingConfig
from phalanx.randomness import seeded
from phalanx.training.plan import planned
from phalanx_adp.config import ADPConfig
from phalanx_adp.defense import ADP, ADPEnsemble, ADPPhase, AtRandomRadius
from phalanx_adp.losses import ensemble_entropy, gram, log_determinant, mean_cosine

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
PGD = {"use": "pgd", "params": {"threat": "linf:0.2", "steps": 2}}


class Context(PhaseContext):
    """A place in a phase, with a seed of its own."""

    def __init__(self, phase: Phase, seed: int = 0) -> None:
        self.phase, self.seed = phase, seed
        self.epoch, self.index, self.batches = 0, 0, 1
        self.device = torch.device("cpu")

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.seed, *purpose)

    def batch(self, stream: str) -> Batch:
        raise LookupError(stream)

    def minimise(self, loss: Tensor, *groups: str) -> None:
        raise LookupError(groups)


def make(**settings: Any) -> ADPPhase:
    """The phase of a small ensemble, always from the same initial weights."""
    given = {"backbone": "small_cnn", "members": 3, **settings}
    defense = ADP(ADPConfig.model_validate(given), TASK)
    with seeded(0, "build"):
        model = defense.build()
    (phase,) = defense.phases(model)
    assert isinstance(phase, ADPPhase)
    return phase


def images(n: int = 16, seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


def minimised(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in terms.items() if not name.startswith("log/")}


def scores(phase: ADPPhase, x: Tensor) -> Tensor:
    return torch.stack([member(x) for member in phase.module.members])


# ---------------------------------------------------------------- the objective


def test_the_phase_has_the_papers_setting() -> None:
    phase = make()
    assert (phase.name, phase.epochs, phase.batch_size) == ("adp", 200, 64)
    optimizer = phase.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-3, 1e-4)
    assert [phase.schedule(p / 200) for p in (0, 99, 100, 149, 150)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert phase.transforms == ()


def test_objective_is_the_formula() -> None:
    phase, batch = make(alpha=1.5, beta=0.3), images()
    terms = phase.objective(batch, Context(phase))
    z = scores(phase, batch.x)
    ce = sum(F.cross_entropy(member, batch.y) for member in z)
    p = z.softmax(2).mean(0)
    h = -(p * p.log()).sum(1).mean()
    led = log_determinant(gram(z, batch.y))
    assert set(minimised(terms)) == {"cross_entropy", "entropy", "diversity"}
    torch.testing.assert_close(terms["cross_entropy"], ce)
    torch.testing.assert_close(terms["entropy"], -1.5 * h)
    torch.testing.assert_close(terms["diversity"], (-0.3 * led).float())
    torch.testing.assert_close(terms["log/entropy"], h)
    torch.testing.assert_close(terms["log/led"], led.float())
    torch.testing.assert_close(terms["log/cosine"], mean_cosine(gram(z, batch.y)))
    assert float(terms["log/accuracy"]) == float((p.argmax(1) == batch.y).float().mean())
    parts = torch.stack([terms[f"log/cross_entropy/{k}"] for k in range(3)])
    torch.testing.assert_close(parts.sum(), terms["cross_entropy"])


def test_every_term_can_join_the_sum() -> None:
    terms = minimised(make().objective(images(), Context(make())))
    assert torch.stack(list(terms.values())).dtype == torch.float32
    assert all(value.shape == () and bool(value.isfinite()) for value in terms.values())


@pytest.mark.parametrize(
    ("alpha", "beta", "names"),
    [
        (0, 0, {"cross_entropy"}),
        (2, 0, {"cross_entropy", "entropy"}),
        (0, 0.5, {"cross_entropy", "diversity"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(alpha: float, beta: float, names: set[str]) -> None:
    phase = make(alpha=alpha, beta=beta)
    assert set(minimised(phase.objective(images(), Context(phase)))) == names


def test_without_weights_each_member_is_trained_alone_bit_for_bit() -> None:
    phase, batch = make(alpha=0, beta=0), images()
    (loss,) = minimised(phase.objective(batch, Context(phase))).values()
    together = torch.autograd.grad(loss, list(phase.module.parameters()))
    alone = [
        gradient
        for member in phase.module.members
        for gradient in torch.autograd.grad(
            F.cross_entropy(member(batch.x), batch.y), list(member.parameters())
        )
    ]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_members_move_apart_and_the_mean_grows_unsure() -> None:
    phase, batch = make(alpha=1.0, beta=1.0), images(32)
    optimizer = torch.optim.Adam(phase.module.parameters(), lr=1e-3)
    logged = []
    for _ in range(25):
        terms = phase.objective(batch, Context(phase))
        logged.append({name: float(value.detach()) for name, value in terms.items()})
        optimizer.zero_grad()
        (terms["entropy"] + terms["diversity"]).backward()
        optimizer.step()
    assert logged[-1]["log/cosine"] < logged[0]["log/cosine"] - 0.2
    assert logged[-1]["log/led"] > logged[0]["log/led"] + 5


def test_a_few_steps_fit_a_batch() -> None:
    phase = make()
    x, y = images(20).x / 4, torch.arange(20) % 2
    x[y == 1] += 0.5  # dark and bright images
    optimizer = torch.optim.Adam(phase.module.parameters(), lr=3e-3)
    for _ in range(60):
        terms = minimised(phase.objective(Batch(x, y), Context(phase)))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert bool((phase.module(x).argmax(1) == y).all())


# ---------------------------------------------------------------- the adversarial form


@pytest.mark.parametrize("term", ["full", "ce"])
def test_a_twin_adds_its_own_loss(term: str) -> None:
    phase = make(adversarial_term=term)
    clean, other = images(seed=0), images(seed=1)
    terms = phase.objective(replace(clean, adv=other.x), Context(phase))
    own = phase.objective(clean, Context(phase))
    twin = phase.objective(Batch(other.x, clean.y), Context(phase))
    added = {"cross_entropy", "entropy", "diversity"} if term == "full" else {"cross_entropy"}
    assert set(minimised(terms)) == set(minimised(own)) | {f"adversarial/{name}" for name in added}
    assert all(torch.equal(terms[name], value) for name, value in own.items())
    assert all(torch.equal(terms[f"adversarial/{name}"], twin[name]) for name in added)
    assert torch.equal(terms["log/adversarial/accuracy"], twin["log/accuracy"])


def test_the_twin_is_of_the_ensemble() -> None:
    phase = make(attack=PGD)
    (transform,) = phase.transforms
    assert type(transform) is Adversarial
    assert (transform.mode, transform.batchnorm) == ("twin", "train")
    batch, ctx = images(), Context(phase)
    twin = transform(batch, ctx).adv
    expected = transform.attack(
        phase.module, batch.x, batch.y, generator=ctx.generator("adversarial")
    )
    assert torch.equal(twin, expected)
    assert phase.target(ctx) is phase.module


def test_radii_are_drawn_for_each_batch() -> None:
    phase, batch = make(attack=PGD, radii=[0.02, 0.06]), images()
    (transform,) = phase.transforms
    assert isinstance(transform, AtRandomRadius)
    reached = []
    for seed in range(8):
        made = transform(batch, Context(phase, seed))
        assert made.x is batch.x
        moves = (made.adv - batch.x).abs().flatten(1).amax(1)
        reached.append(float(moves.max()))
        torch.testing.assert_close(moves, torch.full_like(moves, reached[-1]))  # one for all rows
    assert len(set(reached)) == 8
    assert all(0.02 - 1e-6 <= radius <= 0.06 + 1e-6 for radius in reached)
    again = transform(batch, Context(phase, 3)).adv
    assert torch.equal(again, transform(batch, Context(phase, 3)).adv)


def test_equal_radii_are_one_attack() -> None:
    (drawn,) = make(attack=PGD, radii=[0.2, 0.2]).transforms
    (fixed,) = make(attack=PGD).transforms
    phase, batch = make(), images()
    assert torch.equal(drawn(batch, Context(phase)).adv, fixed(batch, Context(phase)).adv)


def test_the_run_files_attack_goes_before() -> None:
    phase = make(attack=PGD, radii=[0.02, 0.06])
    other = {"attack": {"use": "fgsm", "params": {"threat": "linf:0.1"}}, "mode": "twin"}
    training = TrainingConfig.model_validate({"adversarial": other})
    (changed,) = planned([phase], training, phase.module)
    (transform,) = changed.transforms
    assert type(transform) is Adversarial
    assert transform.attack.threat == Linf(0.1)


# ---------------------------------------------------------------- what is served


def test_views() -> None:
    model = make().module
    assert isinstance(model, ADPEnsemble)
    views = model.views()
    assert list(views) == ["deployed", "one-member"]
    assert not model.stochastic
    assert views["one-member"].fixed_draw
    assert views["one-member"].rowwise
    opened = [views["one-member"].open(seed) for seed in range(40)]
    assert {id(one) for one in opened} == {id(member) for member in model.members}
    assert views["one-member"].open(7) is views["one-member"].open(7)


def test_the_mean_probability_is_served() -> None:
    model, x = make().module.eval(), images().x
    assert torch.equal(model(x), log_mean([member(x) for member in model.members]))
    expected = torch.stack([member(x).softmax(1) for member in model.members]).mean(0)
    torch.testing.assert_close(model(x).exp(), expected)


def test_members_differ_in_weights_only() -> None:
    members = make().module.members
    shapes = [[tuple(p.shape) for p in member.parameters()] for member in members]
    assert shapes[0] == shapes[1] == shapes[2]
    assert not torch.equal(next(members[0].parameters()), next(members[1].parameters()))


def test_global_random_state_is_untouched() -> None:
    phase, before = make(attack=PGD, radii=[0.02, 0.06]), torch.get_rng_state()
    phase.objective(phase.transforms[0](images(), Context(phase)), Context(phase))
    assert torch.equal(before, torch.get_rng_state())


def test_entropy_of_the_worked_ensemble_is_that_of_the_served_mean() -> None:
    model, x = make().module.eval(), images().x
    served = model(x)
    expected = -(served.exp() * served).sum(1).mean()
    torch.testing.assert_close(
        ensemble_entropy(torch.stack([member(x) for member in model.members])), expected
    )
