"""The phases, and what an update of the second step touches, on small networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from phalanx.api import (
    Adversarial,
    Batch,
    ConfigError,
    CrossEntropyPhase,
    Natural,
    Phase,
    PhaseContext,
    Task,
    generator,
)
from phalanx.randomness import seeded
from phalanx.runfile import read_run
from phalanx.training.plan import planned
from phalanx_mol.config import MoLConfig
from phalanx_mol.defense import AggregatorPhase, ExpertPhase, MoL

TASK = Task(name="toy", shape=(3, 16, 16), classes=4, train_size=8, mean=(0.4,) * 3, std=(0.2,) * 3)
LINF = {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}}
EXPERTS = [{"name": "clean"}, LINF, {"name": "fog", "perturbation": "fog"}]
RESNET = {"use": "resnet18_cifar", "params": {"width": 4}}


def images(seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(4, *TASK.shape, generator=g), torch.randint(4, (4,), generator=g))


class Context(PhaseContext):
    """The smallest thing that the phase can run in: one optimizer, SGD with its memory."""

    def __init__(self, phase: Phase, *, lr: float = 0.1) -> None:
        self.phase = phase
        self.epoch, self.index, self.batches = 0, 0, 2
        self.device = torch.device("cpu")
        self.losses: list[float] = []
        self.moved: list[list[str]] = []
        self.optimizer = torch.optim.SGD(
            phase.groups()["all"], lr=lr, momentum=0.9, weight_decay=5e-4
        )

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.epoch, self.index, *purpose)

    def batch(self, stream: str) -> Batch:
        raise AssertionError

    def minimise(self, loss: Tensor, *groups: str) -> None:
        before = copied(self.phase.module)
        self.phase.module.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))
        self.moved.append(changed(self.phase.module, before))


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, value in module.state_dict().items() if not value.equal(before[name])]


def defense(**settings: Any) -> MoL:
    given = {"experts": EXPERTS, "backbone": RESNET, **settings}
    return MoL(MoLConfig.model_validate(given), TASK)


def aggregator(**settings: Any) -> AggregatorPhase:
    """The last phase, begun, always from the same initial weights."""
    made = defense(**settings)
    with seeded(0, "build"):
        model = made.build()
    phase = made.phases(model)[-1]
    assert isinstance(phase, AggregatorPhase)
    model.eval()
    phase.module.train()
    phase.begin(Context(phase))
    return phase


# ---------------------------------------------------------------- phases


def test_phases_are_the_papers() -> None:
    made = defense(experts="comprehensive")
    model = made.build()
    *experts, last = made.phases(model)
    names = ["clean", "l1", "l2", "linf", "fog", "snow", "rotation"]
    assert [phase.name for phase in experts] == [f"expert/{name}" for name in names]
    kinds = [[type(t) for t in phase.transforms] for phase in experts]
    assert kinds == [[], *([[Adversarial]] * 3), *([[Natural]] * 3)]
    for phase, member in zip(experts, model.members, strict=True):
        assert type(phase) is ExpertPhase
        assert isinstance(phase, CrossEntropyPhase)
        assert phase.module is member
        assert (phase.epochs, phase.depends_on) == (200, ())
    assert (last.name, last.module, last.epochs) == ("aggregator", model, 50)
    assert last.depends_on == tuple(phase.name for phase in experts)
    for phase in (*experts, last):
        optimizer = phase.optimizer
        assert (optimizer.name, optimizer.lr, phase.batch_size) == ("sgd", 0.01, 128)
        assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
        factors = [phase.schedule(p) for p in (0, 0.5, 1)]
        assert factors == pytest.approx([1, 0.5, 0])


def test_with_a_pruner_each_expert_is_retrained() -> None:
    made = defense(pruner={"use": "block", "params": {"rate": 8}})
    model = made.build()
    phases = made.phases(model)
    assert [phase.name for phase in phases] == [
        "expert/clean",
        "expert/clean/retrain",
        "expert/linf",
        "expert/linf/retrain",
        "expert/fog",
        "expert/fog/retrain",
        "aggregator",
    ]
    assert phases[-1].depends_on == tuple(phase.name for phase in phases[1:-1:2])
    assert [len(phase.regularizers) for phase in phases] == [1] * 7
    planned(phases, read_run({"defense": {"use": "mol"}}).training, model)


def test_phases_are_pure() -> None:
    made = defense()
    model, before = made.build(), torch.get_rng_state()
    assert [p.name for p in made.phases(model)] == [p.name for p in made.phases(model)]
    assert torch.equal(before, torch.get_rng_state())


def test_experts_begin_alike_whatever_weighs_them() -> None:
    found = []
    for settings in ({}, {"aggregator_width": 8}, {"experts": [*EXPERTS, {**LINF, "name": "b"}]}):
        with seeded(0, "build"):
            found.append([copied(one) for one in defense(**settings).build().members[:3]])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert all(a[name].equal(b[name]) for name in a)


def test_nothing_to_prune_is_refused() -> None:
    pruner = {"use": "block", "params": {"rate": 2, "skip": ["*"]}}
    with pytest.raises(
        ConfigError, match="pruner: all 20 convolutions of Member are left out: let it prune one"
    ) as caught:
        defense(pruner=pruner).build()
    assert caught.value.exit_code == 2


def test_adversarial_training_is_set_in_the_experts() -> None:
    made = defense()
    model = made.build()
    training = read_run({"defense": {"use": "mol"}, "training": {"adversarial": {}}}).training
    message = (
        "training.adversarial: every phase of this defense crafts its own examples; leave it out "
        "and set the attack in defense.params"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        planned(made.phases(model), training, model)
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- one batch


@pytest.mark.parametrize("objective", ["literal", "per-sample", "ensemble"])
@pytest.mark.parametrize("attack_target", ["system", "expert"])
def test_only_the_aggregator_and_the_winners_heads_move(objective: str, attack_target: str) -> None:
    phase = aggregator(objective=objective, attack_target=attack_target)
    model, before, ctx = phase.system, copied(phase.module), Context(phase)
    for index in range(2):  # momentum has something to remember in the second batch
        ctx.index = index
        values = phase.rounds(images(index), ctx)
        for number, name in enumerate(("clean", "linf", "fog")):
            moved = ctx.moved[3 * index + number]
            heads = {key.split(".")[1] for key in moved if key.startswith("experts.")}
            if objective == "ensemble":
                assert heads == {"0", "1", "2"}
                assert not any("winner" in key for key in values)
            else:
                won = [values[f"log/winner/{name}/{expert}"] for expert in model.names]
                assert heads == {str(j) for j, share in enumerate(won) if share > 0}
                assert sum(won) == pytest.approx(1)
                if objective == "literal":
                    assert len(heads) == 1
            assert all(".fc." in key for key in moved if key.startswith("experts."))
            assert any(key.startswith("aggregator.") for key in moved)
    touched = changed(phase.module, before)
    assert not [key for key in touched if key.startswith("experts.") and ".fc." not in key]
    assert any("aggregator.backbone.bn1.running_mean" in key for key in touched)


def test_experts_sleep_and_the_aggregator_is_awake() -> None:
    phase = aggregator()
    model = phase.system
    for _ in range(2):  # also as before a resume
        phase.begin(Context(phase))
    phase.rounds(images(), Context(phase))
    assert not any(part.training for part in model.experts.modules())
    assert all(part.training for part in model.aggregator.modules())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {f"aggregator.{name}" for name, _ in model.aggregator.named_parameters()}
    heads = {f"experts.{j}.backbone.fc.{kind}" for j in range(3) for kind in ("weight", "bias")}
    assert trainable == own | heads
    assert {id(p) for p in phase.groups()["all"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_inputs_are_made_on_the_system_as_it_has_become() -> None:
    phase = aggregator(experts=[LINF, {**LINF, "name": "again"}])
    ctx, seen = Context(phase, lr=1.0), []
    attack = phase.types[0].attack
    assert attack is not None

    def spy(target: Any, x: Tensor, y: Tensor, **rest: Any) -> Tensor:
        assert target is phase.system
        assert not any(p.requires_grad for p in phase.module.parameters())
        assert not any(part.training for part in phase.module.modules())
        with torch.no_grad():
            seen.append(target(x))
        return attack(target, x, y, **rest)

    for perturbing in phase.types:
        object.__setattr__(perturbing, "attack", spy)
    phase.rounds(images(), ctx)
    assert not torch.equal(*seen)


def test_the_types_own_expert_may_be_attacked() -> None:
    phase = aggregator(attack_target="expert")
    asked = []
    handles = [
        member.register_forward_pre_hook(lambda part, x, j=j: asked.append((j, x[0].requires_grad)))
        for j, member in enumerate(phase.system.members)
    ]
    phase.rounds(images(), Context(phase))
    for handle in handles:
        handle.remove()
    assert [j for j, attacked in asked if attacked] == [1, 1]  # two steps on linf's own


def test_the_losses_are_those_of_the_readings() -> None:
    batch = images()
    for objective in ("literal", "per-sample", "ensemble"):
        phase = aggregator(objective=objective, experts=[EXPERTS[0], EXPERTS[2]])
        model = phase.system
        with torch.no_grad():
            a = model.aggregator(batch.x).softmax(1)
            logits = [member(batch.x) for member in model.members]
            table = torch.stack(
                [
                    F.cross_entropy(a[:, j, None] * logits[j], batch.y, reduction="none")
                    for j in range(2)
                ]
            )
            system = F.cross_entropy(sum(a[:, j, None] * logits[j] for j in range(2)), batch.y)
        ctx = Context(phase)
        phase.rounds(batch, ctx)
        expected = {
            "literal": table.mean(1).max(),
            "per-sample": table.max(0).values.mean(),
            "ensemble": system,
        }[objective]
        assert ctx.losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_what_is_logged() -> None:
    phase = aggregator()
    values = phase.rounds(images(), Context(phase))
    types = ("clean", "linf", "fog")
    assert set(values) == {
        *(f"loss/{i}" for i in types),
        *(f"log/accuracy/{i}" for i in types),
        *(f"log/weight/{i}/{j}" for i in types for j in types),
        *(f"log/winner/{i}/{j}" for i in types for j in types),
    }
    for i in types:
        assert sum(values[f"log/weight/{i}/{j}"] for j in types) == pytest.approx(1, abs=1e-5)


def test_the_aggregator_learns_whom_to_ask() -> None:
    """Two experts, each right on one type only; the system's loss teaches to tell the types."""
    made = defense(
        experts=[{"name": "clean"}, {"name": "fog", "perturbation": "fog"}],
        backbone={"use": "small_cnn", "params": {"width": 4}},
        objective="ensemble",
    )
    with seeded(0, "build"):
        model = made.build()
    phase = made.phases(model)[-1]
    assert isinstance(phase, AggregatorPhase)
    model.eval()
    phase.module.train()
    phase.begin(Context(phase))
    x, y = images().x * 0.3, images().y  # fog makes them lighter than any of these
    foggy = phase.types[1](model, x, y, generator=generator(0))
    for number, member in enumerate(model.members):
        right = foggy if number else x
        member.forward = Fixed(right.mean() > 0.4, y)  # type: ignore[method-assign]
    ctx = Context(phase, lr=0.1)
    for _ in range(40):
        phase.rounds(Batch(x, y), ctx)
    model.eval()
    with torch.no_grad():
        assert float(model.weights(x)[:, 0].mean()) > 0.7
        assert float(model.weights(foggy)[:, 1].mean()) > 0.7


class Fixed:
    """An expert that knows the answers on light images or on dark ones, and is wrong elsewhere."""

    def __init__(self, light: Tensor, y: Tensor) -> None:
        self.light, self.y = bool(light), y

    def __call__(self, x: Tensor) -> Tensor:
        right = bool(x.mean() > 0.4) == self.light
        return 5.0 * F.one_hot(self.y if right else (self.y + 1) % 4, 4).float()
