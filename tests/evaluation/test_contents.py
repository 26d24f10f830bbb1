"""What a report holds besides rows and checks, against numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluation_toys import SIDE, TASK, Mixed, Plain, Threshold, images, toy_registry
from torch import Generator, Tensor, nn

from phalanx import catalog
from phalanx.data.sets import ArraySplit, Data
from phalanx.defense import DefendedModel
from phalanx.evaluation import contents
from phalanx.evaluation.contents import facts, ledger
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.paired import mcnemar
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.statistics import wilson
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.nn.ensemble import MeanEnsemble
from phalanx.report.model import Report
from phalanx.specs import Kind, parse_threat


def mean_pixels(n: int) -> tuple[Tensor, Tensor]:
    """Mean pixel and label of each toy image."""
    test = images(n).test
    return test.images.flatten(1).mean(1), test.labels


def right_at(cut: float, n: int, *, shift: float = 0.0) -> Tensor:
    """Whether a threshold is right on each image that the toy attack moved by `shift`."""
    mean, y = mean_pixels(n)
    moved = mean + shift * (1.0 - 2.0 * y)
    return (moved > cut).long() == y


def plan_with(*attacks: str, threat: str = "linf:0.25", checks: Any = "free", **rest: Any) -> Plan:
    registry, _ = toy_registry()
    uses = tuple(
        resolve_attack(parse_attack(one), threat=parse_threat(threat), registry=registry)
        for one in attacks
    )
    return Plan(uses, checks=checks, **rest)


def evaluated(
    subjects: list[Subject], plan: Any, *, n: int = 60, data: Any = None, **rest: Any
) -> Report:
    registry, _ = toy_registry()
    return evaluate_models(subjects, data or images(n), plan, registry=registry, **rest)


def subject(name: str, model: DefendedModel, **rest: Any) -> Subject:
    return Subject(name, model, name, **rest)


SHIFT = ("toy:size=0.25", "toy:size=0.2")
"""Moves by the first are the worst of the two, for every model."""


# ---------------------------------------------------------------- between defenses


def test_comparisons_are_of_worst_cases_image_by_image() -> None:
    cuts = {"near": 0.5, "far": 0.52, "high": 0.9}
    report = evaluated([subject(name, Plain(cut)) for name, cut in cuts.items()], plan_with(*SHIFT))
    worst = {name: right_at(cut, 60) & right_at(cut, 60, shift=0.25) for name, cut in cuts.items()}
    assert 0 < worst["near"].sum() < 60  # so that there is something to compare
    found = {(one.first, one.second): one for one in report.comparisons}
    assert list(found) == [("far", "high"), ("near", "far"), ("near", "high")]
    for (first, second), one in found.items():
        a, b = worst[first].double(), worst[second].double()
        assert one.difference == pytest.approx(float((a - b).mean()), abs=1e-12)
        assert one.p_value == mcnemar(a, b)
        assert one.ci95[0] <= one.difference <= one.ci95[1]
        assert (one.test, one.n, one.threat) == ("mcnemar", 60, "linf:0.25")
    assert found["near", "high"].difference != 0.0


def test_a_union_of_threats_is_compared_by_what_withstands_all_of_it() -> None:
    linf, l2 = plan_with("toy:size=0.25"), plan_with("toy:size=0.23", threat="l2:1.0")
    plan = Plan((*linf.attacks, *l2.attacks))
    report = evaluated([subject("a", Plain()), subject("b", Plain(0.52))], plan)
    found = {one.threat: one for one in report.comparisons}
    assert list(found) == ["l2:1", "linf:0.25", "linf:0.25+l2:1"]
    worst = {(row.defense, row.threat): row.robust_accuracy for row in report.worst}
    assert len(worst) == 6
    for threat, one in found.items():
        assert one.difference == pytest.approx(worst["a", threat] - worst["b", threat])
    assert found["linf:0.25+l2:1"].difference != 0.0


def test_random_models_are_compared_by_shares() -> None:
    report = evaluated(
        [subject("m", Mixed([0.5, 0.0], closed=True)), subject("p", Plain())], plan_with(*SHIFT)
    )
    (one,) = report.comparisons
    mixed = (right_at(0.5, 60, shift=0.25).double() + right_at(0.0, 60, shift=0.25).double()) / 2
    expected = float((mixed - right_at(0.5, 60, shift=0.25).double()).mean())
    assert one.difference == pytest.approx(expected, abs=1e-12)
    assert one.test == "sign-flip"


def test_only_threats_that_two_defenses_share_and_no_surrogates() -> None:
    a, b, c = subject("a", Plain()), subject("b", Plain(0.52)), subject("c", Plain(0.9))
    friend = subject("friend", Plain(0.48), surrogate=True)
    inf, two = plan_with("toy"), plan_with("toy", threat="l2:1.0")
    both = Plan((*inf.attacks, *two.attacks))
    report = evaluated([a, b, c, friend], [both, inf, two, inf], n=20)
    pairs = [(one.first, one.second, one.threat) for one in report.comparisons]
    assert pairs == [("a", "b", "linf:0.25"), ("a", "c", "l2:1")]
    # the surrogate's examples count in the worst case all the same
    rows = {(row.defense, row.attack) for row in report.rows}
    assert {("a", "from:friend"), ("b", "from:friend")} <= rows
    assert evaluated([a], inf, n=20).comparisons == ()


class Left(nn.Module):
    """Looks at the left half of an image alone, or at the right one."""

    def __init__(self, *, left: bool) -> None:
        super().__init__()
        self.network = Threshold()
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        half = x[..., : SIDE // 2] if self.left else x[..., SIDE // 2 :]
        scores: Tensor = self.network(half)
        return scores


class Half(DefendedModel):
    """One `Left`."""

    def __init__(self, *, left: bool) -> None:
        super().__init__()
        self.network = Left(left=left)

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        scores: Tensor = self.network(x)
        return scores


def test_the_transfer_matrix_has_each_models_own_examples_on_its_diagonal() -> None:
    friend = subject("friend", Half(left=False), surrogate=True)
    subjects = [subject("left", Half(left=True)), subject("whole", Plain()), friend]
    report = evaluated(subjects, plan_with("fgsm", threat="linf:0.4"), n=40)
    (matrix,) = report.transfers
    assert (matrix.kind, matrix.threat, matrix.n) == ("models", "linf:0.4", 40)
    assert matrix.attack == "all attacks of the source"
    assert matrix.targets == ("left", "whole")
    assert matrix.sources == ("left", "whole", "friend")
    # each is broken by its own; half an image moved by 0.4 moves the mean of the whole by 0.2 only
    assert matrix.accuracy == ((0.0, 0.0, 1.0), (1.0, 0.0, 1.0))


def test_the_matrix_takes_the_worst_of_all_of_a_sources_attacks() -> None:
    report = evaluated(
        [subject("a", Plain()), subject("b", Plain(0.52))], plan_with(*reversed(SHIFT))
    )
    (matrix,) = report.transfers
    for line, cut in zip(matrix.accuracy, (0.5, 0.52), strict=True):
        expected = float(right_at(cut, 60, shift=0.25).double().mean())
        assert line == pytest.approx((expected, expected))  # the toy's examples are the same


def test_what_was_not_measured_stays_empty() -> None:
    a, b, c = (subject(name, Plain(cut)) for name, cut in (("a", 0.5), ("b", 0.52), ("c", 0.48)))
    inf, two = plan_with("toy"), plan_with("toy", threat="l2:1.0")
    report = evaluated([a, b, c], [inf, inf, two], n=20)
    by_threat = {one.threat: one for one in report.transfers}
    assert by_threat["linf:0.25"].accuracy[2] == (None, None, None)
    assert [line[2] for line in by_threat["linf:0.25"].accuracy] == [None, None, None]
    assert by_threat["l2:1"].accuracy[2][2] is not None
    assert evaluated([a], inf, n=20).transfers == ()


# ---------------------------------------------------------------- curves


@pytest.fixture
def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the core's checks, of whose tier curves and matrices are."""
    monkeypatch.setattr("phalanx.evaluation.validity.core", lambda _: iter(()))


@pytest.mark.usefixtures("without_checks")
def test_a_curve_has_every_radius_attacked_afresh_and_the_clean_images_at_zero() -> None:
    data = images(60)
    labels = data.test.labels.clone()
    labels[:6] = 1 - labels[:6]  # wrong without an attack
    test = ArraySplit(data.test.images, labels)
    wrong = Data(TASK, data.train, data.validation, test, data.threat)
    report = evaluated([subject("a", Plain())], plan_with("toy", checks="core"), data=wrong)
    (curve,) = report.curves
    assert (curve.defense, curve.norm, curve.view) == ("a", "linf", "deployed")
    assert (curve.attack, curve.n) == ("apgd-ce:steps=50", 60)
    assert [point.eps for point in curve.points] == pytest.approx(
        [0.0, 0.0625, 0.125, 0.25, 0.375, 0.5]
    )
    mean, _ = mean_pixels(60)
    distance = (mean - 0.5).abs()  # within L-inf the mean moves by eps, and the box is far
    right = torch.arange(60) >= 6
    expected = [float((right & (distance > p.eps)).double().mean()) for p in curve.points]
    found = [point.accuracy for point in curve.points]
    assert found == pytest.approx(expected)
    assert found[0] == 0.9
    assert 0.0 < found[3] < 0.9  # the threat's own radius divides them
    assert found == sorted(found, reverse=True)
    for point in curve.points:
        assert point.ci95 == pytest.approx(wilson(60 * point.accuracy, 60))


@pytest.mark.usefixtures("without_checks")
def test_radii_beyond_the_box_are_left_out_and_a_radius_of_zero_has_no_curve() -> None:
    plan = plan_with("toy:size=0", threat="linf:0.6", checks="core")
    (curve,) = evaluated([subject("a", Plain())], plan, n=10).curves
    assert [point.eps for point in curve.points] == pytest.approx([0.0, 0.15, 0.3, 0.6, 0.9])
    plan = plan_with("toy:size=0", threat="linf:0", checks="core")
    assert evaluated([subject("a", Plain())], plan, n=10).curves == ()


@pytest.mark.usefixtures("without_checks")
def test_a_curve_is_of_128_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CURVE", (1.0, 2.0))
    plan = plan_with("toy:size=0", threat="l2:1.0", checks="core")
    (curve,) = evaluated([subject("a", Plain())], plan, n=140).curves
    assert (curve.norm, curve.n) == ("l2", 128)
    # in L2 a mean over 16 pixels moves by eps / 4 at most
    distance = (mean_pixels(128)[0] - 0.5).abs()
    expected = [float((distance > point.eps / 4).double().mean()) for point in curve.points]
    assert [point.accuracy for point in curve.points] == pytest.approx(expected)


# ---------------------------------------------------------------- the ledger and facts


INDEX = """
schema = 1

[[plugin]]
id = "mine"
package = "phalanx-mine"
path = "plugins/mine"
entry_point = "phalanx_mine.plugin"
api = ">=1.0,<2"
core = ">=0.1,<0.2"
status = "experimental"
  [[plugin.component]]
  kind = "defense"
  name = "mine"
  summary = "One."
    [[plugin.component.claim]]
    source = "Table 1"
    dataset = "mnist"
    threat = "linf:0.3"
    attack = "pgd:steps=40"
    metric = "accuracy"
    value = 89.5
    conditional = true
    setting = "large network"
    [[plugin.component.claim]]
    source = "reproduction"
    dataset = "mnist"
    metric = "clean accuracy"
    value = 98.2
    status = "reproduced"
    evidence = "results/mnist.json"
"""


def test_the_ledger_is_what_the_index_of_plugins_says(monkeypatch: pytest.MonkeyPatch) -> None:
    index = catalog.read(INDEX)
    monkeypatch.setattr(catalog, "load", lambda: index)
    paper, own = ledger(subject("m", Plain(), component="mine"))
    assert paper.model_dump() == {
        "source": "Table 1",
        "dataset": "mnist",
        "threat": "linf:0.3",
        "attack": "pgd:steps=40",
        "metric": "accuracy",
        "value": 89.5,
        "conditional": True,
        "setting": "large network",
        "status": "unverified",
        "evidence": "",
    }
    assert (own.threat, own.status, own.evidence) == ("", "reproduced", "results/mnist.json")
    assert ledger(subject("m", Plain(), component="other")) == ()
    assert ledger(subject("m", Plain())) == ()
    report = evaluated([subject("m", Plain(), component="mine")], plan_with("toy"), n=10)
    assert report.defenses[0].claims == (paper, own)


def test_the_shipped_index_has_claims_of_its_defenses() -> None:
    index = catalog.load()
    defenses = [c for p in index.plugins for c in p.components if c.kind == Kind.DEFENSE]
    claimed = [one for one in defenses if one.claims]
    assert claimed
    for one in claimed:
        entries = ledger(subject("m", Plain(), component=one.name))
        assert [(e.source, e.value) for e in entries] == [(c.source, c.value) for c in one.claims]


def test_facts_are_of_the_network_and_of_its_training() -> None:
    model = MeanEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)])
    with torch.no_grad():
        model.members[0][1].weight[0, :5] = 0.0  # type: ignore[index]
    split = images(3).test
    found = facts(subject("m", model, training=(12.0, 11.0)), split)
    assert (found.parameters, found.nonzero, found.bytes) == (68, 63, 4 * 68)
    assert (found.training_forwards, found.training_backwards) == (12.0, 11.0)
    assert found.latency_batch == 1
    assert found.latency is not None
    assert 0.0 < found.latency < 1.0
    without = facts(subject("m", model), split)
    assert without.training_forwards is without.training_backwards is None


@pytest.mark.usefixtures("without_checks")
def test_members_and_their_diversity_of_an_ensemble_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents, "curve", lambda _: None)
    plan = plan_with("toy:size=0", threat="linf:0.4", checks="core")
    report = evaluated([subject("one", Plain())], plan, n=20)
    assert (report.transfers, report.defenses[0].diversity) == ((), {})
    pair = MeanEnsemble([Left(left=True), Left(left=False)])
    report = evaluated([subject("two", pair)], plan, n=20)
    (matrix,) = report.transfers
    assert (matrix.kind, matrix.defense, matrix.attack) == ("members", "two", "pgd:steps=20")
    assert matrix.targets == matrix.sources == ("member 1", "member 2")
    assert matrix.accuracy == ((0.0, 1.0), (1.0, 0.0))  # each sees its own half alone
    assert report.defenses[0].diversity["gradient_cosine"] == pytest.approx(0.0, abs=1e-6)
