"""Evaluations of toy models, whose outcomes are known."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_toys import TASK, Mixed, NotFinite, Plain, Threshold, images, toy_registry
from torch import nn

import phalanx
from phalanx.errors import (
    DataError,
    EvaluationError,
    InputError,
    PhalanxWarning,
    ThreatModelError,
    UnknownComponentError,
    ValidityWarning,
)
from phalanx.evaluation.cell import Outcome
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.rows import Measured, rows_of
from phalanx.evaluation.subjects import Plan, Subject, digest_of
from phalanx.nn.ensemble import Population
from phalanx.nn.member import Normalize
from phalanx.report.model import Report
from phalanx.specs import Linf
from phalanx.training.files import read_tensors

SHIFT = {"use": "toy"}
BIG = {"use": "toy", "params": {"threat": "linf:0.4", "size": 0.4}}


def run(model: Any, n: int = 40, attacks: Any = (SHIFT,), **rest: Any) -> Report:
    registry = rest.pop("registry", None) or toy_registry()[0]
    return phalanx.evaluate(model, images(n), attacks=attacks, registry=registry, **rest)


def row(report: Report, view: str, attack: str) -> Any:
    (found,) = (one for one in report.rows if (one.view, one.attack) == (view, attack))
    return found


def test_rows_of_a_deterministic_model() -> None:
    report = run(Plain(), attacks=[SHIFT, BIG])
    assert [(r.defense, r.view, r.attack, r.threat) for r in report.rows] == [
        ("Plain", "deployed", "toy", "linf:0.1"),
        ("Plain", "deployed", "toy:size=0.4", "linf:0.4"),
        ("Plain", "worst", "worst", "linf:0.1"),
        ("Plain", "worst", "worst", "linf:0.4"),
    ]
    small, big, worst_small, worst_big = report.rows
    assert small.clean_accuracy == big.clean_accuracy == 1.0
    assert small.robust_accuracy == worst_small.robust_accuracy == 1.0  # 0.25 away from the cut
    assert big.robust_accuracy == worst_big.robust_accuracy == 0.0
    assert (small.n, small.verdict, small.forwards, small.backwards) == (40, "screened", 0, 0)
    assert small.majority is small.worst_draw is small.note is None
    assert small.ci95 == pytest.approx((0.9124, 1.0), abs=1e-4)


def test_worst_includes_the_clean_images() -> None:
    data = images(20)
    flipped = (data.test.images, 1 - data.test.labels)  # clean accuracy 0, and the shift repairs it
    registry, _ = toy_registry()
    report = phalanx.evaluate(Plain(), flipped, attacks=[BIG], registry=registry, threat="linf:0.1")
    assert row(report, "deployed", "toy:size=0.4").clean_accuracy == 0.0
    assert report.worst[0].robust_accuracy == 0.0
    assert report.worst[0].conditional_accuracy is None


def test_over_a_support_each_function_answers_once() -> None:
    report = run(Mixed([0.5, 0.5, 0.5, 0.0], closed=True))  # the last one calls everything bright
    deployed = row(report, "deployed", "toy")
    assert {r.view for r in report.rows} == {"deployed", "one-draw", "expected", "worst"}
    assert deployed.clean_accuracy == deployed.robust_accuracy == 0.875
    assert deployed.majority == 1.0
    assert deployed.worst_draw == 0.5
    assert report.worst[0].robust_accuracy == 0.875


def test_without_support_there_are_twenty_fresh_draws() -> None:
    registry, _ = toy_registry()
    model = Mixed([0.5, 0.0], closed=False)
    report = run(model, n=400, registry=registry, views=["deployed"])
    deployed, worst = report.rows
    assert deployed.robust_accuracy == pytest.approx(0.75, abs=0.02)
    assert worst.robust_accuracy == pytest.approx(0.75, abs=0.03)
    assert deployed.robust_accuracy != deployed.clean_accuracy  # other draws than the clean cell's
    shares = deployed.robust_accuracy * 400 * 20
    assert shares == pytest.approx(round(shares))


def test_passes_are_those_of_the_attack_alone() -> None:
    pgd = {"use": "pgd", "params": {"steps": 3}}
    for model in (Plain(), Mixed([0.5, 0.4], closed=True), Mixed([0.5, 0.4], closed=False)):
        report = run(model, n=20, attacks=[pgd, "fgsm"])
        for one in report.rows:
            steps = {"pgd:steps=3": 3, "fgsm": 1}.get(one.attack)
            steps = 4 * len(model.views()) if steps is None else steps
            assert (one.forwards, one.backwards) == (steps, steps), one


def test_a_fixed_draw_view_is_opened_for_each_chunk_of_sixteen() -> None:
    registry, log = toy_registry()
    report = run(Mixed([0.5, 0.4], closed=True), n=40, registry=registry)
    sizes = [rows for rows, _, _ in log.seen]
    assert sizes == [40, 16, 16, 8, 40]  # deployed, one-draw, expected
    assert [rowwise for _, rowwise, _ in log.seen] == [False, True, True, True, True]
    note = row(report, "one-draw", "toy").note
    assert note == (
        "Drawn afresh for each of 3 chunks of 16 images, whose accuracies spread by 0.000 "
        "(standard deviation); few draws."
    )
    many = run(Mixed([0.5, 0.4], closed=True), n=320, views=["one-draw"]).rows[0]
    assert many.note is not None
    assert "20 chunks" in many.note
    assert "few draws" not in many.note


def test_chunks_get_different_draws() -> None:
    opened: list[int] = []
    model = Mixed([0.5, 0.4], closed=True)
    views = model.views()

    def watched(seed: int) -> Any:
        opened.append(seed)
        return views["one-draw"].open(seed)

    import dataclasses

    model.views = lambda: {"one-draw": dataclasses.replace(views["one-draw"], open=watched)}  # type: ignore[method-assign]
    run(model, n=300)
    first = [seed for seed in opened if seed]  # 0: asked how much memory it takes
    assert len(first) == len(set(first)) == 19
    opened.clear()
    run(model, n=48)
    assert [seed for seed in opened if seed] == first[
        :3
    ]  # the first rows' draws do not depend on how many follow


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    model = Mixed([0.5, 0.45, 0.0], closed=False)
    noise = {"use": "toy", "params": {"mode": "noise"}}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, second, third = (run(model, attacks=[noise], seed=seed).rows for seed in (0, 0, 1))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert first == second
    assert first != third
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_cell_does_not_depend_on_the_others() -> None:
    model = Mixed([0.5, 0.45, 0.0], closed=False)
    noise = {"use": "toy", "params": {"mode": "noise"}}
    alone = row(run(model, attacks=[noise], views=["expected"]), "expected", "toy:mode=noise")
    among = row(run(model, attacks=[SHIFT, noise, BIG]), "expected", "toy:mode=noise")
    assert alone == among


def test_another_batch_size_gives_the_same_outcome() -> None:
    registry, log = toy_registry()
    use = resolve_attack(SHIFT, threat=Linf(0.25), registry=registry)
    fgsm = resolve_attack({"use": "fgsm"}, threat=Linf(0.25), registry=registry)
    subject = Subject("plain", Plain(0.52), "w")
    reports = [
        evaluate_models([subject], images(70), Plan((use, fgsm)), registry=registry, batch=batch)
        for batch in (16, 64, 256)
    ]
    assert reports[0].rows == reports[1].rows == reports[2].rows
    assert [rows for rows, _, _ in log.seen] == [16, 16, 16, 16, 6, 64, 6, 70]
    with pytest.raises(ValueError, match="multiple of 16"):
        evaluate_models([subject], images(70), Plan((use,)), registry=registry, batch=20)


def test_modes_and_flags_come_back() -> None:
    model = Plain()
    model.train()
    model.network.cut.requires_grad_(False)
    run(model)
    assert model.training
    assert model.network.training
    assert not model.network.cut.requires_grad


# ---------------------------------------------------------------- the store


def test_a_repeated_call_computes_nothing(tmp_path: Path) -> None:
    registry, log = toy_registry()
    model = Mixed([0.5, 0.45, 0.0], closed=False)
    first = run(model, registry=registry, out=tmp_path)
    calls = log.calls
    assert calls == 5
    second = run(model, registry=registry, out=tmp_path)
    assert log.calls == calls
    assert second.rows == first.rows
    assert {path.name for path in tmp_path.iterdir()} == {
        "cells",
        "checks",
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
        "report.tex",
        "samples",
    }
    names = [path.name for path in (tmp_path / "cells").iterdir()]
    assert len(names) == 4
    assert all(name.endswith(".safetensors") for name in names)


def test_only_what_is_new_is_computed(tmp_path: Path) -> None:
    registry, log = toy_registry()
    model = Plain()
    run(model, registry=registry, out=tmp_path)
    assert log.calls == 1
    run(model, registry=registry, out=tmp_path, attacks=[SHIFT, BIG])
    assert log.calls == 2
    run(model, registry=registry, out=tmp_path, seed=1)
    assert log.calls == 3
    run(model, registry=registry, out=tmp_path, limit=30)
    assert log.calls == 4
    with torch.no_grad():
        model.network.cut += 0.01
    run(model, registry=registry, out=tmp_path)
    assert log.calls == 5


def test_a_stored_cell_is_tensors_and_json(tmp_path: Path) -> None:
    run(Plain(), out=tmp_path, n=40)
    (path, _) = sorted((tmp_path / "cells").iterdir())
    tensors, header = read_tensors(path)
    assert {name: t.shape for name, t in tensors.items()} == {"bits": (1, 40)}
    assert tensors["bits"].dtype == torch.uint8
    assert set(header) == {"block", "outcome", "sha256"}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swap"])
def test_a_damaged_cell_is_computed_again(tmp_path: Path, damage: str) -> None:
    registry, log = toy_registry()
    first = run(Plain(), registry=registry, out=tmp_path)
    files = sorted((tmp_path / "cells").iterdir())
    other = files[1].read_bytes()
    for path in files:
        data = path.read_bytes()
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        new = {"cut": data[:-5], "flip": flipped, "empty": b"", "swap": other}[damage]
        path.write_bytes(new)
        other = data
    with pytest.warns(PhalanxWarning, match="computed again"):
        second = run(Plain(), registry=registry, out=tmp_path)
    assert second.rows == first.rows
    assert log.calls == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Plain(), registry=registry, out=tmp_path)
    assert log.calls == 2


def test_an_interrupt_loses_the_running_cell_only(tmp_path: Path) -> None:
    registry, log = toy_registry()
    stop = {"use": "toy", "params": {"mode": "interrupt"}}
    with pytest.raises(KeyboardInterrupt):
        run(Plain(), registry=registry, out=tmp_path, attacks=[SHIFT, stop, BIG])
    assert len(list((tmp_path / "cells").iterdir())) == 2  # clean and the first attack
    assert log.calls == 2
    report = run(Plain(), registry=registry, out=tmp_path, attacks=[SHIFT, BIG])
    assert log.calls == 3
    assert len(report.rows) == 4


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import phalanx
from evaluation_toys import Plain, images, toy_registry
attacks = ["toy", "toy:size=0.05", "toy:mode=kill", "toy:size=0.4,threat=linf:0.4"]
registry = toy_registry()[0]
phalanx.evaluate(Plain(), images(40), attacks=attacks, registry=registry, out=sys.argv[2])
"""


def test_a_killed_process_loses_the_running_cell_only(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "r")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "r" / "cells").glob("*.safetensors"))) == 3
    registry, log = toy_registry()
    attacks = ["toy", "toy:size=0.05", "toy:size=0.4,threat=linf:0.4"]
    report = run(Plain(), registry=registry, out=tmp_path / "r", attacks=attacks)
    assert log.calls == 1
    assert report.rows == run(Plain(), attacks=attacks).rows


# ---------------------------------------------------------------- what goes wrong


def test_examples_that_break_the_rules_are_replaced(tmp_path: Path) -> None:
    rules = {"use": "toy", "params": {"mode": "break", "size": 0.4, "threat": "linf:0.4"}}
    registry, _ = toy_registry()
    text = "3 of 40 examples broke the threat linf:0.4 or the box, or were not finite"
    with pytest.warns(ValidityWarning, match=text) as caught:
        report = run(Plain(), attacks=[rules], registry=registry, out=tmp_path)
    assert len(caught) == 1
    found = report.rows[0]
    assert found.robust_accuracy == 3 / 40  # the three clean images
    assert found.note == (
        "3 examples outside budget or box, or not finite, were replaced by their clean images."
    )
    again = run(Plain(), attacks=[rules], registry=registry, out=tmp_path)
    assert again.rows == report.rows  # the count is stored, too


def test_without_a_ball_only_box_and_finiteness_count() -> None:
    rules = {"use": "toy", "params": {"mode": "break", "size": 0.4, "threat": "none"}}
    with pytest.warns(ValidityWarning, match="2 of 40 examples"):
        report = run(Plain(), attacks=[rules])
    assert report.rows[0].threat == "none"
    assert report.rows[0].robust_accuracy == 2 / 40


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("refuse", "toy: not today"),
        (
            "crash",
            "Toy failed on this view: RuntimeError: element 0 of tensors does not require grad",
        ),
        ("lookup", "Toy failed on this view: KeyError: 'estimator'"),
    ],
)
def test_a_cell_that_fails_is_told_and_the_others_go_on(mode: str, reason: str) -> None:
    bad = {"use": "toy", "params": {"mode": mode}}
    report = run(Plain(), attacks=[bad, BIG])
    assert [one.reason for one in report.failed] == [reason]
    assert report.failed[0].attack == f"toy:mode={mode}"
    assert [one.attack for one in report.rows] == ["toy:size=0.4", "worst"]
    assert report.rows[1].note is None  # what failed is of another threat
    report = run(Plain(), attacks=[bad, SHIFT])
    assert report.worst[0].note == "1 cell could not be run"


def test_square_under_l1_fails_alone() -> None:
    report = run(Plain(), attacks=["square:queries=5", "fgsm"], threat="l1:1")
    assert [one.attack for one in report.failed] == ["square:queries=5"]
    assert "cannot take threat l1:1" in report.failed[0].reason


def test_only_failures_are_an_error() -> None:
    told = re.escape("nothing could be evaluated:\n  toy:mode=refuse on deployed (linf:0.1): toy")
    with pytest.raises(EvaluationError, match=told):
        run(Plain(), attacks=[{"use": "toy", "params": {"mode": "refuse"}}])
    with pytest.raises(InputError, match="cannot take threat l1:1"):
        run(Plain(), attacks=["square:queries=5"], threat="l1:1")


def test_scores_that_are_not_finite() -> None:
    with pytest.raises(EvaluationError) as caught:
        run(NotFinite())
    assert "NotFinite answered 20 of 40 images with NaN or infinite scores" in str(caught.value)
    registry, _ = toy_registry()
    subjects = [Subject("bad", NotFinite(), "1"), Subject("good", Plain(), "2")]
    use = resolve_attack(SHIFT, threat=Linf(0.1), registry=registry)
    report = evaluate_models(subjects, images(40), Plan((use,)), registry=registry)
    assert {one.defense for one in report.rows} == {"good"}
    assert [(one.defense, one.view, one.attack) for one in report.failed] == [
        ("bad", "none", "none")
    ]


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InputError) as caught:
        run(Plain(), views=["expected"])
    assert str(caught.value) == "Plain has no view 'expected'; it has: deployed"
    data = images(10).test
    with pytest.raises(ThreatModelError, match="has no threat, and the data has no default one"):
        phalanx.evaluate(Plain(), (data.images, data.labels))
    with pytest.raises(DataError, match="has a label 7, but Plain tells 2 classes apart"):
        phalanx.evaluate(Plain(), (data.images, data.labels + 6), threat="linf:0.1")
    with pytest.raises(DataError, match="found list"):
        phalanx.evaluate(Plain(), [1, 2, 3])  # type: ignore[arg-type]
    subjects = [Subject("one", Plain(), "1"), Subject("one", Plain(), "2")]
    with pytest.raises(InputError, match="each under its own name"):
        evaluate_models(subjects, images(10), Plan(()))


def test_an_attack_named_twice_runs_once() -> None:
    registry, log = toy_registry()
    twice = [SHIFT, "toy:size=0.1", {"use": "toy", "params": {"threat": "linf:0.1"}}, BIG]
    report = run(Plain(), attacks=twice, registry=registry)
    assert log.calls == 2
    assert [one.attack for one in report.rows] == ["toy", "toy:size=0.4", "worst", "worst"]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(InputError, match=f"N >= 1, found {limit}"):
        run(Plain(), limit=limit)
    registry, _ = toy_registry()
    use = resolve_attack(SHIFT, threat=Linf(0.1), registry=registry)
    with pytest.raises(InputError, match=f"N >= 1, found {limit}"):
        evaluate_models([Subject("a", Plain(), "1")], images(4), Plan((use,), limit=limit))


def test_what_does_not_fit_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(InputError, match=r"takes a torch.nn.Module .*, found builtins.str"):
        run("resnet18")
    with pytest.raises(InputError, match=r"is a phalanx.defense.DefendedModel, found torch.nn"):
        evaluate_models([Subject("a", nn.Linear(2, 2), "1")], images(4), Plan(()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="toy has no test images"):
        run(Plain(), n=0)
    model = Plain()
    model.task = TASK
    wide = (torch.rand(3, 1, 4, 6), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"Plain takes images \(1, 4, 4\) of toy, .*\(1, 4, 6\)"):
        phalanx.evaluate(model, wide, threat="linf:0.1")
    assert model.asked == 0


def test_digests_see_what_is_not_stored() -> None:
    one, other = (nn.Sequential(Normalize([mean], [0.5])) for mean in (0.5, 0.4))
    assert not one.state_dict()
    assert digest_of(one) != digest_of(other)
    members = [Threshold(0.5)]
    assert digest_of(Population(members)) != digest_of(Population(members, granularity="batch"))


def test_digests_tell_models_apart() -> None:
    assert digest_of(Plain()) == digest_of(Plain())
    assert digest_of(Plain()) != digest_of(Plain(0.4))
    assert digest_of(Mixed([0.5], closed=True)) != digest_of(Plain())


def test_one_plan_for_each_model_and_what_stands_in_the_environment() -> None:
    registry, _ = toy_registry()
    uses = [resolve_attack(one, threat=Linf(0.1), registry=registry) for one in (SHIFT, BIG)]
    subjects = [Subject("a", Plain(), "1"), Subject("b", Mixed([0.5, 0.4], closed=True), "2")]
    plans = [Plan((uses[0],), limit=10), Plan((uses[1],), views=("expected",))]
    report = evaluate_models(subjects, images(30), plans, registry=registry, seed=5)
    assert [(r.defense, r.view, r.attack, r.n) for r in report.rows] == [
        ("a", "deployed", "toy", 10),
        ("a", "worst", "worst", 10),
        ("b", "expected", "toy:size=0.4", 30),
        ("b", "worst", "worst", 30),
    ]
    assert set(report.environment) == {
        "python",
        "torch",
        "art",
        "phalanx",
        "platform",
        "threads",
        "seed",
        "protocol",
        "limit",
        "data",
        "date",
    }
    assert report.environment["seed"] == 5
    assert report.environment["data"] == "toy"


def test_an_attacks_own_note_reaches_the_row() -> None:
    noted = {"use": "toy", "params": {"mode": "noted"}}
    assert run(Plain(), attacks=[noted]).rows[0].note == "Toy of 2 classes."
    two = run(Plain(), attacks=["apgd-t:steps=3", "apgd-dlr:steps=3"])
    assert [one.note for one in two.rows[:2]] == [
        "With 2 classes targeted DLR is undefined: z_t - z_y was ascended.",
        "With 2 classes DLR is undefined: the margin max z_j - z_y was ascended.",
    ]


def test_an_image_that_is_wrong_without_an_attack_stays_an_error():
    clean = Outcome(torch.tensor([[1, 0, 1]], dtype=torch.uint8), "exact", 3)
    attacked = Outcome(torch.tensor([[0, 1, 1]], dtype=torch.uint8), "exact", 3)
    row, worst = rows_of(
        "plain", clean, [Measured("deployed", "pgd", "linf:0.1", attacked)], seed=0
    )
    assert row.robust_accuracy == worst.robust_accuracy == pytest.approx(1 / 3)


def test_an_unknown_art_attack_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(UnknownComponentError, match="DeepFool"):
        phalanx.evaluate(
            Plain(), images(4), attacks=["fgsm", "art/DeepFoul"], threat="linf:0.1", out=tmp_path
        )
    assert not list(tmp_path.rglob("*.safetensors"))
