"""MoL as whole runs: one set of experts for all readings, kills, masks, a third party's parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Generator, Tensor, nn

import phalanx
from phalanx.api import (
    Attack,
    AttackConfig,
    ComponentSpec,
    Kind,
    Linf,
    Perturbation,
    PerturbationConfig,
    PhalanxWarning,
)
from phalanx.registry import default_registry
from phalanx.training.run import train
from phalanx_mol.model import MoLModel

LINF = {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}}


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---------------------------------------------------------------- whole runs


def small(**over: Any) -> dict[str, Any]:
    experts = [{"name": "clean"}, LINF]
    return {
        "seed": 1,
        "data": {"use": "digits", "limit": 40},
        "defense": {
            "use": "mol",
            "params": {
                "experts": experts,
                "backbone": {"use": "small_cnn", "params": {"width": 2}},
                **over.pop("params", {}),
            },
        },
        "training": {"epochs": 1, "batch_size": 20, **over.pop("training", {})},
        **over,
    }


def test_one_set_of_experts_serves_every_reading(tmp_path: Any) -> None:
    later = {"phases": {"aggregator": {"epochs": 0}}}
    train(small(training=later), out=tmp_path / "experts")
    for objective in ("literal", "ensemble"):
        params = {"objective": objective}
        whole = train(small(params=params), out=tmp_path / objective)
        only = small(
            params=params,
            training={"phases": {"expert/*": {"epochs": 0}}},
            init={"from": str(tmp_path / "experts")},
        )
        resumed = train(only, out=tmp_path / f"{objective}-only")
        assert [line["phase"] for line in resumed.metrics] == ["aggregator"]
        found = resumed.model.state_dict()
        assert all(found[k].equal(v) for k, v in whole.model.state_dict().items())


def test_experts_go_into_a_system_with_another_aggregator(tmp_path: Any) -> None:
    first = train(small(), out=tmp_path / "first")
    later = {"phases": {"*": {"epochs": 0}}}
    other = small(
        params={"aggregator_width": 3}, training=later, init={"from": str(tmp_path / "first")}
    )
    second = train(other, out=tmp_path / "second")
    pairs = zip(first.model.members, second.model.members, strict=True)
    for mine, theirs in pairs:
        assert all(a.equal(b) for a, b in zip(copied(mine).values(), copied(theirs).values()))


class Killed(BaseException):
    """Ends a training as abruptly as a process can from inside."""


class KillAfter:
    """Ends a training after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        pass

    def batch_finished(self, phase: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def epoch_finished(self, metrics: Any) -> None:
        pass


@pytest.mark.filterwarnings("ignore:phase:phalanx.api.PhalanxWarning")  # ADMM of one epoch
def test_killed_and_resumed_it_ends_in_the_same_weights(tmp_path: Any) -> None:
    """With batch normalisation, masks in the last phase, and a momentum to remember."""
    config = small(
        params={
            "backbone": {"use": "resnet18_cifar", "params": {"width": 2}},
            "pruner": {"use": "irregular", "params": {"rate": 2, "include_heads": True}},
        },
        training={"batch_size": 20},
    )
    whole = train(config, out=tmp_path / "whole")
    resumed = None
    while resumed is None:
        try:
            resumed = train(
                config,
                out=tmp_path / "parts",
                resume=True,
                checkpoint_seconds=0,
                progress=KillAfter(3),
            )
        except Killed:
            continue
    found = resumed.model.state_dict()
    assert all(found[name].equal(value) for name, value in whole.model.state_dict().items())


def test_pruned_heads_stay_pruned(tmp_path: Any) -> None:
    pruner = {"use": "irregular", "params": {"rate": 2, "include_heads": True, "rho": 100.0}}
    with pytest.warns(PhalanxWarning, match="ADMM"):
        run = train(small(params={"pruner": pruner}), out=tmp_path / "run")
    model = run.model
    assert isinstance(model, MoLModel)
    for member in model.members:
        for part in member.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                kept = int((part.weight != 0).sum())
                assert kept == round(part.weight.numel() / 2)
    assert all(bool((p != 0).all()) for p in model.aggregator.parameters() if p.ndim > 1)


# ---------------------------------------------------------------- a third party's


class LightConfig(PerturbationConfig):
    """Nothing to set."""


class Light(Perturbation[LightConfig]):
    """Halfway to white."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        return (1 + x) / 2


class NoiseConfig(AttackConfig):
    """Nothing to set."""


class Noise(Attack[NoiseConfig]):
    """Random signs; counts its calls."""

    supports = (Linf,)
    calls: ClassVar[list[int]] = []

    def __call__(
        self, model: Any, x: Tensor, y: Any, *, generator: Generator, observe: Any = None
    ) -> Tensor:
        self.calls.append(len(x))
        signs = torch.rand(x.shape, generator=generator).round() * 2 - 1
        return (x + 0.1 * signs).clamp(0, 1)


@pytest.fixture
def third_party() -> Iterator[None]:
    default_registry.cache_clear()
    for kind, name in ((Kind.PERTURBATION, "light"), (Kind.ATTACK, "noise")):
        spec = ComponentSpec(
            kind=kind,
            name=name,
            factory=f"{__name__}:{name.title()}",
            config=f"{__name__}:{name.title()}Config",
            summary="A third party's.",
        )
        phalanx.register(spec)
    Noise.calls.clear()
    yield
    default_registry.cache_clear()


@pytest.mark.usefixtures("third_party")
def test_a_third_party_takes_an_experts_place_by_name(tmp_path: Any) -> None:
    experts = [
        {"name": "noise", "attack": {"use": "noise", "params": {"threat": "linf:0.1"}}},
        {"name": "light", "perturbation": "light"},
    ]
    run = train(small(params={"experts": experts}), out=tmp_path / "run")
    assert [line["phase"] for line in run.metrics] == ["expert/noise", "expert/light", "aggregator"]
    assert Noise.calls == [20] * 4  # two batches of its expert, two of the aggregator
