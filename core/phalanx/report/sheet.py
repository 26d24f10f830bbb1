"""A report's rows as comma-separated values: for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from phalanx.evaluation.rows import Row

COLUMNS = (
    "defense",
    "view",
    "attack",
    "threat",
    "clean_accuracy",
    "robust_accuracy",
    "ci95_low",
    "ci95_high",
    "n",
    "forwards",
    "backwards",
    "verdict",
    "conditional_accuracy",
    "majority",
    "worst_draw",
    "protocol",
    "note",
)
"""Fields of a row, its interval as two; what a row does not have is empty."""


def render(rows: Iterable[Row]) -> str:
    """One header, then each row; accuracies as shares with all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row.model_dump(mode="json", exclude={"ci95"}, exclude_none=True)
        low, high = row.ci95
        writer.writerow({**cells, "ci95_low": low, "ci95_high": high})
    return text.getvalue()
