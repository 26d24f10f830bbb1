"""Blocks, claims, time budgets, and models judged on each other's examples."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_toys import Mixed, NotFinite, Plain, images, toy_registry

import phalanx
from phalanx.errors import PhalanxWarning
from phalanx.evaluation import engine as engine_module
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.progress import Silence
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.specs import Linf
from phalanx.training.files import read_tensors
from phalanx.training.lock import claimed

SMALL, LARGE = {"use": "toy"}, {"use": "toy", "params": {"threat": "linf:0.4", "size": 0.4}}


def models(*subjects: Subject, n: int = 40, attacks: Any = (SMALL,), **rest: Any) -> Any:
    registry, log = toy_registry()
    uses = tuple(resolve_attack(one, threat=Linf(0.1), registry=registry) for one in attacks)
    return evaluate_models(subjects, images(n), Plan(uses), registry=registry, **rest), log


def alone(n: int, out: Path | None = None, **rest: Any) -> Any:
    return models(Subject("a", Plain(), "a"), n=n, out=out, attacks=(SMALL, LARGE), **rest)


# ---------------------------------------------------------------- blocks


def test_a_block_is_a_file_and_a_longer_evaluation_takes_whole_ones_over(tmp_path: Path) -> None:
    _, log = alone(300, tmp_path)
    assert len(list((tmp_path / "cells").glob("*.safetensors"))) == 6  # 3 cells of 2 blocks
    assert log.calls == 4
    report, log = alone(600, tmp_path)
    assert log.calls == 4  # of each attack the rows from 256 on, in two blocks
    assert report.rows == alone(600)[0].rows


def test_rows_do_not_depend_on_what_was_computed_before(tmp_path: Path) -> None:
    model = Mixed([0.5, 0.4, 0.6], closed=False)
    noise = {"use": "toy", "params": {"mode": "noise"}}
    whole, _ = models(Subject("m", model, "m"), n=520, attacks=(noise,), out=tmp_path)
    for path in sorted((tmp_path / "cells").glob("*.safetensors"))[::2]:
        path.unlink()
    again, log = models(Subject("m", model, "m"), n=520, attacks=(noise,), out=tmp_path)
    assert again.rows == whole.rows
    assert log.calls > 0


# ---------------------------------------------------------------- several processes


SECOND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_engine import alone
alone(2000, Path(sys.argv[2]), shard=(2, 2))
"""


def test_two_processes_share_the_blocks_and_both_have_the_whole_report(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", SECOND, str(Path(__file__).parent), str(tmp_path)]
    )
    report, log = alone(2000, tmp_path, shard=(1, 2))
    assert other.wait(60) == 0
    assert report.rows == alone(2000)[0].rows
    again, log = alone(2000, tmp_path)
    assert again.rows == report.rows
    assert log.calls == 0
    assert not list((tmp_path / "cells").glob(".*.claim"))


def test_a_block_in_another_hand_is_waited_for_and_taken_over_when_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(40, tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.safetensors")}
    (victim, data), *_ = kept.items()
    victim.unlink()
    code = (
        "import sys, time; from pathlib import Path; from phalanx.training.lock import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    place = victim.with_name(f".{victim.stem}.claim")
    holder = subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:  # it is killed without having finished
            holder.kill()
            holder.wait()

    monkeypatch.setattr(engine_module.time, "sleep", sleep)
    report, _ = alone(40, tmp_path)
    holder.stdout.close()
    assert len(looks) == 3
    assert victim.read_bytes() == data
    assert report.rows == alone(40)[0].rows


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    with claimed(tmp_path / "x"):
        assert (tmp_path / "x").exists()
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- a time budget


def test_time_that_is_over_leaves_whole_unions_on_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, log = toy_registry()
    start = time.monotonic()
    monkeypatch.setattr(
        engine_module.time, "monotonic", lambda: start + (1000.0 if log.calls >= 4 else 0.0)
    )
    uses = tuple(resolve_attack(o, threat=Linf(0.1), registry=registry) for o in (SMALL, LARGE))
    subject = Subject("a", Plain(), "a")
    report = evaluate_models(
        [subject], images(700), Plan(uses), registry=registry, time_budget=500.0, out=tmp_path
    )
    assert {row.n for row in report.rows} == {512}
    assert report.notes == (
        "a: the time budget was over after 512 of 700 images, which its rows are of; the same "
        "command goes on from there.",
    )
    assert report.rows == alone(512)[0].rows
    monkeypatch.undo()
    assert alone(700, tmp_path)[1].calls == 2  # the last block of each attack


def test_a_cell_without_a_single_block_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, log = toy_registry()
    start = time.monotonic()
    monkeypatch.setattr(
        engine_module.time, "monotonic", lambda: start + (1000.0 if log.calls >= 1 else 0.0)
    )
    uses = tuple(resolve_attack(o, threat=Linf(0.1), registry=registry) for o in (SMALL, LARGE))
    subject = Subject("a", Plain(), "a")
    report = evaluate_models(
        [subject], images(40), Plan(uses), registry=registry, time_budget=500.0
    )
    (failure,) = report.failed
    assert failure.reason == "left out: the time budget was over before its first block"
    assert [row.threat for row in report.rows] == ["linf:0.1"] * 2


# ---------------------------------------------------------------- cross-transfer


def test_models_are_judged_on_each_others_examples() -> None:
    near, far = Subject("near", Plain(0.5), "n"), Subject("far", Plain(0.9), "f")
    report, log = models(near, far, n=40, attacks=(SMALL, LARGE))
    assert log.calls == 4  # nothing is attacked twice
    rows = {(row.defense, row.view, row.attack, row.threat): row for row in report.rows}
    received = rows["near", "transfer", "from:far", "linf:0.4"]
    made = rows["far", "deployed", "toy:size=0.4", "linf:0.4"]
    # the toy moves every image alike whatever the model, so examples are the same for both
    assert (
        received.robust_accuracy
        == rows["near", "deployed", "toy:size=0.4", "linf:0.4"].robust_accuracy
    )
    assert (received.forwards, received.backwards) == (0, 0)
    assert made.n == received.n == 40


def test_a_model_that_fails_on_anothers_examples_does_not_end_the_others_cell() -> None:
    bright = Subject("bright", NotFinite(), "b")
    report, _ = models(Subject("a", Plain(), "a"), bright)
    assert {row.defense for row in report.rows} == {"a"}
    assert [(one.defense, one.attack) for one in report.failed] == [("bright", "none")]


def test_a_surrogate_has_no_rows_of_its_own() -> None:
    other = Subject("weights of a friend", Plain(0.9), "w", surrogate=True)
    report, _ = models(Subject("a", Plain(), "a"), other)
    assert {row.defense for row in report.rows} == {"a"}
    assert [row.attack for row in report.rows] == ["toy", "from:weights of a friend", "worst"]


def test_transfer_counts_in_the_worst_case_by_the_rule_for_draws() -> None:
    soft, hard = Mixed([0.5, 0.4], closed=False), Plain(0.52)
    report, _ = models(Subject("soft", soft, "s"), Subject("hard", hard, "h"), n=64)
    rows = {row.attack: row for row in report.rows if row.defense == "soft"}
    single = min(rows["toy"].robust_accuracy, rows["from:hard"].robust_accuracy)
    assert rows["worst"].robust_accuracy <= single + 0.1
    assert rows["from:hard"].majority is not None


# ---------------------------------------------------------------- kept examples


def test_kept_examples_are_the_images_that_were_judged(tmp_path: Path) -> None:
    registry, _log = toy_registry()
    data = images(300)
    phalanx.evaluate(
        Plain(), data, attacks=[SMALL], registry=registry, out=tmp_path, keep_examples=True
    )
    files = sorted((tmp_path / "examples").glob("*.safetensors"))
    found = [read_tensors(path) for path in files]
    rows = torch.cat([tensors["rows"] for tensors, _ in found])
    x = torch.cat([tensors["images"] for tensors, _ in found])[rows.argsort()]
    way = (1.0 - 2.0 * data.test.labels.float()).view(-1, 1, 1, 1)
    clean = data.test.fetch(slice(None)).x
    assert torch.equal(x, (clean + 0.1 * way).clamp(0, 1))
    assert sorted(rows.tolist()) == list(range(300))


def test_kept_examples_spare_an_attack_when_another_model_joins(tmp_path: Path) -> None:
    a, b = Subject("a", Plain(0.5), "a"), Subject("b", Plain(0.6), "b")
    models(a, out=tmp_path, keep_examples=True)
    report, log = models(a, b, out=tmp_path)
    assert log.calls == 1  # b's own
    assert report.rows == models(a, b)[0].rows


def test_damaged_examples_are_made_again(tmp_path: Path) -> None:
    a, b = Subject("a", Plain(0.5), "a"), Subject("b", Plain(0.6), "b")
    models(a, out=tmp_path, keep_examples=True)
    (path,) = (tmp_path / "examples").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(PhalanxWarning, match="the examples are made again"):
        report, log = models(a, b, out=tmp_path)
    assert log.calls == 2
    assert report.rows == models(a, b)[0].rows


def test_examples_that_are_asked_for_later_are_made_again(tmp_path: Path) -> None:
    a = Subject("a", Plain(0.5), "a")
    first, _ = models(a, out=tmp_path)
    second, log = models(a, out=tmp_path, keep_examples=True)
    assert log.calls == 1
    assert second.rows == first.rows
    assert len(list((tmp_path / "examples").iterdir())) == 1


# ---------------------------------------------------------------- progress


class Heard(Silence):
    """Keeps the calls that name a batch or a cell."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def batch_chosen(self, subject: str, *, images: int) -> None:
        self.calls.append(("batch", subject, images))

    def cell_started(self, label: str) -> None:
        self.calls.append(("cell", label))


def test_the_batch_is_told_for_each_model_before_the_first_cell() -> None:
    heard = Heard()
    both = (Subject("a", Plain(), "a"), Subject("b", Plain(0.52), "b"))
    models(*both, n=5, progress=heard)
    assert heard.calls[:3] == [("batch", "a", 256), ("batch", "b", 256), ("cell", "a, clean")]
    assert [call[0] for call in heard.calls].count("batch") == 2


def test_a_batch_that_was_given_is_not_told() -> None:
    heard = Heard()
    models(Subject("a", Plain(), "a"), n=5, progress=heard, batch=16)
    assert [call[0] for call in heard.calls] == ["cell", "cell"]
