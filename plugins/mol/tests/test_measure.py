"""The weights that inputs of each type get, against a plain computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Generator, Tensor

from phalanx.api import Perturbing, Task, attacking, generator
from phalanx.randomness import seeded
from phalanx_mol.config import MoLConfig
from phalanx_mol.defense import MoL
from phalanx_mol.measure import Routing, inputs, matched, routing, spread
from phalanx_mol.model import MoLModel

TASK = Task(name="toy", shape=(3, 8, 8), classes=4, train_size=8, mean=(0.4,) * 3, std=(0.2,) * 3)
CONFIG = MoLConfig.model_validate(
    {
        "experts": [
            {"name": "clean"},
            {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1"}}},
            {"name": "rotation", "perturbation": "rotation"},
        ],
        "backbone": {"use": "small_cnn", "params": {"width": 2}},
    }
)
CLEAN, LINF, ROTATION = (Perturbing.of(expert) for expert in CONFIG.experts)


def model() -> MoLModel:
    with seeded(0, "build"):
        return MoL(CONFIG, TASK).build().eval()


def images(n: int = 7) -> tuple[Tensor, Tensor]:
    g = generator(0, "images")
    return torch.rand(n, *TASK.shape, generator=g), torch.randint(4, (n,), generator=g)


def test_of_clean_images_they_are_the_aggregators() -> None:
    system, (x, y) = model(), images()
    row = routing(system, CLEAN, x, y, batch=3)
    with torch.no_grad():
        a = system.aggregator(x).softmax(1)
    assert (row.type, row.images) == ("clean", 7)
    assert (
        list(row.mean) == list(row.deviation) == list(row.largest) == ["clean", "linf", "rotation"]
    )
    assert list(row.mean.values()) == pytest.approx(a.mean(0).tolist(), abs=1e-6)
    assert list(row.deviation.values()) == pytest.approx(a.std(0).tolist(), abs=1e-6)
    first = [(a.argmax(1) == j).float().mean() for j in range(3)]
    assert list(row.largest.values()) == pytest.approx([float(share) for share in first])
    assert sum(row.mean.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("type_", [LINF, ROTATION], ids=lambda one: one.name)
def test_inputs_are_of_their_type_and_keyed(type_: Perturbing) -> None:
    system, (x, y) = model(), images()
    modes = [part.training for part in system.modules()]
    made = inputs(system, type_, x, y, seed=1)
    assert torch.equal(made, inputs(system, type_, x, y, seed=1))
    assert not torch.equal(made, x)
    assert bool(((made >= 0) & (made <= 1)).all())
    if type_ is LINF:
        assert float((made - x).abs().max()) <= 0.1 + 1e-6
    else:
        assert not torch.equal(made, inputs(system, type_, x, y, seed=1, first_row=3))
    assert modes == [part.training for part in system.modules()]
    assert all(p.requires_grad for p in system.parameters())


class Spy:
    """An attack that notes whom it is on."""

    def __init__(self) -> None:
        self.targets: list[Any] = []

    def __call__(self, target: Any, x: Tensor, y: Tensor, *, generator: Generator) -> Tensor:
        self.targets.append(target)
        assert not target.training
        assert not any(p.requires_grad for p in target.parameters())
        return 1 - x


def test_attacks_are_on_the_whole_system() -> None:
    system, (x, y), spy = model().train(), images(), Spy()
    made = inputs(system, Perturbing("spied", attack=cast(Any, spy)), x, y, seed=0)
    assert torch.equal(made, 1 - x)
    (target,) = spy.targets
    assert target is system


def test_misclassified_rows_take_all_their_steps() -> None:
    system, (x, _) = model(), images()
    with torch.no_grad():
        y = (system(x).argmax(1) + 1) % 4  # fooled before the attack begins
    asked: list[int] = []
    hook = system.aggregator.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    made = inputs(system, LINF, x, y, seed=0)
    hook.remove()
    assert asked == [len(x)] * LINF.attack.config.steps
    draws = generator(0, "routing", "linf", 0)
    with attacking(system):
        direct = LINF.attack(system, x, y, generator=draws)
    assert torch.equal(made, direct)


def row(name: str, *mean: float, **over: Any) -> Routing:
    weights = dict(zip(("a", "b"), mean, strict=True))
    return Routing(name, weights, weights, {"a": 0.75, "b": 0.25, **over}, 4)


def test_summaries() -> None:
    rows = [row("a", 0.6, 0.4), row("b", 0.5, 0.5)]
    assert spread(rows) == pytest.approx(0.1)
    assert matched(rows) == pytest.approx(0.5)
    assert spread([rows[0], replace(rows[0], type="b")]) == 0
