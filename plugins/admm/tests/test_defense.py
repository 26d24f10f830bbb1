"""`pruned` over other defenses: phases, exact shares, resume, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phalanx
from phalanx.api import ConfigError, Phase, RoundPhase, Task, convolutions
from phalanx.config import TrainingConfig
from phalanx.nn import Member
from phalanx.pruner import Pruner
from phalanx.randomness import seeded
from phalanx.training.masked import Masked
from phalanx.training.plan import planned
from phalanx_admm.config import PrunedConfig
from phalanx_admm.defense import Pruned
from phalanx_admm.projections import block_norms, kept
from phalanx_admm.pruner import Block, Filter, Irregular

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
SMALL = {"use": "small_cnn", "params": {"width": 4}}
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
RESIDUAL = {"use": "resnet18_cifar", "params": {"width": 2}}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ADMM ends with weights:phalanx.errors.PhalanxWarning"
)


def make(base: Any, **params: Any) -> Pruned:
    config = PrunedConfig.model_validate({"base": base, **params})
    return Pruned(config, TASK)


def built(defense: Pruned) -> tuple[nn.Module, list[Phase]]:
    with seeded(0, "build"):
        model = defense.build()
    return model, planned(defense.phases(model), TrainingConfig(), model)


def run_file(base: Any, pruner: Any, **training: Any) -> dict[str, Any]:
    return {
        "seed": 1,
        "data": {"use": "digits", "limit": 48},
        "defense": {"use": "pruned", "params": {"base": base, "pruner": pruner}},
        "training": {"epochs": 1, "batch_size": 16, **training},
    }


# ---------------------------------------------------------------- phases


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"use": "none", "params": {"backbone": SMALL, "members": 2}}, ["fit"]),
        (
            {"use": "pgd-at", "params": {"backbone": SMALL, "attack": PGD}},
            ["fit"],
        ),
        ({"use": "pdd", "params": {"backbone": SMALL}}, ["pdd"]),
        ({"use": "adp", "params": {"backbone": SMALL}}, ["adp"]),
        ({"use": "rls", "params": {"backbone": SMALL}}, ["rls"]),
        (
            {"use": "clm", "params": {"backbone": SMALL, "members": 2}},
            ["ulm/1", "ulm/2", "clm"],
        ),
        (
            {"use": "dverge", "params": {"backbone": SMALL, "members": 2}},
            ["baseline/1", "baseline/2", "dverge"],
        ),
    ],
    ids=lambda value: value["use"] if isinstance(value, dict) else "",
)
def test_over_any_base(base: dict[str, Any], expected: list[str]) -> None:
    if base["use"] not in ("none", "pgd-at"):
        pytest.importorskip(f"phalanx_{base['use']}")
    _, phases = built(make(base))
    names = [phase.name for phase in phases]
    assert names == [one for name in expected for one in (name, f"{name}/retrain")]
    for pruned, retrained in zip(phases[::2], phases[1::2], strict=True):
        assert isinstance(pruned.regularizers[-1], Block)
        assert isinstance(retrained.regularizers[-1], Masked)
        assert retrained.depends_on == (pruned.name,)
        assert (retrained.epochs, retrained.optimizer) == (pruned.epochs, pruned.optimizer)
        assert (retrained.module, retrained.transforms) == (pruned.module, pruned.transforms)


def test_chosen_phases() -> None:
    pytest.importorskip("phalanx_clm")
    base = {"use": "clm", "params": {"backbone": SMALL, "members": 2}}
    _, phases = built(make(base, phases="ulm/*"))
    assert [phase.name for phase in phases] == [
        "ulm/1",
        "ulm/1/retrain",
        "ulm/2",
        "ulm/2/retrain",
        "clm",
    ]
    assert isinstance(phases[-1].regularizers[-1], Masked)  # what is pruned stays pruned
    assert phases[-1].depends_on == ("ulm/1/retrain", "ulm/2/retrain")


def test_the_model_is_the_bases_own() -> None:
    base = {"use": "none", "params": {"backbone": SMALL, "members": 2}}
    model, _ = built(make(base))
    with seeded(0, "build"):
        own = make(base).base.build()
    assert type(model) is type(own)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), own.state_dict().values(), strict=True)
    )


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("kind", "rate"), [("irregular", 8.0), ("block", 4.0), ("filter", 2.0)], ids=str
)
def test_shares_are_exact_and_the_retraining_keeps_them(
    tmp_path: Path, kind: str, rate: float
) -> None:
    pruner = {"use": kind, "params": {"rate": rate, "rates": {"conv1": 1}}}
    base = {"use": "none", "params": {"backbone": RESIDUAL}}
    run = phalanx.train(run_file(base, pruner), out=tmp_path / "run")
    assert [line["phase"] for line in run.metrics] == ["fit", "fit/retrain"]
    assert {"admm/penalty", "log/admm/gap"} <= run.metrics[0].keys()
    assert not {"admm/penalty", "log/admm/gap"} & run.metrics[1].keys()
    before = phalanx_slice(tmp_path / "run" / "phases", 1)
    for name, layer in convolutions(run.model).items():
        weight = layer.weight.detach()
        assert torch.equal(weight == 0, before[f"{name}.weight"] == 0)
        if name.endswith("backbone.conv1"):
            assert bool((weight != 0).all())
        elif kind == "irregular":
            assert int((weight != 0).sum()) == kept(weight.numel(), rate)
        elif kind == "filter":
            assert int(weight.flatten(1).any(1).sum()) == kept(len(weight), rate)
        else:
            norms = block_norms(weight, block=(4, 4))
            assert int((norms != 0).sum()) == kept(norms.numel(), rate)


def phalanx_slice(folder: Path, number: int) -> Mapping[str, Tensor]:
    """The weights that a finished phase left."""
    from phalanx.training.files import read_tensors

    (file,) = folder.glob(f"{number:02d}-*.safetensors")
    return read_tensors(file)[0]


def test_pruned_filters_go_and_the_outputs_stay(tmp_path: Path) -> None:
    base = {"use": "none", "params": {"backbone": RESIDUAL}}
    pruner = {"use": "filter", "params": {"rate": 2}}
    run = phalanx.train(run_file(base, pruner), out=tmp_path / "run")
    silent = 0
    model = run.model
    for name, layer in convolutions(model).items():
        zero = (layer.weight == 0).flatten(1).all(1)
        path, _, leaf = name.rpartition(".")
        after = {"conv1": "bn1", "conv2": "bn2", "0": "1"}[leaf]
        norm = model.get_submodule(f"{path}.{after}")
        assert torch.equal(zero, (norm.weight == 0) & (norm.bias == 0))
        silent += int(zero.sum())
    assert silent > 0
    config = run.config.defense.params.pruner
    small = config.create().compact(model)
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=0)
    count = [sum(p.numel() for p in one.parameters()) for one in (small, model)]
    assert count[0] < count[1]


class _Killed(BaseException):
    """Ends a training as abruptly as a process can from inside."""


class _KillAfter:
    def __init__(self, batches: int) -> None:
        self.left = batches

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        pass

    def batch_finished(self, phase: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Killed

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        pass


def test_killed_and_resumed_on_a_network_with_normalisation(tmp_path: Path) -> None:
    base = {"use": "none", "params": {"backbone": RESIDUAL}}
    config = run_file(base, {"use": "filter", "params": {"rate": 2}}, epochs=2, ema=0.9)
    whole = phalanx.train(config, out=tmp_path / "whole")
    resumed, kills = None, 0
    while resumed is None:
        try:
            resumed = phalanx.train(
                config,
                out=tmp_path / "parts",
                resume=True,
                checkpoint_seconds=0,
                progress=_KillAfter(4),
            )
        except _Killed:
            kills += 1
    assert kills >= 3
    assert resumed.sha256 == whole.sha256


def test_a_dense_run_is_pruned_at_one_shot(tmp_path: Path) -> None:
    base = {"use": "none", "params": {"backbone": SMALL}}
    dense = phalanx.train({**run_file(base, "irregular"), "defense": base}, out=tmp_path / "dense")
    config = {
        **run_file(base, {"use": "irregular", "params": {"rate": 4}}),
        "init": {"from": str(dense.path)},
        "training": {"epochs": 0, "batch_size": 16},
    }
    pruned = phalanx.train(config, out=tmp_path / "pruned")
    pruner: Pruner[Any] = pruned.config.defense.params.pruner.create()
    theirs = dense.model.state_dict()
    for name, value in pruned.model.state_dict().items():
        own = theirs[name]
        if "conv" in name and name.endswith("weight"):
            own = pruner.project(name.removesuffix(".weight"), own)
        assert torch.equal(value, own)


# ---------------------------------------------------------------- what is refused


def problems(base: Any, **params: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make(base, **params).build()
    return caught.value.problems


def test_a_pattern_that_fits_no_phase() -> None:
    base = {"use": "none", "params": {"backbone": SMALL}}
    assert problems(base, phases="ulm/*") == ("phases: 'ulm/*' fits no phase; the phases are fit",)


def test_a_layer_that_is_not_there() -> None:
    base = {"use": "none", "params": {"backbone": SMALL}}
    pruner = {"use": "irregular", "params": {"rates": {"conv9": 2}}}
    assert problems(base, pruner=pruner) == (
        "pruner.params.rates: 'conv9' fits no layer; the layers are conv1, conv2",
    )


@pytest.mark.parametrize("base", ["clm", "dverge"])
def test_names_mean_the_same_in_phases_of_members_and_of_all(base: str) -> None:
    pytest.importorskip(f"phalanx_{base}")
    bases = {"use": base, "params": {"backbone": SMALL, "members": 2}}
    params = {"rates": {"conv1": 2}, "skip": ["conv2"]}
    model, phases = built(make(bases, pruner={"use": "irregular", "params": params}))
    pruners = [(p, r) for p in phases for r in p.regularizers if isinstance(r, Irregular)]
    assert len(pruners) == 3
    found = [[r.rate(n) for n in r.layers(p.module)] for p, r in pruners]
    assert found == [[2.0], [2.0], [2.0, 2.0]]
    whole = next(iter(convolutions(model)))
    params = {"rates": {whole: 2}, "skip": ["networks.*"]}
    told = "fits no layer; the layers are conv1, conv2"
    assert problems(bases, pruner={"use": "irregular", "params": params}) == (
        f"pruner.params.rates: {whole!r} {told}",
        f"pruner.params.skip: 'networks.*' {told}",
    )


def test_a_base_that_prunes_by_itself() -> None:
    pytest.importorskip("phalanx_mol")
    params = {"experts": "comprehensive", "backbone": SMALL, "pruner": "block"}
    (problem,) = problems({"use": "mol", "params": params})
    assert problem.startswith("phases: expert/")
    assert problem.endswith(
        "has a pruner of its own: drop one of the two pruners, the defense's own or this one"
    )


class Flat(nn.Module):
    """A classifier with timm's interface and without convolutions."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def flat(monkeypatch: pytest.MonkeyPatch, **pruner: Any) -> Pruned:
    """`pruned` over a network without convolutions."""
    defense = make({"use": "none", "params": {"backbone": SMALL}}, **pruner)
    model = defense.base.build()
    model.networks[0] = Member(Flat(num_classes=10), nn.Identity())
    monkeypatch.setattr(defense.base, "build", lambda: model)
    return defense


@pytest.mark.parametrize("kind", ["irregular", "filter", "block"])
def test_a_model_without_convolutions(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flat(monkeypatch, pruner=kind).build()
    assert caught.value.problems == (
        "pruner: MeanEnsemble has no convolution that is left to prune: choose a backbone with "
        "convolutions, such as resnet18_cifar",
    )


def test_its_classifier_can_be_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = {"use": "block", "params": {"include_heads": True}}
    model = flat(monkeypatch, pruner=pruner).build()
    assert list(Block(PrunedConfig.model_validate({"pruner": pruner}).pruner.params).layers(model))


def test_the_bases_problems_name_its_keys() -> None:
    base = {"use": "none", "params": {"backbone": "resnet18_cifer"}}
    (problem,) = problems(base)
    assert problem.startswith("base.params.backbone.use: no classifier is called 'resnet18_cifer'")
    pytest.importorskip("phalanx_adp")
    with pytest.raises(ConfigError) as caught:
        make({"use": "adp", "params": {"members": 10}})
    (problem,) = caught.value.problems
    assert problem.startswith("defense.params.base.params.members: 10 members cannot differ")


def test_the_base_says_whether_it_needs_a_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = make({"use": "none", "params": {"backbone": SMALL}})
    assert defense.warm_start_reason == ""
    monkeypatch.setattr(type(defense.base), "warm_start_reason", "write init.from")
    assert defense.warm_start_reason == "write init.from"


def test_a_round_phase_takes_the_penalty_as_one_more_step(tmp_path: Path) -> None:
    pytest.importorskip("phalanx_dverge")
    base = {
        "use": "dverge",
        "params": {"backbone": SMALL, "members": 2, "steps": 1, "start": "scratch"},
    }
    _, phases = built(make(base))
    assert isinstance(phases[0], RoundPhase)
    run = phalanx.train(run_file(base, {"use": "irregular"}), out=tmp_path / "run")
    assert run.metrics[0]["admm/penalty"] > 0
    assert all(
        int((layer.weight != 0).sum()) == kept(layer.weight.numel(), 4)
        for layer in convolutions(run.model).values()
    )


def test_the_three_are_pruners() -> None:
    for name in ("irregular", "filter", "block"):
        config = PrunedConfig.model_validate({"pruner": name}).pruner
        assert isinstance(config.create(), Pruner)
    assert isinstance(config.create(), Block)
    assert not isinstance(config.create(), Filter)
