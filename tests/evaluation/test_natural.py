"""Natural perturbations beside attacks: their cells, the worst over several kinds, the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from evaluation_toys import Mixed, Plain, images, toy_registry
from pydantic import Field
from torch import Generator, Tensor

import phalanx
from phalanx.cli.report import print_report
from phalanx.config import PerturbationConfig, RunConfig
from phalanx.defense import DefendedModel
from phalanx.errors import ValidityWarning
from phalanx.evaluation.cell import Cell, Outcome
from phalanx.evaluation.labels import attack_label, parse_attack
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.rows import Measured, rows_of
from phalanx.perturbation import Perturbation
from phalanx.registry import Registry, default_registry
from phalanx.report.model import Report
from phalanx.runfile import read_run
from phalanx.specs import ComponentSpec, Kind, NoBall


class LightConfig(PerturbationConfig):
    """What is added."""

    amount: float = Field(0.4, description="Added to every pixel.")
    mode: str = Field("add", description="add, random sign, or leave the box.")
    levels: tuple[int, ...] = Field((), description="Not used.")


class Light(Perturbation[LightConfig]):
    """Adds light: toy images of class 0 look like class 1 then, and the other way round."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        amount = torch.full((len(x), 1, 1, 1), self.config.amount)
        if self.config.mode == "random":
            amount *= torch.rand((len(x), 1, 1, 1), generator=generator).sub(0.5).sign()
        if self.config.mode == "leave":
            return x + 10 * amount
        return (x + amount).clamp(0, 1)


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """The toy attack's registry; ``light`` stands in the default one too, where it is made."""
    sys.modules.setdefault(__name__, sys.modules[Light.__module__])
    spec = ComponentSpec(
        kind=Kind.PERTURBATION,
        name="light",
        factory=f"{__name__}:Light",
        config=f"{__name__}:LightConfig",
        summary="Light.",
    )
    default = default_registry()
    before = dict(default._components), dict(default._in_process)
    default.register(spec)
    own, _ = toy_registry()
    own.register(spec)
    yield own
    default._components, default._in_process = before


def natural(**params: Any) -> dict[str, Any]:
    draws = {"draws": params.pop("draws")} if "draws" in params else {}
    perturbation = {"use": "light", "params": params}
    return {"use": "natural", "params": {"perturbation": perturbation, **draws}}


TOY = {"use": "toy"}
BRIGHTER, DARKER = natural(), natural(amount=-0.4)


def run(model: DefendedModel, registry: Registry, *attacks: Any, **rest: Any) -> Report:
    return phalanx.evaluate(model, images(40), attacks=attacks, registry=registry, **rest)


def by_attack(report: Report) -> dict[tuple[str, str], float]:
    return {(row.attack, row.threat): row.robust_accuracy for row in report.rows}


# ---------------------------------------------------------------- cells


def test_a_row_says_which_perturbation_and_that_there_is_no_ball(registry: Registry) -> None:
    report = run(Plain(), registry, BRIGHTER, DARKER, threat="linf:0.1")
    first, second, worst = report.rows
    assert (first.view, first.attack, first.threat) == (
        "none",
        "natural:perturbation=light",
        "none",
    )
    assert second.attack == 'natural:perturbation={use="light",params={amount=-0.4}}'
    assert (first.robust_accuracy, second.robust_accuracy) == (0.5, 0.5)
    assert (first.forwards, first.backwards, first.note) == (0, 0, None)
    assert (worst.attack, worst.threat) == ("worst", "none")


def test_one_cell_stands_for_all_views_if_the_model_is_not_asked(registry: Registry) -> None:
    model = Mixed([0.3, 0.7], closed=True)
    once = run(model, registry, natural(mode="random"))
    assert [row.view for row in once.rows] == ["none", "worst"]
    several = run(model, registry, natural(mode="random", draws=3))
    assert [row.view for row in several.rows] == ["deployed", "one-draw", "expected", "worst"]
    chosen = run(model, registry, natural(mode="random"), views=["one-draw"])
    assert chosen.rows == once.rows  # whatever the view, which is not cut into chunks either
    assert chosen.rows[0].note is None


def test_the_worst_of_several_draws_is_no_milder(registry: Registry) -> None:
    one, many = (run(Plain(), registry, natural(mode="random", draws=n)).rows[0] for n in (1, 12))
    assert one.robust_accuracy == pytest.approx(0.5, abs=0.25)
    assert many.robust_accuracy < one.robust_accuracy
    assert many.forwards == 12


def test_what_leaves_the_box_counts_as_the_clean_image_and_is_told(registry: Registry) -> None:
    with pytest.warns(ValidityWarning, match="40 of 40 examples broke the threat none or the box"):
        row, _ = run(Plain(), registry, natural(mode="leave")).rows
    assert row.robust_accuracy == row.clean_accuracy == 1.0
    assert row.note is not None
    assert row.note.startswith("40 examples outside budget or box")


def test_cells_are_stored_by_the_perturbations_parameters(
    registry: Registry, tmp_path: Any
) -> None:
    for attack in (BRIGHTER, BRIGHTER, DARKER, natural(amount=0.4)):
        run(Plain(), registry, attack, out=tmp_path)
    assert len(list((tmp_path / "cells").glob("*.safetensors"))) == 1 + 2  # the clean one


# ---------------------------------------------------------------- the worst of several kinds


def test_all_attacks_are_the_and_of_every_cell(registry: Registry) -> None:
    big = {"use": "toy", "params": {"threat": "linf:0.4", "size": 0.4}}
    report = run(Plain(), registry, TOY, BRIGHTER, DARKER)
    found = by_attack(report)
    assert found["worst", "linf:0.1"] == 1.0
    assert found["worst", "none"] == 0.0  # brighter fools one half, darker the other
    assert found["worst", "linf:0.1+none"] == 0.0
    one = by_attack(run(Plain(), registry, TOY, BRIGHTER))
    assert one["worst", "linf:0.1+none"] == one["worst", "none"] == 0.5
    none = by_attack(run(Plain(), registry, TOY, big))
    assert list(none)[2:] == [("worst", "linf:0.1"), ("worst", "linf:0.4")]  # of one kind


def outcome(bits: list[int]) -> Outcome:
    return Outcome(torch.tensor([bits], dtype=torch.uint8), "exact", 3, forwards=2, backwards=1)


CLEAN = outcome([1, 1, 1, 1, 0])
CELLS = [
    Measured("deployed", "pgd", "l1:16", outcome([1, 0, 1, 1, 1])),
    Measured("deployed", "pgd", "l2:1", outcome([1, 0, 0, 1, 1])),
    Measured(
        "none", "natural:perturbation=fog", "none", outcome([1, 1, 1, 0, 1]), holds_clean=False
    ),
]


def test_the_worst_rows_by_hand() -> None:
    rows = rows_of("avg", CLEAN, CELLS, seed=0, missing={"l2:1": 1, "none": 2, "linf:0.1": 4})
    worst = {row.threat: row for row in rows if row.attack == "worst"}
    assert {threat: row.robust_accuracy for threat, row in worst.items()} == {
        "l1:16": pytest.approx(0.6),
        "l2:1": pytest.approx(0.4),
        "none": pytest.approx(0.6),
        "l1:16+l2:1+none": pytest.approx(0.2),
    }
    together = worst["l1:16+l2:1+none"]
    assert (together.forwards, together.backwards) == (6, 3)
    assert together.conditional_accuracy == pytest.approx(0.25)
    assert together.robust_accuracy <= min(row.robust_accuracy for row in rows)
    assert together.note == "3 cells could not be run"
    assert worst["l1:16"].note is None


def test_without_a_ball_an_image_that_is_wrong_when_clean_may_be_right() -> None:
    """A network for fog may know foggy images better than clean ones."""
    fog = Measured(
        "none", "natural:perturbation=fog", "none", outcome([1, 1, 0, 1, 1]), holds_clean=False
    )
    pgd = Measured("deployed", "pgd", "linf:0", outcome([1, 1, 0, 1, 1]))
    alone, ball, worst, _, together = rows_of("fog", CLEAN, [fog, pgd], seed=0)
    assert alone.robust_accuracy == pytest.approx(0.8)
    assert alone.conditional_accuracy == pytest.approx(0.75)
    assert ball.robust_accuracy == worst.robust_accuracy == pytest.approx(0.6)
    assert together.robust_accuracy == pytest.approx(0.6)


def test_a_cell_of_a_union_is_among_its_parts_cells() -> None:
    both = Measured("deployed", "msd", "l1:16+l2:1", outcome([0, 1, 1, 1, 1]))
    rows = rows_of("avg", CLEAN, [*CELLS[:2], both], seed=0)
    worst = {row.threat: row.robust_accuracy for row in rows if row.attack == "worst"}
    assert list(worst) == ["l1:16", "l2:1", "l1:16+l2:1"]
    assert worst["l1:16+l2:1"] == pytest.approx(0.2)  # of all three


def test_a_union_in_another_order_is_the_same_union() -> None:
    both = Measured("deployed", "msd", "l2:1+l1:16", outcome([0, 1, 1, 1, 1]))
    rows = rows_of("avg", CLEAN, [*CELLS[:2], both], seed=0)
    worst = {row.threat: row.robust_accuracy for row in rows if row.attack == "worst"}
    assert list(worst) == ["l1:16", "l2:1", "l2:1+l1:16"]
    assert worst["l2:1+l1:16"] == pytest.approx(0.2)  # of all three


def test_an_attack_without_a_ball_that_may_leave_an_image_keeps_clean_errors() -> None:
    free = Measured("deployed", "art/DeepFool", "none", outcome([1, 1, 0, 1, 1]))
    row, *_ = rows_of("plain", CLEAN, [free], seed=0)
    assert row.robust_accuracy == pytest.approx(0.6)


def test_one_draw_is_the_same_for_all_models_and_an_attacks_is_not() -> None:
    def stream(weights: str, view: str, attack: str) -> tuple[str | int, ...]:
        cell = Cell(
            weights=weights,
            data="digits",
            view=view,
            attack=attack,
            threat="none",
            seed=0,
        )
        return cell.stream

    assert stream("a", "none", "natural") == stream("b", "none", "natural")
    assert stream("a", "deployed", "natural") != stream("b", "deployed", "natural")
    assert stream("a", "none", "none") != stream("b", "none", "none")  # the clean cell's judge


def test_a_single_union_has_one_worst_row() -> None:
    both = Measured("deployed", "msd", "l1:16+l2:1", outcome([0, 1, 1, 1, 1]))
    rows = rows_of("avg", CLEAN, [both], seed=0)
    assert [(row.attack, row.threat) for row in rows] == [
        ("msd", "l1:16+l2:1"),
        ("worst", "l1:16+l2:1"),
    ]


# ---------------------------------------------------------------- names and run files


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("natural:perturbation=light", "natural:perturbation=light"),
        ("natural:perturbation=light,draws=3", "natural:draws=3,perturbation=light"),
        ("natural:perturbation={use = 'light'}", "natural:perturbation=light"),
        (
            "natural:perturbation={use='light', params={amount=0.1, mode='random', levels=[1, 2]}}",
            'natural:perturbation={use="light",params={amount=0.1,mode="random",levels=[1,2]}}',
        ),
    ],
)
def test_labels_read_back(text: str, label: str, registry: Registry) -> None:
    use = resolve_attack(parse_attack(text), registry=registry)
    assert attack_label(use) == label
    assert resolve_attack(parse_attack(label), registry=registry).params == use.params


def test_a_run_files_evaluation_takes_it_beside_others(registry: Registry) -> None:
    attacks = [{"use": "toy", "params": {"threat": "l2:1"}}, TOY, BRIGHTER]
    config = read_run(
        {
            "defense": {"use": "none"},
            "evaluation": {"threat": "linf:0.2", "attacks": attacks},
        },
        registry=registry,
    )
    threats = [str(use.params.threat) for use in config.evaluation.attacks]  # type: ignore[attr-defined]
    assert threats == ["l2:1", "linf:0.2", "none"]
    again = RunConfig.model_validate_json(config.model_dump_json(), context={"registry": registry})
    assert again.evaluation == config.evaluation
    assert isinstance(again.evaluation.attacks[2].params.threat, NoBall)  # type: ignore[attr-defined]


def test_every_form_of_the_report_reads(
    registry: Registry, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(Plain(), registry, TOY, BRIGHTER, natural(draws=2), out=tmp_path)
    assert Report.load(tmp_path).rows == report.rows
    print_report(report)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "natural:perturb" in one]
    assert line.split()[:4] == ["Plain", "none", "natural:perturbation=light", "none"]
    page = report.to_html()
    for said in (
        "No view: these do not look at the model",
        "A natural perturbation changes every image",
        "Plain without a ball",
        "Plain under any of linf:0.1, no ball",
        "Plain under linf:0.1",
        "natural:perturbation=light 50.0 %",
        "deployed · natural:draws=2,perturbation=light 50.0 %",
    ):
        assert said in page
    text = report.to_markdown()
    assert "| Plain | none | natural:perturbation=light | none |" in text
    assert "| Plain | worst | worst | linf:0.1+none |" in text
    assert "A natural perturbation changes every image" in text
    assert "natural perturbation" not in run(Plain(), registry, TOY).to_markdown()
