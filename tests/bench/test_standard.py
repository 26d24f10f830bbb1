"""AutoAttack's stages one after another, kept batch by batch, and the page."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.standard")


@pytest.fixture
def case(standard: Any) -> Any:
    return dataclasses.replace(standard.CASES["mnist"], batch=4)


class Signs(nn.Module):
    """Two classes: whether the mean pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        value = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-value, value], 1)


def loaded(standard: Any, grey: float) -> Any:
    y = torch.ones(10, dtype=torch.long)
    y[9] = 0  # wrong without an attack
    return standard.Loaded(Signs(), Signs(), torch.full((10, 1, 2, 2), grey), y)


@pytest.fixture
def asked(standard: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each attack leaves the first image it gets right, and the budget on the last one."""
    calls: list[Any] = []

    def run(plan: Any, threat: Any, model: nn.Module, *seed: int) -> Any:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            calls.append((plan.kind, len(x), seed))
            made = x.clone()
            made[0] = 0.6
            made[-1] = 0.0
            return made

        return attack

    monkeypatch.setattr(standard, "torchattacks_run", run)
    return calls


def test_each_attack_gets_what_the_ones_before_left_and_finished_batches_stay(
    standard: Any, case: Any, asked: list[Any], tmp_path: Path
) -> None:
    file, given = tmp_path / "theirs.json", loaded(standard, 0.9)
    found = standard.theirs(case, given, file)
    assert [size for kind, size, _ in asked if kind == "apgd-ce"] == [4, 4, 1]
    assert {kind for kind, _, _ in asked} == {"apgd-ce", "apgd-t", "fab-t", "square"}
    assert sum(found["left"]) == 9  # 0.6 is still right, and what left the budget counts as clean
    assert found["outside"] == len(asked)
    before = len(asked)
    assert standard.theirs(case, given, file) == found
    assert len(asked) == before
    kept = json.loads(file.read_text())
    kept["settings"]["seed"] = 1
    file.write_text(json.dumps(kept))
    standard.theirs(case, given, file)
    assert len(asked) == 2 * before  # of other settings nothing is taken over


def test_broken_images_are_not_attacked_again(
    standard: Any, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def halved(*_: Any) -> Any:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            asked.append(len(x))
            made = x.clone()
            made[0] = 0.4
            return made

        return attack

    monkeypatch.setattr(standard, "torchattacks_run", halved)
    found = standard.theirs(case, loaded(standard, 0.7), tmp_path / "theirs.json")
    assert asked == [4, 4, 1, 4, 2, 4, 3]  # three batches of 9, then of 6, and of 4 - 1 = 3
    assert sum(found["left"]) == 2
    assert found["outside"] == 0


def test_the_page_has_the_difference_in_points(standard: Any) -> None:
    record = {
        "network": "a network",
        "threat": "linf:0.3",
        "images": 1000,
        "ours": 0.871,
        "torchattacks": 0.873,
        "broken_by_ours_alone": 3,
        "broken_by_torchattacks_alone": 1,
        "outside_ours": 0,
        "outside_torchattacks": 2,
    }
    last = standard.table([record]).splitlines()[-1]
    assert last == "| a network | linf:0.3 | 1000 | 87.10 | 87.30 | -0.20 | 3 | 1 | 0 | 2 |"
