"""``phalanx compare`` on untrained runs of the bundled digits, and on reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phalanx import cli
from phalanx.data import load_data
from phalanx.evaluation.findings import Comparison
from phalanx.evaluation.paired import holm
from phalanx.report.model import Report
from phalanx.runfile import read_run
from phalanx.training.artifacts import build_model, write_weights

FEW = ("--attack", "fgsm", "--limit", "20")


def make_run(folder: Path, *, seed: int = 0) -> Path:
    """A run folder with an untrained network."""
    config = read_run(
        {"seed": seed, "defense": {"use": "none", "params": {"backbone": "small_cnn"}}}
    )
    task = load_data("digits").task
    write_weights(folder, build_model(config, task), config, task, {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    parent = tmp_path_factory.mktemp("runs")
    one, two, three = (
        make_run(parent / name, seed=i) for i, name in enumerate(("one", "two", "three"))
    )
    return one, two, three


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def report_of(folder: Path, *found: tuple[str, str, float, tuple[float, float], float]) -> Path:
    """A report folder with these comparisons: names, difference, interval, p."""
    comparisons = tuple(
        Comparison(
            first=first,
            second=second,
            threat="linf:0.1",
            n=50,
            difference=difference,
            ci95=ci95,
            p_value=p,
            test="mcnemar",
        )
        for first, second, difference, ci95, p in found
    )
    Report(rows=(), comparisons=comparisons).save(folder)
    return folder


# ---------------------------------------------------------------- of a report


def test_lines_say_who_withstands_more_once_p_is_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = report_of(
        tmp_path / "r",
        ("none", "pdd", -0.125, (-0.2, -0.05), 0.001),
        ("none", "clm", 0.25, (0.1, 0.4), 0.01),
        ("pdd", "clm", 0.1, (0.0, 0.2), 0.04),
        ("pdd", "rls", 0.08, (-0.01, 0.17), 0.03),
    )
    code, shown, _ = call(capsys, "compare", folder)
    assert code == 0
    assert shown.splitlines() == [
        "none - pdd (linf:0.1, 50 images): -12.50 points (-20.00 to -5.00), p = 0.001, corrected "
        "0.004 (mcnemar): pdd withstands more",
        "none - clm (linf:0.1, 50 images): +25.00 points (+10.00 to +40.00), p = 0.01, corrected "
        "0.03 (mcnemar): none withstands more",
        "pdd - clm (linf:0.1, 50 images): +10.00 points (+0.00 to +20.00), p = 0.04, corrected "
        "0.06 (mcnemar): no significant difference",  # as 0.03 twice: Holm keeps the order
        "pdd - rls (linf:0.1, 50 images): +8.00 points (-1.00 to +17.00), p = 0.03, corrected "
        "0.06 (mcnemar): no significant difference",
    ]


def test_json_has_the_corrected_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [("a", "b", 0.1, (0.0, 0.2), 0.02), ("a", "c", 0.0, (-0.1, 0.1), 0.5)]
    code, shown, told = call(capsys, "compare", report_of(tmp_path / "r", *given), "--json")
    assert (code, told) == (0, "")
    found = json.loads(shown)
    assert [(one["first"], one["second"], one["p_holm"]) for one in found] == [
        ("a", "b", 0.04),
        ("a", "c", 0.5),
    ]
    assert found[0]["ci95"] == [0.0, 0.2]


def test_a_report_of_one_defense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, told = call(capsys, "compare", report_of(tmp_path / "r"))
    assert (code, shown) == (2, "")
    assert told == ("error: the report has no two defenses that were attacked at the same threat\n")


# ---------------------------------------------------------------- of runs


def test_runs_are_evaluated_and_compared_pair_by_pair(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    code, shown, told = call(capsys, "compare", *runs, *FEW, "--out", out)
    assert code == 0, told
    lines = [line for line in shown.splitlines() if " points (" in line]
    pairs = [line.partition(" (")[0] for line in lines]
    assert pairs == ["one - three", "one - two", "two - three"]
    assert shown.splitlines()[-3:] == lines  # after the table of rows
    report = Report.load(out)
    worst = {row.defense: row.robust_accuracy for row in report.worst}
    for one, line in zip(report.comparisons, lines, strict=True):
        assert one.difference == pytest.approx(worst[one.first] - worst[one.second])
        assert f"{100 * one.difference:+.2f} points" in line
        assert one.n == 20
    # afterwards the folder alone says the same, and --json is JSON and nothing else
    code, again, _ = call(capsys, "compare", out)
    assert again.splitlines() == lines
    code, shown, told = call(capsys, "compare", *runs, *FEW, "--out", out, "--json")
    assert code == 0
    assert [one["p_holm"] for one in json.loads(shown)] == pytest.approx(
        holm([one.p_value for one in report.comparisons])
    )
    assert "DEFENSE" in told
    assert told.count("(stored)") == 6


def test_what_is_asked_for_reaches_the_evaluation(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threat = ("--norm", "l2", "--eps", "0.5", "--seed", 3)
    code, _, told = call(
        capsys, "compare", *runs[:2], "--attack", "fgsm", "--limit", 5, *threat, "--out", tmp_path
    )
    assert code == 0, told
    report = Report.load(tmp_path)
    assert {row.threat for row in report.rows} == {"l2:0.5"}
    assert (report.environment["seed"], report.environment["limit"]) == (3, 5)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, ("--out", "r"), "{0} is one run: name two to compare, or a folder with a report"),
        (2, (), "runs are evaluated first: name a folder for that with --out DIR"),
        (2, ("--out", "r", "--eps", "0.1"), "--eps 0.1 needs --norm linf, l2 or l1"),
        (
            2,
            ("--out", "r", "--protocol", "quik"),
            "unknown protocol 'quik'; did you mean 'quick'? ",
        ),
    ],
)
def test_one_clear_message(
    count: int,
    options: tuple[str, ...],
    message: str,
    runs: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, told = call(capsys, "compare", *runs[:count], *options)
    assert (code, shown) == (2, "")
    assert told.startswith(f"error: {message.format(*runs)}")
    assert told.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = call(capsys, "compare", "--help")
    assert code == 0
    assert "  phalanx compare report" in shown
    assert "Raises" not in shown
