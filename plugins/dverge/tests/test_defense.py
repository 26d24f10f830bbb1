"""The phases, and who learns from whom, on small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from phalanx.api import (
    Batch,
    CrossEntropyPhase,
    Phase,
    PhaseContext,
    Regularizer,
    Task,
    generator,
    log_mean,
)
from phalanx.randomness import seeded
from phalanx_dverge.config import DVERGEConfig
from phalanx_dverge.defense import DVERGE, DVERGEPhase
from phalanx_dverge.layers import feature_layers

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
RESNET = {"use": "resnet20_cifar", "params": {"width": 4}}


def images(n: int = 8, seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


class Context(PhaseContext):
    """The smallest thing that the phase can run in: fixed targets, one optimizer a group."""

    def __init__(self, phase: Phase, *, lr: float = 0.1, seed: int = 0) -> None:
        self.phase, self.seed = phase, seed
        self.epoch, self.index, self.batches = 0, 0, 4
        self.device = torch.device("cpu")
        self.updated: list[tuple[str, ...]] = []
        self.optimizers = {
            name: torch.optim.SGD(parameters, lr=lr, momentum=0.9)
            for name, parameters in phase.groups().items()
        }

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.seed, self.epoch, self.index, *purpose)

    def batch(self, stream: str) -> Batch:
        assert stream == "target"
        return images(seed=99)

    def minimise(self, loss: Tensor, *groups: str) -> None:
        self.phase.module.zero_grad(set_to_none=True)
        loss.backward()
        for name in groups or self.optimizers:
            self.optimizers[name].step()
        self.updated.append(groups)


def make(**settings: Any) -> DVERGEPhase:
    """The last phase of a small ensemble, always from the same initial weights."""
    given = {"backbone": "small_cnn", "members": 3, "eps": 0.1, "steps": 3, **settings}
    defense = DVERGE(DVERGEConfig.model_validate(given), TASK)
    with seeded(0, "build"):
        model = defense.build()
    phase = defense.phases(model)[-1]
    assert isinstance(phase, DVERGEPhase)
    phase.layer = phase.layers[0]
    return phase


def states(phase: DVERGEPhase) -> list[list[Tensor]]:
    return [[v.clone() for v in member.state_dict().values()] for member in phase.members]


class Spy(nn.Module):
    """Remembers what a member is asked, and answers."""

    def __init__(self, member: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.member, self.seen = member, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.member(x)


# ---------------------------------------------------------------- phases


def test_phases_are_the_papers() -> None:
    defense = DVERGE(DVERGEConfig(members=3), TASK.model_copy(update={"shape": (1, 32, 32)}))
    model = defense.build()
    *baseline, last = defense.phases(model)
    assert [phase.name for phase in baseline] == ["baseline/1", "baseline/2", "baseline/3"]
    for phase, member in zip(baseline, model.members, strict=True):
        assert type(phase) is CrossEntropyPhase
        assert phase.module is member
    assert last.name == "dverge"
    assert last.depends_on == ("baseline/1", "baseline/2", "baseline/3")
    assert last.layers == feature_layers(model.members[0])
    assert len(last.layers) == 20
    for phase in (*baseline, last):
        assert (phase.epochs, phase.batch_size) == (200, 128)
        assert (phase.optimizer.name, phase.optimizer.lr) == ("sgd", 0.1)
        assert (phase.optimizer.momentum, phase.optimizer.weight_decay) == (0.9, 1e-4)
        factors = [phase.schedule(p / 200) for p in (0, 99, 100, 149, 150)]
        assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_from_scratch_there_is_one_phase() -> None:
    defense = DVERGE(DVERGEConfig.model_validate({"backbone": "small_cnn"}), TASK)
    assert len(defense.phases(defense.build())) == 4
    scratch = {"backbone": "small_cnn", "start": "scratch"}
    defense = DVERGE(DVERGEConfig.model_validate(scratch), TASK)
    (phase,) = defense.phases(defense.build())
    assert (phase.name, phase.depends_on) == ("dverge", ())


def test_phases_are_pure() -> None:
    defense = DVERGE(DVERGEConfig.model_validate({"backbone": "small_cnn"}), TASK)
    model, before = defense.build(), torch.get_rng_state()
    assert [p.name for p in defense.phases(model)] == [p.name for p in defense.phases(model)]
    assert torch.equal(before, torch.get_rng_state())


def test_groups_are_the_members() -> None:
    phase = make()
    groups = phase.groups()
    assert list(groups) == ["member/1", "member/2", "member/3"]
    for group, member in zip(groups.values(), phase.members, strict=True):
        assert [id(p) for p in group] == [id(p) for p in member.parameters()]


def test_unknown_layers_are_refused_when_it_is_built() -> None:
    config = DVERGEConfig.model_validate({"backbone": "small_cnn", "layers": ["conv1", "conv9"]})
    with pytest.raises(ValueError, match=r"has no layer 'conv9'; did you mean conv"):
        DVERGE(config, TASK).build()


def test_a_network_that_overwrites_its_layers_is_built() -> None:
    config = DVERGEConfig.model_validate({"backbone": "resnet10t", "layers": ["layer1.0.bn1"]})
    model = DVERGE(config, TASK.model_copy(update={"shape": (3, 32, 32)})).build()
    assert len(model.members) == 3


def test_the_mean_probability_is_served() -> None:
    model, x = make().module.eval(), images().x
    assert torch.equal(model(x), log_mean([member(x) for member in model.members]))


# ---------------------------------------------------------------- the layer


def test_the_layer_is_drawn_for_an_epoch() -> None:
    phase = make(backbone=RESNET)
    ctx, drawn = Context(phase), []
    for epoch in range(60):
        ctx.epoch, ctx.index = epoch, 0
        phase.before_epoch(ctx)
        first = phase.layer
        phase.before_epoch(ctx)  # as before a resume
        assert phase.layer == first
        drawn.append(first)
    assert set(drawn) <= set(phase.layers)
    assert len(set(drawn)) > 15
    layer = phase.layer
    phase.rounds(images(), ctx)
    assert phase.layer == layer


def test_the_layer_may_be_drawn_for_a_batch() -> None:
    phase = make(draw="batch", backbone=RESNET, steps=1, members=2)
    ctx, logged = Context(phase), []
    for index in range(8):
        ctx.index = index
        logged.append(int(phase.rounds(images(), ctx)["layer"]))
        assert phase.layers[logged[-1] - 1] == phase.layer
    assert len(set(logged)) > 3


def test_one_layer_is_always_drawn() -> None:
    phase = make(layers=["conv2"])
    phase.before_epoch(Context(phase))
    assert phase.layer == "conv2"


# ---------------------------------------------------------------- one batch


@pytest.mark.parametrize("batchnorm", ["train", "eval"])
@pytest.mark.parametrize("attack", [None, PGD])
def test_loss_is_the_formula(batchnorm: str, attack: object) -> None:
    phase, batch = make(batchnorm=batchnorm, attack=attack, coefficient=0.5), images()
    ctx = Context(phase, lr=0.0)
    distilled, _ = phase.distilled(batch.x, ctx.batch("target").x)
    own = phase.own_examples(batch, ctx)
    values = phase.rounds(batch, ctx)
    for i, member in enumerate(phase.members):
        expected = sum(F.cross_entropy(member(distilled[j]), batch.y) for j in range(3) if j != i)
        if attack is not None:
            expected = 0.5 * expected + F.cross_entropy(member(own[i]), batch.y)
        torch.testing.assert_close(values[f"loss/{i + 1}"], expected)
    assert float(values["distance/last"]) < float(values["distance/first"])
    assert ctx.updated == [("member/1",), ("member/2",), ("member/3",)]
    crossed = {name for name in values if name.startswith("cross_entropy/")}
    assert crossed == {f"cross_entropy/{i}-{j}" for i in "123" for j in "123" if i != j}


def test_mean_divides_by_the_other_members() -> None:
    values = {}
    for reduction in ("sum", "mean"):
        phase = make(reduction=reduction)
        values[reduction] = phase.rounds(images(), Context(phase, lr=0.0))["loss/1"]
    torch.testing.assert_close(values["sum"], 2 * values["mean"])


def test_each_member_sees_the_others_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    phase = make()
    made = [torch.full((8, 1, 8, 8), k / 10) for k in range(3)]
    seen: list[list[Tensor]] = [[], [], []]
    spies = [Spy(member, calls) for member, calls in zip(phase.members, seen, strict=True)]
    monkeypatch.setattr(DVERGEPhase, "members", property(lambda self: spies))
    monkeypatch.setattr(
        phase, "distilled", lambda source, target: (made, [_Distance(), _Distance()])
    )
    phase.rounds(images(), Context(phase, lr=0.0))
    for i, calls in enumerate(seen):
        others = [made[j] for j in range(3) if j != i]
        assert len(calls) == 2
        assert all(torch.equal(a, b) for a, b in zip(calls, others, strict=True))


class _Distance:
    first = last = torch.zeros(())


def test_only_the_member_in_turn_moves() -> None:
    phase = make(attack=PGD)
    before = states(phase)
    ctx = Context(phase)
    moved: list[list[int]] = []
    minimise: Callable[..., None] = ctx.minimise

    def watched(loss: Tensor, *groups: str) -> None:
        minimise(loss, *groups)
        now = states(phase)
        moved.append([i for i in range(3) if any(map(_differs, before[i], now[i]))])
        for i, member in enumerate(phase.members):  # the others get no gradient at all
            has = [p.grad is not None for p in member.parameters()]
            assert all(has) if groups == (f"member/{i + 1}",) else not any(has)

    ctx.minimise = watched  # type: ignore[method-assign]  # the one step that is watched
    phase.rounds(images(), ctx)
    assert moved == [[0], [0, 1], [0, 1, 2]]


def _differs(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def test_the_order_of_the_members_changes_nothing() -> None:
    """All images are made beforehand: the round is one simultaneous step."""
    phase, batch = make(backbone=RESNET, batchnorm="eval"), images()
    phase.module.eval()
    ctx = Context(phase)
    distilled, _ = phase.distilled(batch.x, ctx.batch("target").x)
    together = sum(
        F.cross_entropy(member(distilled[j]), batch.y)
        for i, member in enumerate(phase.members)
        for j in range(3)
        if j != i
    )
    parameters = list(phase.module.parameters())
    gradients = torch.autograd.grad(together, parameters)
    expected = [(p - 0.1 * g).detach() for p, g in zip(parameters, gradients, strict=True)]
    phase.rounds(batch, ctx)
    for found, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, atol=1e-6, rtol=1e-5)


def test_without_a_radius_the_sources_are_learnt() -> None:
    phase, batch = make(eps=0.0), images()
    values = phase.rounds(batch, Context(phase, lr=0.0))
    for i, member in enumerate(phase.members, start=1):
        expected = 2 * F.cross_entropy(member(batch.x), batch.y)
        torch.testing.assert_close(values[f"loss/{i}"], expected)


@pytest.mark.parametrize(("batchnorm", "clean"), [("train", True), ("eval", False)])
def test_running_statistics_see_what_the_mode_lets_them(batchnorm: str, clean: bool) -> None:
    phase = make(backbone=RESNET, batchnorm=batchnorm)
    phase.module.train()
    counter = phase.members[0].backbone.bn1
    phase.rounds(images(), Context(phase))
    assert all(part.training for part in phase.module.modules())
    # two images of the others; making one's own takes 3 steps of z and of the targets
    assert int(counter.num_batches_tracked) == 2 + (6 if clean else 0)


def test_a_twin_is_left_to_the_regularizers() -> None:
    plain, twin = (make(attack=PGD) for _ in range(2))
    batch = images()
    plain.rounds(batch, Context(plain))
    twin.rounds(replace(batch, adv=images(seed=5).x), Context(twin))
    for a, b in zip(states(plain), states(twin), strict=True):
        assert all(map(torch.equal, a, b))


class Pull(Regularizer):
    """A term on the ensemble's twin, as iGAT's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ensemble = [model]

    def terms(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        assert batch.adv is not None
        return {"pull": F.cross_entropy(self.ensemble[0](batch.adv), batch.y)}


def test_a_regularizer_takes_one_joint_step_more() -> None:
    phase = make()
    phase = replace(phase, regularizers=(Pull(phase.module),))
    phase.layer = phase.layers[0]
    ctx = Context(phase)
    values = phase.step(replace(images(), adv=images(seed=5).x), ctx)
    assert ctx.updated == [("member/1",), ("member/2",), ("member/3",), ()]
    assert "pull" in values


def test_members_learn_the_others_weaknesses() -> None:
    phase = make(layers=["conv2"], batchnorm="eval", members=2)
    x, y = images(20).x / 4, torch.arange(20) % 2
    x[y == 1] += 0.5  # dark and bright images
    ctx = Context(phase, lr=0.05)
    phase.layer = "conv2"
    ctx.batch = lambda stream: Batch(x.flip(0), y.flip(0))  # type: ignore[method-assign]
    losses = [float(phase.rounds(Batch(x, y), ctx)["loss/1"].detach()) for _ in range(25)]
    assert losses[-1] < losses[0] / 4
    assert bool((phase.module(x).argmax(1) == y).all())
