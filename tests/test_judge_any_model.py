"""The example prints what it promises."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "judge_any_model.py"


def test_judge_any_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *rows, checked = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["torch", "timm", "ART"]
    assert checked == "checked: FGSM's accuracies repeated with torch and with ART alone"
    assert not list(tmp_path.iterdir())
    assert len(EXAMPLE.read_text().splitlines()) < 80
