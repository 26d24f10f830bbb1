"""The store of cells on a bad day; damaged cells are in test_evaluate."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from evaluation_toys import Plain, images, toy_registry

import phalanx
from phalanx.defense import View
from phalanx.errors import OutputError, StorageError

SHIFT = {"use": "toy"}
BIG = {"use": "toy", "params": {"threat": "linf:0.4", "size": 0.4}}


def evaluate(out: Path, model: Any = None, **rest: Any) -> Any:
    registry, log = toy_registry()
    given = {"attacks": [SHIFT, BIG], "registry": registry, "out": out, **rest}
    return phalanx.evaluate(model or Plain(), images(20), **given), log


def test_a_full_disk_keeps_the_finished_cells(tmp_path: Path) -> None:
    fsync, left = os.fsync, [3]  # the clean block, pictures, the first attack's block

    def full(descriptor: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"safetensors cannot be written: the disk is full"):
            evaluate(tmp_path)
    cells = sorted(path.suffix for path in (tmp_path / "cells").iterdir())
    assert cells == [".safetensors"] * 2  # no unfinished file among them
    report, log = evaluate(tmp_path)
    assert log.calls == 1
    assert len(report.rows) == 4


def test_an_output_that_cannot_be_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = Plain()
    with pytest.raises(OutputError) as caught:
        evaluate(tmp_path / "file", model)
    told = f"out {tmp_path / 'file'} is a file; name a folder for the results"
    assert str(caught.value) == told
    assert model.asked == 0


def test_unfinished_files_are_cleared_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    old, young = (tmp_path / "cells" / f".{name}.x.part" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    evaluate(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


class NoDoor(Plain):
    """A view that cannot be opened beside one that can."""

    def views(self) -> dict[str, View]:
        def closed(seed: int) -> Any:
            raise LookupError(f"no key {seed > 0}")

        return {**super().views(), "closed": View(closed)}


def test_a_view_that_cannot_be_opened_ends_its_cell_alone(tmp_path: Path) -> None:
    report, _ = evaluate(tmp_path, NoDoor(), attacks=[SHIFT])
    (failure,) = report.failed
    assert (failure.view, failure.reason) == (
        "closed",
        "view 'closed' cannot be opened: LookupError: no key True",
    )
    assert [row.view for row in report.rows] == ["deployed", "worst"]
