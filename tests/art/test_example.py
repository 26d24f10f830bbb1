"""The example prints what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "art_pipeline.py"


def test_art_pipeline(tmp_path):
    pytest.importorskip("phalanx_pdd", reason="the example trains this plugin's defense")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *rows, checked = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["clean", "FGSM", "PGD-20"]
    assert checked == "checked: budgets kept, numbers repeated on the reloaded model"
    assert not list(tmp_path.iterdir())
