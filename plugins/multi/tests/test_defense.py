"""The phases on small networks, and the worked example of a linear one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from phalanx.api import (
    Batch,
    MeanEnsemble,
    Perturbation,
    PerturbationType,
    Perturbing,
    Phase,
    PhaseContext,
    Task,
    attacking,
    generator,
)
from phalanx.config import TrainingConfig
from phalanx.errors import ConfigError
from phalanx.randomness import seeded
from phalanx.training.plan import planned
from phalanx_multi.config import AVGConfig, MultiConfig
from phalanx_multi.defense import AVG, MAX, AVGPhase, MAXPhase, SequentialPhase, made

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
TYPES = [
    {"name": "clean"},
    {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}},
    {"name": "l2", "attack": {"use": "pgd", "params": {"threat": "l2:0.5", "steps": 2}}},
]


class Context(PhaseContext):
    """A place in a phase, with a seed of its own and plain SGD."""

    def __init__(self, phase: Phase, *, seed: int = 0, lr: float = 0.1) -> None:
        self.phase, self.seed = phase, seed
        self.epoch, self.index, self.batches = 0, 0, 1
        self.device = torch.device("cpu")
        self.optimizer = torch.optim.SGD(phase.module.parameters(), lr=lr)
        self.updates = 0

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.seed, *purpose)

    def batch(self, stream: str) -> Batch:
        raise LookupError(stream)

    def minimise(self, loss: Tensor, *groups: str) -> None:
        self.phase.module.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates += 1


def make(kind: type[AVG | MAX], *, backbone: Any = "small_cnn", **settings: Any) -> Any:
    """The phase of a small network, always from the same initial weights."""
    config = (AVGConfig if kind is AVG else MultiConfig).model_validate(
        {"backbone": backbone, "types": TYPES, **settings}
    )
    defense = kind(config, TASK)  # type: ignore[arg-type]
    with seeded(0, "build"):
        model = defense.build()
    (phase,) = defense.phases(model)
    model.train()
    return phase


def images(n: int = 12, seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


def by_hand(phase: Any, batch: Batch, ctx: Context) -> list[Tensor]:
    """Each type's images, one after another."""
    found = [batch.x]
    for one in phase.perturbing[1:]:
        with attacking(phase.module):
            draws = ctx.generator("type", one.name)
            found.append(one.attack(phase.module, batch.x, batch.y, generator=draws))
    return found


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (AVG, {}, AVGPhase),
        (AVG, {"sequential": True}, SequentialPhase),
        (MAX, {}, MAXPhase),
    ],
)
def test_one_phase_with_mols_setting(kind: Any, settings: Any, expected: type) -> None:
    phase = make(kind, **settings)
    assert type(phase) is expected
    assert isinstance(phase.module, MeanEnsemble)
    assert len(phase.module.members) == 1
    assert (phase.name, phase.epochs, phase.batch_size) == ("fit", 200, 128)
    optimizer = phase.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.01, 0.9, 5e-4)
    assert [phase.schedule(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [one.name for one in phase.perturbing] == ["clean", "linf", "l2"]


@pytest.mark.parametrize("kind", [AVG, MAX])
def test_adversarial_transforms_are_refused(kind: Any) -> None:
    phase = make(kind)
    given = {"adversarial": {"attack": {"use": "fgsm", "params": {"threat": "linf:0.1"}}}}
    with pytest.raises(ConfigError, match="every phase of this defense crafts its own examples"):
        planned([phase], TrainingConfig.model_validate(given), phase.module)


def test_the_network_serves_its_own_logits() -> None:
    model = make(AVG).module.eval()
    x = images().x
    assert torch.equal(model(x), model.members[0](x))
    assert list(model.views()) == ["deployed"]


@pytest.mark.parametrize("kind", [AVG, MAX])
def test_examples_are_made_in_evaluation_mode_and_all_comes_back(kind: Any) -> None:
    phase = make(kind, backbone={"use": "resnet20_cifar", "params": {"width": 4}})
    norms = [part for part in phase.module.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    assert all(norm.training for norm in norms)
    found = made(phase.module, phase.perturbing, images(), Context(phase))
    assert torch.equal(found[0], images().x)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert all(norm.training for norm in norms)
    assert all(p.requires_grad for p in phase.module.parameters())
    terms = phase.objective(images(), Context(phase))
    assert all(norm.num_batches_tracked == 1 for norm in norms)  # one forward pass in training mode
    assert terms["cross_entropy"].requires_grad


@pytest.mark.parametrize("kind", [AVG, MAX])
def test_global_random_state_is_untouched(kind: Any) -> None:
    phase, before = make(kind), torch.get_rng_state()
    phase.objective(images(), Context(phase))
    assert torch.equal(before, torch.get_rng_state())


def test_a_types_draws_do_not_depend_on_the_others() -> None:
    phase = make(AVG)
    whole = made(phase.module, phase.perturbing, images(), Context(phase))
    (alone,) = made(phase.module, phase.perturbing[2:], images(), Context(phase))
    assert torch.equal(whole[2], alone)


# ---------------------------------------------------------------- AVG


def test_avg_is_the_mean_loss_over_types() -> None:
    phase, batch = make(AVG), images()
    ctx = Context(phase)
    terms = phase.objective(batch, ctx)
    losses = [F.cross_entropy(phase.module(x), batch.y) for x in by_hand(phase, batch, ctx)]
    torch.testing.assert_close(terms["cross_entropy"], torch.stack(losses).mean())
    for name, loss in zip(("clean", "linf", "l2"), losses, strict=True):
        torch.testing.assert_close(terms[f"log/cross_entropy/{name}"], loss)
    assert losses[1] > losses[0]
    assert losses[2] > losses[0]


def test_avg_takes_one_step_and_sequential_one_a_type_on_new_weights() -> None:
    batch = images()
    together = make(AVG)
    ctx = Context(together)
    together.step(batch, ctx)
    assert ctx.updates == 1
    in_turn = make(AVG, sequential=True)
    ctx = Context(in_turn)
    values = in_turn.step(batch, ctx)
    assert ctx.updates == 3

    reference = make(AVG)
    own = Context(reference)
    losses = []
    for one in reference.perturbing:
        with attacking(reference.module):
            x = one(reference.module, batch.x, batch.y, generator=own.generator("type", one.name))
        loss = F.cross_entropy(reference.module(x), batch.y)
        own.minimise(loss)
        losses.append(loss.detach())
    for first, second in zip(
        in_turn.module.parameters(), reference.module.parameters(), strict=True
    ):
        assert torch.equal(first, second)
    assert torch.equal(values["cross_entropy"], torch.stack(losses).mean())
    assert torch.equal(values["log/cross_entropy/l2"], losses[2])


def test_equal_types_are_training_on_one_of_them() -> None:
    batch, phase = images(), make(AVG)
    phase.perturbing = (Perturbing("a"), Perturbing("b"))
    terms = phase.objective(batch, Context(phase))
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(phase.module(batch.x), batch.y)
    )


# ---------------------------------------------------------------- MAX


def test_max_trains_on_each_images_worst_type() -> None:
    phase, batch = make(MAX), images(24)
    ctx = Context(phase)
    terms = phase.objective(batch, ctx)
    candidates = by_hand(phase, batch, ctx)
    losses = torch.stack(
        [F.cross_entropy(phase.module(x), batch.y, reduction="none") for x in candidates]
    )
    torch.testing.assert_close(terms["cross_entropy"], losses.amax(0).mean())
    assert terms["cross_entropy"] >= losses.mean(1).max()
    shares = [float(terms[f"log/chosen/{name}"]) for name in ("clean", "linf", "l2")]
    chosen = losses.argmax(0)
    assert shares == pytest.approx([float((chosen == k).float().mean()) for k in range(3)])
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == 0  # an attack is never milder than the image
    torch.testing.assert_close(terms["log/cross_entropy/linf"], losses[1].mean())


class Noise(Perturbation[Any]):
    """Somebody's natural perturbation."""

    def __init__(self) -> None:
        pass

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        return torch.rand(x.shape, generator=generator)


@pytest.mark.parametrize("kind", [AVG, MAX])
def test_natural_perturbations_are_types_as_others(kind: Any) -> None:
    phase, batch = make(kind), images()
    phase.perturbing = (*phase.perturbing, Perturbing("noise", perturbation=Noise()))
    ctx = Context(phase)
    found = made(phase.module, phase.perturbing, batch, ctx)
    assert torch.equal(found[3], Noise()(batch.x, generator=ctx.generator("type", "noise")))
    terms = phase.objective(batch, ctx)
    expected = F.cross_entropy(phase.module(found[3]), batch.y)
    torch.testing.assert_close(terms["log/cross_entropy/noise"], expected)


# ---------------------------------------------------------------- a linear network, by hand

SLOPE = torch.tensor([4.0, 3.0, 0.0, 0.0])
EPSILONS = {"linf": 0.1, "l2": 0.15, "l1": 0.25}
GAINS = {"linf": 0.7, "l2": 0.75, "l1": 1.0}


class Slope(nn.Module):
    """Scores (0, g·x): the logarithm of the odds against class 0 rises by g·δ."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(SLOPE.clone())

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def linear(kind: type, **types: float) -> Any:
    perturbing = [
        Perturbing.of(
            PerturbationType.model_validate(
                {
                    "name": n,
                    "attack": {
                        "use": "pgd",
                        "params": {"threat": f"{n}:{eps}", "steps": 40, "start": "clean"},
                    },
                }
            )
        )
        for n, eps in types.items()
    ]
    return kind(name="fit", module=Slope(), perturbing=tuple(perturbing), epochs=1)


GREY = Batch(torch.full((5, 1, 2, 2), 0.5), torch.zeros(5, dtype=torch.long))


def test_gains_in_the_balls_are_those_of_the_dual_norms() -> None:
    phase = linear(MAXPhase, **EPSILONS)
    found = made(phase.module, phase.perturbing, GREY, Context(phase))
    for x, (name, gain) in zip(found, GAINS.items(), strict=True):
        rise = (x - GREY.x).flatten(1) @ SLOPE
        torch.testing.assert_close(rise, torch.full((5,), gain), atol=1e-4, rtol=0, msg=name)


def test_max_picks_the_ball_of_largest_gain() -> None:
    phase = linear(MAXPhase, **EPSILONS)
    terms = phase.objective(GREY, Context(phase))
    assert float(terms["log/chosen/l1"]) == 1.0
    z = float(SLOPE.sum() / 2) + 1.0
    assert float(terms["cross_entropy"].detach()) == pytest.approx(
        math.log(1 + math.exp(z)), abs=1e-4
    )
    other = linear(MAXPhase, **(EPSILONS | {"l1": 0.15}))
    assert float(other.objective(GREY, Context(other))["log/chosen/l2"]) == 1.0


def test_avg_averages_over_the_balls() -> None:
    phase = linear(AVGPhase, **EPSILONS)
    terms = phase.objective(GREY, Context(phase))
    odds = [math.log(1 + math.exp(float(SLOPE.sum() / 2) + gain)) for gain in GAINS.values()]
    assert float(terms["cross_entropy"].detach()) == pytest.approx(sum(odds) / 3, abs=1e-4)


# ---------------------------------------------------------------- they learn


@pytest.mark.parametrize(("kind", "settings"), [(AVG, {}), (AVG, {"sequential": True}), (MAX, {})])
def test_a_few_steps_fit_a_batch_in_all_types(kind: Any, settings: Any) -> None:
    phase = make(kind, **settings)
    x, y = images(20).x / 4, torch.arange(20) % 2
    x[y == 1] += 0.5  # dark and bright images
    batch, ctx = Batch(x, y), Context(phase, lr=0.05)
    for _ in range(40):
        phase.step(batch, ctx)
    for found in made(phase.module, phase.perturbing, batch, ctx):
        assert bool((phase.module(found).argmax(1) == y).all())
