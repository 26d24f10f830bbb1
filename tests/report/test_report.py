from __future__ import annotations

import json
from pathlib import Path

import pytest

from phalanx.errors import ArtifactError
from phalanx.report.model import Report


def test_the_schema_of_the_json(report: Report) -> None:
    value = json.loads(json.dumps(report.to_json()))
    assert list(value) == ["schema", "rows", "environment", "failed", "notes"]
    assert value["schema"] == 1
    assert value["rows"][0] == {
        "defense": "none",
        "view": "deployed",
        "attack": "pgd:step=0.01,steps=100",
        "threat": "linf:0.1",
        "clean_accuracy": 0.95,
        "robust_accuracy": 0.0,
        "n": 500,
        "ci95": [0.0, 0.03],
        "forwards": 40.0,
        "backwards": 40.0,
        "verdict": "incomplete",
    }
    optional = {"note", "conditional_accuracy", "majority", "worst_draw"}
    assert set(value["rows"][2]) - set(value["rows"][0]) == optional
    assert value["failed"][0]["reason"] == "pip a < b"
    assert list(Report(report.rows).to_json()) == ["schema", "rows", "environment", "failed"]


def test_json_reads_back_and_newer_keys_are_left_out(report: Report) -> None:
    value = json.loads(json.dumps(report.to_json()))
    assert Report.from_json(value) == report
    value["of_a_later_version"] = [{"defense": "none"}]
    value["rows"][0]["later"] = 1
    assert Report.from_json(value) == report


def test_everything_reads_back_from_json(full: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(full.to_json()))) == full


def test_five_files_are_written_and_read(report: Report, tmp_path: Path) -> None:
    page = report.save(tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "report.html"
    names = ["report.csv", "report.html", "report.json", "report.md", "report.tex"]
    assert sorted(path.name for path in page.parent.iterdir()) == names
    assert Report.load(page.parent) == report


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is missing; give the folder that `phalanx evaluate --out` wrote"),
        ('{"schema": 1, "rows": [', "is damaged: "),
        ("[]", "is no report of Phalanx: it has no rows"),
        ('{"schema": 2, "rows": []}', "has schema 2, this version reads 1"),
        ('{"schema": 1, "rows": [{"defense": "a"}]}', "is damaged: "),
        ('{"schema": 1, "rows": 3}', "is damaged: "),
    ],
)
def test_what_is_no_report(content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ArtifactError) as caught:
        Report.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'report.json'} {told}")


def test_markdown_has_every_row_and_whole_tables(report: Report) -> None:
    text = report.to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    worst, every = lines[:4], lines[4:]
    assert {line.count("|") for line in worst} == {11}
    assert {line.count("|") for line in every} == {14}  # a random model's draws among them
    assert len(lines) == 2 * 2 + 2 + 5
    assert "| clm \\<b> | one-draw | fgsm | linf:0.1 | 95.0 % | 61.2 % | 64.4 % |" in text
    assert "| none | worst | worst | linf:0.1 | 95.0 % | 0.0 % | – | – | – |" in text
    assert "- none, deployed · art/X (linf:0.1): pip a < b" in text
    assert "- Small & quick." in text


def test_every_check_has_value_and_count_in_the_json(full: Report) -> None:
    checks = {c["id"]: c for found in full.to_json()["defenses"] for c in found["checks"]}
    assert {"id", "status", "value", "count", "threshold", "reason"} <= set.intersection(
        *(set(one) for one in checks.values())
    )
    assert (checks["transfer"]["value"], checks["transfer"]["count"]) == (None, None)
    assert (checks["black_box"]["value"], checks["black_box"]["count"]) == (0.0431, 11)
    assert "facts" not in full.to_json()["defenses"][-1]  # elsewhere what is absent is left out
