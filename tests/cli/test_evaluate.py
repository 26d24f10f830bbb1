"""``phalanx evaluate`` and ``phalanx report`` on untrained runs of the bundled digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from phalanx import cli
from phalanx.cli.evaluate import Checks
from phalanx.data import load_data
from phalanx.errors import AttackInapplicable
from phalanx.evaluation.findings import Tier
from phalanx.runfile import protocol_names, read_run
from phalanx.training.artifacts import build_model, write_weights
from phalanx.training.files import read_tensors


def make_run(folder: Path, *, seed: int = 0, data: str = "digits", **evaluation: Any) -> Path:
    """A run folder with an untrained network; digits' own task, whatever the data is called."""
    config = read_run(
        {
            "seed": seed,
            "data": {"use": data},
            "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
            "evaluation": evaluation,
        }
    )
    task = load_data("digits").task
    write_weights(folder, build_model(config, task), config, task, {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "plain")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


FEW = ("--attack", "fgsm", "--attack", "pgd:step=2/255,steps=2", "--limit", "20")


def test_a_run_is_evaluated_and_a_repeated_call_reads_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    code, shown, told = call(capsys, "evaluate", folder, *FEW, "--out", out)
    assert code == 0, told
    assert "none     deployed  pgd:step=2/255,steps=2  linf:0.1" in shown
    assert shown.splitlines()[0].split() == (
        ["DEFENSE", "VIEW", "ATTACK", "THREAT", "CLEAN", "ROBUST", "95", "%", "N", "VERDICT"]
    )
    assert f"report: {out / 'report.html'}" in shown
    assert told.startswith("none: 256 images at a time\n1/3  none, clean  ")
    assert "(stored)" not in told
    value = json.loads((out / "report.json").read_text())
    assert [row["attack"] for row in value["rows"]] == ["fgsm", "pgd:step=2/255,steps=2", "worst"]
    assert {row["n"] for row in value["rows"]} == {20}
    code, shown, told = call(capsys, "evaluate", folder, *FEW, "--out", out, "--json")
    assert code == 0
    assert told.count("(stored)") == 3
    assert json.loads(shown)["rows"] == value["rows"]


def test_threat_limit_and_seed_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--norm", "l2", "--eps", "0.5", "--limit", 5, "--seed", 3, "--view", "deployed")
    code, shown, _ = call(
        capsys, "evaluate", folder, "--attack", "fgsm", *options, "--out", tmp_path, "--json"
    )
    assert code == 0
    value = json.loads(shown)
    assert [row["threat"] for row in value["rows"]] == ["l2:0.5", "l2:0.5"]
    assert (value["environment"]["limit"], value["environment"]["seed"]) == (5, 3)


def test_the_runs_own_section_decides_where_nothing_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = [{"use": "fgsm"}, {"use": "bim", "params": {"steps": 2, "threat": "linf:0.2"}}]
    run = make_run(tmp_path / "own", attacks=attacks, threat="linf:0.05", limit=7)
    code, shown, _ = call(capsys, "evaluate", run, "--out", tmp_path / "r", "--json")
    assert code == 0
    found = [(row["attack"], row["threat"], row["n"]) for row in json.loads(shown)["rows"]]
    assert found == [
        ("fgsm", "linf:0.05", 7),
        ("bim:steps=2", "linf:0.2", 7),
        ("worst", "linf:0.05", 7),
        ("worst", "linf:0.2", 7),
    ]
    other = ("--norm", "linf", "--eps", "8/255", "--limit", 3)
    code, shown, _ = call(capsys, "evaluate", run, *other, "--out", tmp_path / "r", "--json")
    assert {(row["threat"], row["n"]) for row in json.loads(shown)["rows"]} == {("linf:8/255", 3)}
    code, shown, _ = call(
        capsys, "evaluate", run, "--attack", "fgsm", "--limit", 3, "--out", tmp_path / "r", "--json"
    )
    assert [(row["attack"], row["threat"]) for row in json.loads(shown)["rows"]] == [
        ("fgsm", "linf:0.05"),  # the run's attacks are left aside, its threat is not
        ("worst", "linf:0.05"),
    ]


def test_checks_on_request_and_a_protocol_from_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = tmp_path / "mine.toml"
    protocol.write_text('name = "mine"\nchecks = "core"\nattacks = [{ use = "fgsm" }]\n')
    own = make_run(tmp_path / "own", attacks=[{"use": "fgsm"}], threat="linf:0.05", limit=4)
    out = ("--limit", 4, "--json", "--out", tmp_path / "r")
    for asked, core in (
        ((folder, "--protocol", protocol), True),
        ((folder, "--protocol", protocol, "--checks", "free"), False),
        ((folder, "--attack", "fgsm", "--checks", "core"), True),
        ((own, "--checks", "core"), True),
        ((own,), False),
    ):
        code, shown, told = call(capsys, "evaluate", *asked, *out)
        assert code == 0, told
        value = json.loads(shown)
        ids = {check["id"] for check in value["defenses"][0]["checks"]}
        assert ("unbounded" in ids) is core
        assert {row["attack"] for row in value["rows"]} == {"fgsm", "worst"}
    assert [one.value for one in Checks] == [*get_args(Tier)]


def test_runs_that_share_a_component_go_by_their_folders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = make_run(tmp_path / "second", seed=1)
    third = make_run(tmp_path / "deeper" / "second", seed=2)
    weights = second / "weights.safetensors"
    one = ("--attack", "fgsm", "--limit", 5, "--json")
    code, shown, _ = call(capsys, "evaluate", folder, second, *one, "--out", tmp_path / "r")
    assert code == 0
    names = dict.fromkeys(row["defense"] for row in json.loads(shown)["rows"])
    assert list(names) == ["plain", "second"]
    code, shown, _ = call(capsys, "evaluate", weights, third, *one, "--out", tmp_path / "r2")
    names = dict.fromkeys(row["defense"] for row in json.loads(shown)["rows"])
    assert list(names) == [str(weights), str(third)]


def test_a_failed_cell_is_told_and_only_failures_are_exit_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1 = ("--norm", "l1", "--eps", "1", "--limit", 5, "--out", tmp_path)
    square = ("--attack", "square:queries=2")
    code, shown, told = call(capsys, "evaluate", folder, *square, "--attack", "fgsm", *l1)
    assert code == 0
    told_of = "could not be run: none, deployed, square:queries=2 (l1:1): attack Square cannot take"
    assert told_of in shown
    code, shown, told = call(capsys, "evaluate", folder, *square, *l1)
    assert code == 2
    assert "error: nothing could be evaluated:" in told

    from phalanx.attacks.gradient import FGSM

    def refuses(*_: object, **__: object) -> None:
        raise AttackInapplicable("no package x: pip install x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FGSM, "__call__", refuses)
        code, _, told = call(
            capsys, "evaluate", folder, "--attack", "fgsm", "--limit", 3, "--out", tmp_path
        )
    assert code == 1
    assert "error: nothing could be evaluated:\n  fgsm on deployed (linf:0.1): no package x" in told


def test_an_interrupt_keeps_what_is_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from phalanx.attacks.gradient import PGD

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PGD, "__call__", interrupted)
        code, _, told = call(capsys, "evaluate", folder, *FEW, "--out", tmp_path)
    assert code == 130
    assert f"finished cells are kept in {tmp_path}" in told
    code, _, told = call(capsys, "evaluate", folder, *FEW, "--out", tmp_path)
    assert code == 0
    assert told.count("(stored)") == 2


# ---------------------------------------------------------------- shards, time, examples


def test_shards_of_one_folder_each_report_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for shard in ("2/2", "1/2"):
        options = (*FEW, "--shard", shard, "--json")
        code, shown, told = call(capsys, "evaluate", folder, *options, "--out", tmp_path / "r")
        assert code == 0, told
        rows.append(json.loads(shown)["rows"])
    assert rows[0] == rows[1]
    assert told.count("(stored)") == 3  # the first had nobody to share with, and did all
    code, shown, _ = call(capsys, "evaluate", folder, *FEW, "--json", "--out", tmp_path / "whole")
    assert json.loads(shown)["rows"] == rows[0]


def test_time_that_is_over_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = call(
        capsys, "evaluate", folder, *FEW, "--time-budget", "1.5h", "--json", "--out", tmp_path / "a"
    )
    assert code == 0
    assert "notes" not in json.loads(shown)
    code, _, told = call(
        capsys, "evaluate", folder, *FEW, "--time-budget", "0s", "--out", tmp_path / "b"
    )
    assert code == 1
    assert "fgsm on deployed (linf:0.1): left out: the time budget was over before its" in told


def test_examples_are_kept_on_request(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = call(capsys, "evaluate", folder, *FEW, "--out", tmp_path)
    assert code == 0
    assert not (tmp_path / "examples").exists()
    code, _, told = call(capsys, "evaluate", folder, *FEW, "--keep-examples", "--out", tmp_path)
    assert code == 0
    assert told.count("(stored)") == 1  # the clean images; examples had to be made again
    files = list((tmp_path / "examples").glob("*.safetensors"))
    assert len(files) == 2
    assert read_tensors(files[0])[0]["images"].shape == (20, 1, 8, 8)


def test_examples_of_a_surrogate_are_withstood_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    friend, third = (make_run(tmp_path / name, seed=i) for i, name in enumerate(("f", "t"), 1))
    one = ("--attack", "square:queries=5", "--attack", "fgsm", "--limit", 20, "--json")
    others = ("--surrogate", friend, "--surrogate", third)
    code, shown, told = call(capsys, "evaluate", folder, *one, *others, "--out", tmp_path / "r")
    assert code == 0, told
    value = json.loads(shown)
    rows = {row["attack"]: row for row in value["rows"]}
    # both are called none, as the run is, so their folders name them
    assert list(rows) == ["square:queries=5", "fgsm", "from:f", "from:t", "worst"]
    assert {row["defense"] for row in value["rows"]} == {"none"}
    assert rows["from:f"]["view"] == "transfer"
    assert rows["worst"]["robust_accuracy"] <= rows["from:f"]["robust_accuracy"]
    cells = [line for line in told.splitlines() if "f, deployed" in line]
    assert [cell.split(", ")[-1].split(" ")[0] for cell in cells] == ["fgsm"]  # no gradient, no use


def test_a_surrogate_of_the_runs_own_name_is_told_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    friend = make_run(tmp_path / "friend", seed=1)
    one = ("--attack", "fgsm", "--limit", 5, "--json", "--surrogate", friend)
    code, shown, _ = call(capsys, "evaluate", folder, *one, "--out", tmp_path / "r")
    assert code == 0
    attacks = [row["attack"] for row in json.loads(shown)["rows"]]
    assert attacks == ["fgsm", "from:surrogate none", "worst"]
    code, _, told = call(
        capsys, "evaluate", folder, "--surrogate", tmp_path / "nobody", "--out", tmp_path / "r"
    )
    assert (code, "does not exist" in told) == (2, True)


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--norm", "linf", "--eps", "8"),
            "--eps 8: a radius in linf is in pixel units of [0, 1], so it must be a number between "
            "0 and 1; did you mean 8/255?",
        ),
        (
            ("--norm", "linf", "--eps", "1.5"),
            "--eps 1.5: a radius in linf is in pixel units of [0, 1], so it must be a number "
            "between 0 and 1",
        ),
        (
            ("--norm", "l2", "--eps", "-1"),
            "--eps -1: a radius in l2 is in pixel units of [0, 1], so it must be a number above 0",
        ),
        (("--norm", "linf"), "--norm linf needs --eps, such as --norm linf --eps 8/255"),
        (("--eps", "0.1"), "--eps 0.1 needs --norm linf, l2 or l1"),
        (("--view", "expected"), "none has no view 'expected'; it has: deployed"),
        (
            ("--protocol", "standart"),
            "unknown protocol 'standart'; did you mean 'standard'? known: KNOWN",
        ),
        (
            ("--attack", "pgd:steps"),
            "attack 'pgd:steps': 1 problem\n  'steps' is not of the form key=value, as in "
            "pgd:steps=40,step=2/255",
        ),
        (
            ("--attack", "pgd:steps=0"),
            "--attack pgd: 1 problem\n  params.steps: should be greater than 0, found 0",
        ),
        (
            ("--attack", "pgd", "--protocol", "quick"),
            "give --protocol or --attack, not both",
        ),
        *(
            (
                ("--attack", "fgsm", "--shard", shard),
                f"--shard is i/n with 1 <= i <= n, such as 1/2, found {shard!r}",
            )
            for shard in ("0/2", "3/2", "2", "a/b", "1/", "-1/2", "1/2/3", "0/0")
        ),
        (
            ("--attack", "fgsm", "--time-budget", "soon"),
            "command: 1 problem\n  --time-budget: 'soon' is no duration; write 90s, 25m or 1.5h",
        ),
    ],
)
def test_one_clear_message(
    options: tuple[str, ...],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown, told = call(capsys, "evaluate", folder, *options, "--out", tmp_path / "r")
    assert (code, shown) == (2, "")
    known = ", ".join(protocol_names())  # with those of the plugins that are installed
    assert told == f"error: {message.replace('KNOWN', known)}\n"
    assert not (tmp_path / "r").exists()


def test_an_unknown_attack_is_told_with_near_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = call(capsys, "evaluate", folder, "--attack", "apdg-ce", "--out", tmp_path)
    assert code == 2
    assert "unknown attack 'apdg-ce'" in told
    assert "apgd-ce" in told


def test_runs_that_are_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "r")
    (tmp_path / "empty").mkdir()
    code, _, told = call(capsys, "evaluate", tmp_path / "nothing", *out)
    assert (code, "does not exist" in told) == (2, True)
    code, _, told = call(capsys, "evaluate", tmp_path / "empty", *out)
    assert (code, "is not a run folder" in told) == (2, True)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    code, _, told = call(capsys, "evaluate", broken, *out)
    assert (code, "is damaged" in told) == (2, True)
    other = make_run(tmp_path / "other", data="mnist")
    code, _, told = call(capsys, "evaluate", folder, other, *out)
    assert (code, "these runs were trained on different data" in told) == (2, True)
    assert "Traceback" not in told


# ---------------------------------------------------------------- phalanx report


def test_a_report_is_written_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "evaluate", folder, "--attack", "fgsm", "--limit", 5, "--out", tmp_path)
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    code, shown, _ = call(capsys, "report", tmp_path)
    assert code == 0
    assert "fgsm" in shown
    assert (tmp_path / "report.html").read_bytes() == page
    code, shown, _ = call(capsys, "report", tmp_path, "--format", "md")
    assert shown == (tmp_path / "report.md").read_text()
    code, shown, _ = call(capsys, "report", tmp_path, "--format", "json")
    assert json.loads(shown) == json.loads((tmp_path / "report.json").read_text())


def test_notes_are_printed_with_the_table_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1 = ("--norm", "l1", "--eps", "1", "--attack", "square:queries=2", "--attack", "fgsm")
    call(capsys, "evaluate", folder, *l1, "--limit", 5, "--out", tmp_path)
    path = tmp_path / "report.json"
    notes = ["a: the time budget was over after 256 of 500 images.", "Two\nlines."]
    path.write_text(json.dumps({**json.loads(path.read_text()), "notes": notes}))
    code, shown, _ = call(capsys, "report", tmp_path)
    assert code == 0
    *_, sentence, first, second, failed, page = shown.splitlines()
    assert sentence.startswith("none, masking ")
    assert [first, second] == [f"note: {notes[0]}", "note: Two lines."]
    assert failed.startswith("could not be run: none, deployed, square:queries=2 (l1:1): ")
    assert page.startswith("report: ")
    code, shown, _ = call(capsys, "report", tmp_path, "--format", "json")
    assert (json.loads(shown)["notes"], "note: " in shown) == (notes, False)


def test_no_report_to_write_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = call(capsys, "report", tmp_path)
    assert code == 2
    assert told == (
        f"error: {tmp_path / 'report.json'} is missing; give the folder that `phalanx evaluate "
        "--out` wrote\n"
    )
    (tmp_path / "report.json").write_text("{")
    code, _, told = call(capsys, "report", tmp_path)
    assert (code, "is damaged" in told) == (2, True)


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = call(capsys, name, "--help")
    assert code == 0
    assert "Examples:" in shown
    assert f"  phalanx {name} " in shown
    assert "Raises" not in shown
