"""What `bench.kills` counts: files written anew, and differences of two reports."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REPORT = {
    "environment": {"date": "2026-01-01", "seed": 0},
    "rows": [{"robust_accuracy": 0.5}, {"robust_accuracy": 0.25}],
    "defenses": [{"facts": {"latency": 0.001, "parameters": 7}}],
}


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.kills")


def changed(**over: Any) -> dict[str, Any]:
    return {**REPORT, **over}


def test_times_and_dates_are_no_differences(kills: Any) -> None:
    other = changed(
        environment={"date": "2027-07-07", "seed": 0},
        defenses=[{"facts": {"latency": 9.0, "parameters": 7}}],
    )
    assert kills.differences(REPORT, other) == []


@pytest.mark.parametrize(
    ("over", "places"),
    [
        (
            {"rows": [{"robust_accuracy": 0.5}, {"robust_accuracy": 0.26}]},
            ["/rows/1/robust_accuracy"],
        ),
        ({"rows": REPORT["rows"][:1]}, ["/rows"]),
        ({"notes": ["more"]}, ["/notes"]),
        ({"environment": {"date": "2026-01-01", "seed": 1}}, ["/environment/seed"]),
    ],
)
def test_anything_else_is_told_by_its_place(
    kills: Any, over: dict[str, Any], places: list[str]
) -> None:
    assert kills.differences(REPORT, changed(**over)) == places


def test_a_file_that_is_written_again_has_another_mark(kills: Any, tmp_path: Path) -> None:
    kept = tmp_path / "cells" / "a.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"1")
    (kept.parent / ".a.claim").touch()  # a lock is no finished work
    before = kills.marks(tmp_path)
    assert list(before) == ["cells/a.safetensors"]
    assert kills.marks(tmp_path) == before
    fresh = kept.with_suffix(".part")
    fresh.write_bytes(b"1")
    fresh.rename(kept)  # as our files are written
    assert kills.marks(tmp_path) != before
