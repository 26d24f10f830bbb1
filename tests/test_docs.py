"""The Python of the documentation runs, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
BLOCKS = re.compile(r"```python\n(.*?)```\n\n```\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_first_example_prints_what_the_page_shows() -> None:
    """Words exactly; numbers as near as another processor's rounding leaves them."""
    ((code, shown),) = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    found = printed.getvalue()
    assert NUMBER.sub("#", found) == NUMBER.sub("#", shown)
    for here, there in zip(NUMBER.findall(found), NUMBER.findall(shown), strict=True):
        near = 0.02 if "." in there else 3
        assert float(here) == pytest.approx(float(there), abs=near)
