"""Which checks a protocol makes of a model, what they get, and what verdicts its rows have."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_toys import Mixed, Plain, Threshold, images
from torch import Generator, Tensor
from validity_toys import (
    CORE,
    ENOUGH,
    FREE,
    FULL,
    LARGE,
    STRONG,
    Loud,
    evaluated,
    found_in,
    keys,
    plan_with,
    registry_with,
    toy,
    verdict_of,
)

import phalanx
from phalanx.data.sets import ArraySplit, Data
from phalanx.defense import DefendedModel
from phalanx.errors import ValidityWarning
from phalanx.evaluation import checks, contents, core_checks
from phalanx.evaluation.examined import Examined, Frozen
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.protocol import load_protocol, resolve_attack
from phalanx.evaluation.subjects import Also, Plan, Subject
from phalanx.evaluation.validity import required_of
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.specs import Linf


@pytest.fixture(autouse=True)
def _short_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two radii, where curves have five: `test_contents` looks at these."""
    monkeypatch.setattr(contents, "CURVE", (0.5, 2.0))


# ---------------------------------------------------------------- which checks run


def test_quick_makes_the_checks_that_cost_nothing() -> None:
    report = phalanx.evaluate(Plain(), images(20), threat="linf:0.1", registry=registry_with())
    (of_model,) = report.defenses
    assert [check.id for check in of_model.checks] == FREE
    assert {check.status for check in of_model.checks} == {"pass"}
    assert {row.verdict for row in report.rows} == {"screened"}
    assert of_model.masking == "unknown"
    assert of_model.sentence == (
        "Screened: black_box, converged_steps, grad_bad, grad_fd, transfer and unbounded have not "
        "run; whether gradients are masked is unknown."
    )
    assert report.curves == ()


def test_core_makes_the_core_and_two_sound_models_are_trusted() -> None:
    report = evaluated(Plain(), Plain(0.52), threats=LARGE)
    for of_model in report.defenses:
        assert [check.id for check in of_model.checks] == CORE
        assert {check.status for check in of_model.checks} == {"pass", "not-applicable"}
        assert of_model.masking == "no"
        assert of_model.sentence == "Trusted: all 10 required checks pass; no masking was found."
    assert {row.verdict for row in report.rows} == {"trusted"}


def test_of_the_shipped_protocols_quick_and_union_make_no_others() -> None:
    tiers = {
        name: load_protocol(name, threat=Linf(0.1), registry=registry_with()).checks
        for name in ("quick", "union", "standard", "adaptive")
    }
    assert tiers == {"quick": "free", "union": "free", "standard": "core", "adaptive": "core"}


def test_full_makes_all_and_too_few_images_are_said() -> None:
    report = evaluated(Plain(), n=20, checks="full", threats=LARGE)
    found = found_in(report)
    assert list(found) == [*CORE[:-1], *FULL, "budget"]
    few = ["grad_bad:margin", "black_box", "unbounded", "converged_steps"]
    for name in few:
        assert found[name].status == "not-run"
        assert found[name].reason.startswith("too few images: 149 are needed to exclude 2 %, ")
    assert found["one_step"].status == found["monotone"].status == "pass"
    assert found["binarization"].reason == (
        "The model has no members with features in front of a linear layer."
    )
    assert verdict_of(report, "worst") == "screened"


def test_checks_may_be_asked_for_beyond_the_protocol() -> None:
    asked: dict[str, Any] = {"threat": LARGE[0], "registry": registry_with()}
    report = phalanx.evaluate(Plain(), images(20), attacks=["fgsm"], checks="core", **asked)
    assert "unbounded" in found_in(report)
    report = phalanx.evaluate(Plain(), images(20), protocol="standard", checks="free", **asked)
    assert [*found_in(report)] == FREE


def test_thresholds_of_a_protocol_decide_and_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nchecks = "core"\n'
        'attacks = [{ use = "fgsm" }]\n'
        "[thresholds]\nunstable = { warn = 1e-9 }\nunbounded = { warn = 0.25, fail = 0.25 }\n"
    )
    asked: dict[str, Any] = {"threat": "linf:0.1", "registry": registry_with()}
    report = phalanx.evaluate(Plain(), images(ENOUGH), protocol=str(file), **asked)
    found = found_in(report)
    assert found["unstable"].status == "warn"
    assert found["unstable"].threshold.startswith("warns above 1e-09")
    assert found["unbounded"].threshold.startswith("warns above 25 %, fails above 25 %")
    name = report.environment["protocol"]
    assert re.fullmatch(r"mine \(mine\.toml, [0-9a-f]{12}\)", name)
    assert report.notes[-1] == (
        f"{name} judges by thresholds of its own: unbounded warns above 25 %, fails above 25 % "
        "(lower end of the exact interval); unstable warns above 1e-09."
    )


def test_every_check_is_told_its_thresholds() -> None:
    """Each limit is moved, and stands behind its check in the report."""
    moved: dict[str, Any] = {}
    for name, field in checks.Thresholds.model_fields.items():
        if isinstance(field.default, checks.Shares):
            moved[name] = checks.Shares(warn=0.31, fail=0.41)
        elif isinstance(field.default, checks.Above) and name != "budget":
            moved[name] = checks.Above(warn=31.0, fail=41.0)
        elif isinstance(field.default, checks.Below):
            moved[name] = checks.Below(warn=-1.5, fail=-2.5)
    limits = checks.Thresholds(**moved)
    model = MeanEnsemble([torch.nn.Sequential(Threshold()) for _ in range(2)])
    report = evaluated(model, n=20, checks="full", thresholds=limits, threats=LARGE)
    told = {
        checks.table.base_id(check.id): check.threshold
        for check in report.defenses[0].checks
        if check.status != "not-applicable" and check.threshold
    }
    expected = {name: limit.words() for name, limit in moved.items() if name in told}
    assert {name: told[name][: len(words)] for name, words in expected.items()} == expected
    assert {"black_box", "unbounded", "grad_fd", "stochastic", "loss_rank", "chance"} <= set(told)


def test_each_row_is_told_to_observers_with_its_verdict(tmp_path: Path) -> None:
    seen: list[Any] = []

    def observe(run: Any, row: Any) -> None:
        seen.append((run, row))

    registry = registry_with(phalanx_attack_finished=observe)
    report = phalanx.evaluate(
        Plain(), images(20), threat="linf:0.1", registry=registry, out=tmp_path, name="me"
    )
    assert [row for _, row in seen] == [row.model_dump(mode="json") for row in report.rows]
    data = report.environment["data"]
    assert seen[0][0] == {"defense": "me", "data": data, "seed": 0, "out": str(tmp_path)}
    assert {row["verdict"] for _, row in seen} == {"screened"}


def test_without_a_base_its_checks_have_not_run() -> None:
    report = evaluated(Plain(), attacks=("apgd-ce:steps=99", "apgd-dlr:steps=5"), threats=LARGE)
    found = found_in(report)
    for name in ("transfer", "converged_steps", "one_step"):
        assert found[name].status == "not-run"
    assert found["black_box"].reason == "No attack on scores or labels ran."
    assert found["converged_steps"].reason == checks.outcomes.NO_BASE
    assert found["unbounded"].status == "pass"  # no base is needed


# ---------------------------------------------------------------- verdicts


class Undeclared(Plain):
    """Noise of torch's global generator, of which it says nothing."""

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        return super().draw(x, generator) + 0.1 * torch.randn(len(x), 2)


def test_undeclared_randomness_makes_every_row_unreliable() -> None:
    report = phalanx.evaluate(
        Undeclared(), images(20), attacks=["fgsm", "square:queries=5"], threat="linf:0.1"
    )
    check = found_in(report)["stochastic"]
    assert check.status == "fail"
    assert check.reason.startswith("Declared deterministic; 5 equal calls differ by ")
    assert keys(check) == {"fgsm", "square:queries=5", "worst"}
    assert check.bears_on_all
    assert {row.robust_accuracy for row in report.rows} == {1.0}
    assert {row.verdict for row in report.rows} == {"unreliable"}
    assert report.defenses[0].masking == "yes"


class Beside(Plain):
    """Answers depend on the rest of the batch."""

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        return super().draw(x, generator) + x.mean() * torch.tensor([1.0, 0.0])


class Purifying(Plain):
    """Takes a gradient step while it answers."""

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        with torch.enable_grad():
            image = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.network(image).square().sum(), image)
        return super().draw(x + 1e-4 * slope.sign(), generator)


@pytest.mark.parametrize(
    ("model", "check", "touched"),
    [
        (Beside, "batch_dependence", {"fgsm", "square:queries=5", "worst"}),
        (Purifying, "dynamic", {"fgsm"}),  # an attack on scores reaches `worst` by itself
    ],
)
def test_other_checks_that_cost_nothing(model: type[Plain], check: str, touched: set[str]) -> None:
    report = phalanx.evaluate(
        model(), images(20), attacks=["fgsm", "square:queries=5"], threat="linf:0.1"
    )
    assert found_in(report)[check].status == "fail"
    assert keys(found_in(report)[check]) == touched
    assert {row.attack for row in report.rows if row.verdict == "unreliable"} == touched


@pytest.mark.parametrize(
    ("model", "check", "verdict"),
    [(Purifying, "dynamic", "screened"), (Undeclared, "stochastic", "unreliable")],
)
def test_at_chance_only_what_bears_on_every_row_makes_a_number_unreliable(
    model: type[Plain], check: str, verdict: str
) -> None:
    report = phalanx.evaluate(model(), images(20), attacks=["fgsm"], threat="linf:0.5")
    assert {row.robust_accuracy for row in report.rows} == {0.0}
    assert found_in(report)[check].status == "fail"
    assert {row.verdict for row in report.rows} == {verdict}


class Quantised(Plain):
    """Rounds its input, so that it has no gradient."""

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        return super().draw((x * 16).round() / 16, generator)


def test_masked_gradients_and_the_twin_that_shows_them() -> None:
    report = evaluated(Quantised(), Plain(), threats=LARGE)
    found = found_in(report)
    assert {name for name, check in found.items() if check.status == "fail"} >= {
        "grad_bad:ce",
        "grad_bad:dlr",
        "black_box",
        "transfer",
    }
    assert keys(found["grad_bad:ce"]) == {"apgd-ce"}
    assert keys(found["grad_bad:dlr"]) == {"apgd-dlr:steps=5"}
    assert report.defenses[0].masking == "yes"
    rows = {row.attack: row for row in report.rows if row.defense == "a"}
    assert rows["apgd-ce"].robust_accuracy > 0.9
    assert rows["from:b"].robust_accuracy == rows["worst"].robust_accuracy == 0.0
    assert rows["apgd-ce"].verdict == rows["apgd-dlr:steps=5"].verdict == "unreliable"
    assert rows["worst"].verdict == rows["from:b"].verdict == "caution"
    assert report.defenses[1].masking == "no"
    assert verdict_of(report, "worst", "b") == "trusted"


def test_examples_outside_the_ball_touch_every_row() -> None:
    attacks = ("toy:mode=break", "fgsm")
    with pytest.warns(ValidityWarning, match="3 of 20 examples broke the threat"):
        report = evaluated(Plain(), n=20, attacks=attacks, checks="free")
    check = found_in(report)["budget"]
    assert (check.status, check.count, check.n) == ("fail", 3, 40)
    assert {row.verdict for row in report.rows} == {"unreliable"}


# ---------------------------------------------------------------- models of several kinds


def test_required_checks_depend_on_the_model() -> None:
    loop: Any = SimpleNamespace(images=SimpleNamespace(split=SimpleNamespace(shape=(1, 4, 4))))

    def required(model: DefendedModel) -> set[str]:
        return set(required_of(Subject("m", model, "m"), loop) - checks.REQUIRED)

    parts = [Threshold(), Threshold(0.4)]
    assert required(Plain()) == set()
    assert required(Mixed([0.5, 0.4], closed=False)) == {"eot_k"}
    assert required(Mixed([0.5, 0.4], closed=True)) == set()
    assert required(MeanEnsemble(parts)) == required(Population(parts)) == {"ensemble_reweight"}


def test_an_ensemble_needs_its_adaptive_attack_and_members_weighed_anew() -> None:
    registry = registry_with()
    registry.register(toy("mora"))
    model = MeanEnsemble([Threshold(), Threshold(0.48)])
    report = evaluated(model, registry=registry, threats=LARGE)
    found = found_in(report)
    assert found["adaptive"].status == "not-run"
    assert found["ensemble_reweight"].reason.startswith("No attack weighed the members anew: ")
    assert found["ensemble_dominance"].status == "pass"
    assert verdict_of(report, "worst") == "incomplete"
    assert {one.kind for one in report.transfers} == {"members"}
    assert report.defenses[0].diversity

    plan = plan_with(*STRONG, registry=registry, threats=LARGE)
    mora = resolve_attack(parse_attack("mora:size=0.4"), threat=Linf(0.4), registry=registry)
    report = evaluated(
        model,
        Plain(),
        registry=registry,
        plans=[Plan(plan.attacks, also=(Also(mora, (), "adaptive"),), checks="core"), plan],
    )
    found = found_in(report)
    assert found["adaptive"].status == found["ensemble_reweight"].status == "pass"
    assert verdict_of(report, "worst") == "trusted"
    assert [row.protocol for row in report.rows if row.attack == "mora:size=0.4"] == ["adaptive"]


def test_the_rest_of_the_attacks_may_be_stronger_than_the_adaptive_one() -> None:
    registry = registry_with()
    weak = resolve_attack(parse_attack("toy:size=0.0"), threat=Linf(0.4), registry=registry)
    plan = plan_with("toy:size=0.4", registry=registry, threats=LARGE)
    model = MeanEnsemble([Threshold(), Threshold(0.48)])
    report = evaluated(
        model,
        n=20,
        registry=registry,
        plans=Plan(plan.attacks, also=(Also(weak, (), "adaptive"),), checks="core"),
    )
    check = found_in(report)["adaptive"]
    assert (check.status, check.count) == ("warn", 20)


@pytest.fixture
def only_eot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes long on a random model and is checked elsewhere."""
    monkeypatch.setattr(core_checks, "both", lambda *_, **__: None)
    monkeypatch.setattr(core_checks, "_path", lambda *_: iter(()))
    monkeypatch.setattr(contents, "curve", lambda _: None)


@pytest.mark.usefixtures("only_eot")
def test_a_random_model_is_asked_for_more_draws_and_for_none() -> None:
    report = evaluated(Loud(0.01), attacks=("toy",))
    found = found_in(report)
    assert found["eot_k"].status == "pass"
    assert found["eot_k"].n == ENOUGH
    assert found["batch_dependence"].status == "not-applicable"
    assert "grad_deployed" not in found
    assert found["unbounded"].reason == "No gradient attack can run on this model."
    assert found["adaptive"].status == "not-run"
    assert {row.verdict for row in report.rows} == {"incomplete"}


@pytest.mark.usefixtures("only_eot")
def test_draws_of_the_protocol_are_compared_where_it_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, Any]] = []
    whole = Examined.attacked

    def attacked(self: Examined, use: str, params: dict[str, Any], **rest: Any) -> Any:
        asked.append((use, params))
        return whole(self, use, params, **rest)

    monkeypatch.setattr(Examined, "attacked", attacked)
    attacks = ("apgd-ce:steps=3,eot=2", "apgd-ce:steps=3,eot=4", "apgd-ce:steps=3,eot=8")
    report = evaluated(Loud(0.01), n=20, attacks=attacks, views=("deployed",))
    assert found_in(report)["eot_k"].n == 20
    assert [(use, params.get("eot")) for use, params in asked] == [
        ("fgsm", None),
        ("apgd-ce", None),  # the frozen draw: no attack over draws had to be made
    ]


def test_a_frozen_draw_is_one_function_of_the_model() -> None:
    model = Loud(0.1)
    x = images(8).test.images
    frozen = Frozen(model, seed=3)
    assert torch.equal(frozen.draw(x, None), frozen.serve(9)(x))
    assert not torch.equal(frozen.draw(x, None), Frozen(model, seed=4).draw(x, None))
    assert not frozen.stochastic
    assert {name: view.rowwise for name, view in frozen.views().items()} == {"deployed": False}
    closed = Frozen(Mixed([0.5, 0.4], closed=True), seed=3)
    assert {name: view.rowwise for name, view in closed.views().items()} == {"deployed": True}


# ---------------------------------------------------------------- several threats, or none


def test_each_threat_has_checks_of_its_own() -> None:
    registry = registry_with()
    both = plan_with(*STRONG, registry=registry, threats=("linf:0.4", "l2:1.6"))
    report = evaluated(
        Plain(),
        Plain(0.52),
        registry=registry,
        plans=[both, plan_with(*STRONG, registry=registry, threats=LARGE)],
    )
    found = found_in(report)
    own = [name for name in CORE if name not in FREE]
    expected = [f"{name}@{threat}" for threat in ("linf:0.4", "l2:1.6") for name in own]
    assert list(found) == [*FREE[:-1], *expected, "budget"]
    # the other model was attacked within L-inf alone
    assert found["transfer@linf:0.4"].status == "pass"
    assert found["transfer@l2:1.6"].status == "not-run"
    verdicts = {(row.threat, row.verdict) for row in report.rows if row.defense == "a"}
    assert verdicts == {
        ("linf:0.4", "trusted"),
        ("l2:1.6", "caution"),
        ("linf:0.4+l2:1.6", "caution"),
    }
    curves = [(curve.defense, curve.norm) for curve in report.curves]
    assert curves == [("a", "linf"), ("a", "l2"), ("b", "linf")]
    assert [name for name in found_in(report, 1) if "@" in name] == []


def test_without_a_ball_there_is_nothing_to_check_but_what_costs_nothing() -> None:
    report = evaluated(Plain(), n=20, attacks=("toy:threat=none",))
    assert list(found_in(report)) == FREE
    assert {row.threat for row in report.rows} == {"none"}
    assert {row.verdict for row in report.rows} == {"screened"}
    assert report.curves == report.transfers == ()
    assert report.defenses[0].facts is not None


def test_a_ball_beside_none_is_examined_alone() -> None:
    report = evaluated(Plain(), n=20, attacks=("toy:threat=none", "toy"))
    assert [name for name in found_in(report) if "@" in name] == []
    assert "grad_fd" in found_in(report)
    assert [curve.norm for curve in report.curves] == ["linf"]


def test_a_model_that_is_always_wrong_has_no_images_to_look_at() -> None:
    data = images(20)
    split = ArraySplit(data.test.images, 1 - data.test.labels)
    report = evaluated(
        Plain(), data=Data(data.task, data.train, data.validation, split, data.threat)
    )
    assert list(found_in(report)) == ["budget"]
    assert {row.verdict for row in report.rows} == {"incomplete"}
    assert report.curves == ()
