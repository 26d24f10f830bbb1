"""Planted masking defenses and sound models through the whole evaluation, and what is said of them.

The attacks are as short as what is to be shown allows; what only informs (paths, curves, 98 of 100
draws of noise) is left out, and 12 of 16 directions of central differences. `bench.verdicts` does
all of it, with full attacks and more models.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phalanx
from phalanx.config import UseAttack
from phalanx.data import load_data
from phalanx.errors import ValidityWarning
from phalanx.evaluation import checks, contents, core_checks
from phalanx.evaluation.checks import gradients
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.planning import surrogate_plan
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Plan, Subject, digest_of, images_of, model_of
from phalanx.registry import default_registry
from phalanx.report.model import Report
from phalanx.specs import Linf

ROOT = Path(__file__).parents[2]
IMAGES = {"mnist": 156, "digits": 175}
"""Of which 149 at least are right."""
SHORT = (("apgd-ce", {"steps": 3}), ("apgd-dlr", {"steps": 3}))
BASE = (
    ("apgd-ce", {"steps": 100}),
    ("apgd-dlr", {"steps": 20}),
    ("square", {"queries": 100}),
)


@pytest.fixture(autouse=True)
def _essentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(core_checks, "_path", lambda *_: iter(()))
    monkeypatch.setattr(contents, "CURVE", ())
    monkeypatch.setattr(checks, "unstable", partial(checks.unstable, draws=2))
    monkeypatch.setattr(gradients, "DIRECTIONS", 4)


@pytest.fixture
def masks() -> Any:
    return importlib.import_module("bench.masks")


@pytest.fixture
def trained() -> Any:
    found = importlib.import_module("bench.trained")
    return partial(found.trained, found.Shape(width=6), steps=200)


@pytest.fixture
def clean(weights_root: Path) -> nn.Module:
    found: nn.Module = importlib.import_module("bench.planted").clean()
    return found


def evaluated(
    model: Any,
    source: nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    *,
    eps: float,
    attacks: Sequence[tuple[str, Mapping[str, Any]]],
) -> Report:
    threat, registry = Linf(eps), default_registry()
    uses: list[UseAttack] = [
        resolve_attack({"use": use, "params": params}, threat=threat, registry=registry)
        for use, params in attacks
    ]
    plan = Plan(tuple(uses), checks="core")
    subjects = [
        Subject(name, given, digest_of(given), surrogate=name == "source")
        for name, given in (("model", model_of(model)), ("source", model_of(source)))
    ]
    return evaluate_models(subjects, images_of(data), [plan, surrogate_plan(plan)])


def status(report: Report) -> dict[str, str]:
    return {one.id: one.status for one in report.defenses[0].checks}


def accuracy(report: Report, attack: str) -> tuple[float, str]:
    (row,) = [one for one in report.rows if one.attack.partition(":")[0] == attack]
    return row.robust_accuracy, row.verdict


# ---------------------------------------------------------------- five that mask, on MNIST


@pytest.fixture
def on_mnist(data_root: Path, clean: nn.Module) -> Callable[..., Report]:
    batch = load_data("mnist", root=data_root).test.fetch(slice(0, IMAGES["mnist"]))

    def run(model: Any, source: nn.Module = clean, attacks: Any = SHORT) -> Report:
        return evaluated(model, source, (batch.x, batch.y), eps=0.3, attacks=attacks)

    return run


@pytest.mark.real_data
def test_quantised_input(masks: Any, clean: nn.Module, on_mnist: Callable[..., Report]) -> None:
    report = on_mnist(masks.Around(clean, before=masks.quantised))
    assert report.defenses[0].masking == "yes"
    found = status(report)
    assert {found[f"grad_bad:{loss}"] for loss in ("margin", "ce", "dlr")} == {"fail"}
    for attack in ("apgd-ce", "apgd-dlr"):
        left, verdict = accuracy(report, attack)
        assert left > 0.9
        assert verdict == "unreliable"
    left, verdict = accuracy(report, "worst")  # the undefended twin's examples break it
    assert left < 0.05
    assert verdict != "unreliable"


@pytest.mark.real_data
def test_saturated_scores(masks: Any, clean: nn.Module, on_mnist: Callable[..., Report]) -> None:
    report = on_mnist(masks.Around(clean, after=lambda z: 100.0 * z))
    assert report.defenses[0].masking == "yes"
    found = status(report)
    assert (found["grad_bad:ce"], found["grad_bad:margin"]) == ("fail", "pass")
    left, verdict = accuracy(report, "apgd-ce")
    assert left > 0.9
    assert verdict == "unreliable"
    left, verdict = accuracy(report, "worst")
    assert left < 0.05
    assert verdict != "unreliable"


@pytest.mark.real_data
def test_an_undeclared_choice_of_networks(
    masks: Any, clean: nn.Module, on_mnist: Callable[..., Report]
) -> None:
    planted = importlib.import_module("bench.planted")
    model = masks.OneOf([clean, planted.published(planted.ADVERSARIAL)])
    with pytest.warns(ValidityWarning, match="OneOf answers differently from call to call"):
        report = on_mnist(model, attacks=SHORT[:1])
    assert report.defenses[0].masking == "yes"
    (failed,) = [one for one in report.defenses[0].checks if one.id == "stochastic"]
    assert failed.status == "fail"
    assert failed.bears_on_all
    assert [row.verdict for row in report.rows] == ["unreliable"] * 3
    assert accuracy(report, "apgd-ce")[0] > 0.3  # a lucky draw ends the attack, another judges


@pytest.mark.real_data
def test_preprocessing_in_numpy(
    masks: Any, clean: nn.Module, on_mnist: Callable[..., Report]
) -> None:
    report = on_mnist(masks.Around(clean, before=masks.stretched), attacks=(*SHORT, BASE[2]))
    assert report.defenses[0].masking == "yes"
    found = status(report)
    assert found["grad_bad:margin"] == "fail"
    assert {found[name] for name in ("grad_fd", "black_box", "converged_steps")} == {"not-run"}
    assert [(one.attack.partition(":")[0], one.view) for one in report.failed] == [
        ("apgd-ce", "deployed"),
        ("apgd-dlr", "deployed"),
    ]
    assert all("depend on the images differentiably" in one.reason for one in report.failed)
    left, verdict = accuracy(report, "worst")
    assert left < 0.05
    assert verdict == "screened"


@pytest.mark.real_data
def test_a_gradient_step_inside(
    masks: Any, clean: nn.Module, on_mnist: Callable[..., Report]
) -> None:
    report = on_mnist(masks.Purifying(clean), attacks=SHORT[:1])
    assert report.defenses[0].masking == "yes"
    (failed,) = [one for one in report.defenses[0].checks if one.id == "dynamic"]
    assert failed.status == "fail"
    assert not report.failed
    assert ("deployed", "apgd-ce:steps=3", "linf:0.3") in failed.touches
    left, verdict = accuracy(report, "worst")
    assert left < 0.1
    assert verdict != "unreliable"


# ---------------------------------------------------------------- sound ones


@pytest.mark.real_data
def test_an_undefended_network(clean: nn.Module, on_mnist: Callable[..., Report]) -> None:
    found = importlib.import_module("bench.trained")
    other = found.trained(found.Shape(side=28, width=4), 9, data="mnist", steps=60)
    report = on_mnist(clean, source=other, attacks=BASE)
    assert report.defenses[0].masking == "no"
    assert not [one for one in report.defenses[0].checks if one.status in ("fail", "not-run")]
    assert {row.verdict for row in report.rows} <= {"trusted", "caution"}
    assert accuracy(report, "worst")[0] == 0.0


@pytest.fixture
def on_digits(trained: Any) -> Callable[..., Report]:
    batch = load_data("digits").test.fetch(slice(0, IMAGES["digits"]))

    def run(model: Any, **rest: Any) -> Report:
        more = {"attacks": BASE, **rest}
        return evaluated(model, trained(seed=9), (batch.x, batch.y), eps=0.2, **more)

    return run


def test_a_lower_temperature(masks: Any, trained: Any, on_digits: Callable[..., Report]) -> None:
    report = on_digits(masks.Around(trained(), after=lambda z: 2.0 * z))
    assert report.defenses[0].masking == "no"
    assert {row.verdict for row in report.rows} <= {"trusted", "caution"}


def test_an_ensemble_of_three(trained: Any, on_digits: Callable[..., Report]) -> None:
    from phalanx.nn.ensemble import MeanEnsemble

    model = MeanEnsemble([trained(seed=seed) for seed in range(3)])
    report = on_digits(model, attacks=(*BASE, ("mora", {"steps": 20})))
    assert report.defenses[0].masking == "no"
    assert status(report)["ensemble_reweight"] == "pass"
    assert "unreliable" not in {row.verdict for row in report.rows}


def test_declared_randomness_with_few_functions(
    trained: Any, on_digits: Callable[..., Report]
) -> None:
    from phalanx.nn.ensemble import Population

    model = Population([trained(seed=seed) for seed in range(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ValidityWarning)
        report = on_digits(model, attacks=(*BASE, ("mora", {"steps": 20})))
    found = status(report)
    assert (found["stochastic"], found["eot_k"]) == ("pass", "not-applicable")
    assert report.defenses[0].masking == "no"
    assert "unreliable" not in {row.verdict for row in report.rows}


def test_the_same_through_the_public_call(masks: Any, trained: Any) -> None:
    network = trained()
    batch = load_data("digits").test.fetch(slice(0, IMAGES["digits"]))
    report = phalanx.evaluate(
        masks.Around(network, before=masks.quantised),
        (batch.x, batch.y),
        attacks=["pgd:steps=5"],
        threat="linf:0.2",
        surrogates={"twin": network},
    )
    (row, transferred, worst) = report.rows
    assert transferred.attack == "from:twin"
    assert worst.robust_accuracy <= transferred.robust_accuracy < row.robust_accuracy - 0.5
    assert report.defenses[0].masking == "unknown"  # the checks of attacks of one's own are free
