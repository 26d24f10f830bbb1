"""A report: rows, what they were measured with, and what could not be run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from phalanx.errors import ArtifactError
from phalanx.evaluation.findings import (
    Check,
    Comparison,
    Curve,
    DefenseFindings,
    Example,
    Transfer,
)
from phalanx.evaluation.rows import Failure, Row
from phalanx.report import arrange, latex, markdown, sheet
from phalanx.training.files import write_atomically

_PARTS: dict[str, type[Any]] = {
    "defenses": DefenseFindings,
    "transfers": Transfer,
    "curves": Curve,
    "comparisons": Comparison,
    "examples": Example,
}
"""Key of the JSON -> what its list holds; a key stands there only where it is not empty."""
_OF_EVERY_CHECK = frozenset({"value", "count"})
"""Keys of a check that stand in the JSON as null where there is no number."""
JSON, HTML, MARKDOWN = "report.json", "report.html", "report.md"
LATEX, CSV = "report.tex", "report.csv"


@dataclass(frozen=True)
class Report:
    """What an evaluation came to.

    Attributes:
        rows: one per (defense, view, attack), and per (defense, threat) one whose view and attack
            are ``worst``: the number to compare defenses by. Where threats are of several kinds,
            one more of their union.
        environment: versions, platform, threads, seed, protocol, limit, data and date.
        failed: the cells that could not be run.
        notes: what else a reader has to know, in sentences.
        defenses: what was found of each defense besides its rows.
        transfers: matrices of accuracies on other models' examples.
        curves: accuracy against radius.
        comparisons: defenses against each other, image by image.
        examples: a fixed number of adversarial examples as pictures.
    """

    schema: ClassVar[int] = 1

    rows: tuple[Row, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    defenses: tuple[DefenseFindings, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    curves: tuple[Curve, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    examples: tuple[Example, ...] = ()

    @property
    def worst(self) -> tuple[Row, ...]:
        """The rows to compare defenses by; a paper's own protocol is no part of them."""
        return tuple(row for row in self.rows if arrange.is_worst(row))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data; optional keys stand there only where they are set.

        Value and count of a check stand there always, null where there is no such number.
        """
        notes = {"notes": list(self.notes)} if self.notes else {}
        return {
            "schema": self.schema,
            "rows": [row.model_dump(mode="json", exclude_none=True) for row in self.rows],
            "environment": dict(self.environment),
            "failed": [one.model_dump(mode="json") for one in self.failed],
            **notes,
            **{
                name: [_data(one) for one in found]
                for name in _PARTS
                if (found := getattr(self, name))
            },
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str = "the report") -> Report:
        """A report from JSON data; keys that a newer version added are left out.

        Raises:
            ArtifactError: if it is no report of schema 1.
        """
        if not isinstance(value, Mapping) or "rows" not in value:
            raise ArtifactError(f"{source} is no report of Phalanx: it has no rows")
        if value.get("schema") != cls.schema:
            raise ArtifactError(
                f"{source} has schema {value.get('schema')!r}, this version reads {cls.schema}"
            )
        try:
            return cls(
                rows=tuple(Row.model_validate(row) for row in value["rows"]),
                environment=dict(value.get("environment", {})),
                failed=tuple(Failure.model_validate(one) for one in value.get("failed", ())),
                notes=tuple(str(note) for note in value.get("notes", ())),
                **{
                    name: tuple(kind.model_validate(one) for one in value.get(name, ()))
                    for name, kind in _PARTS.items()
                },
            )
        except (ValidationError, TypeError, ValueError) as error:
            raise ArtifactError(f"{source} is damaged: {error}") from error

    @classmethod
    def load(cls, folder: Path | str) -> Report:
        """The report of a folder, from its ``report.json``.

        Raises:
            ArtifactError: if it is missing or damaged.
        """
        path = Path(folder) / JSON
        try:
            value = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{path} is missing; give the folder that `phalanx evaluate --out` wrote"
            ) from None
        except ValueError as error:
            raise ArtifactError(
                f"{path} is damaged: {error}; run the same `phalanx evaluate` again, which reads "
                "its finished cells and writes it anew"
            ) from error
        return cls.from_json(value, source=str(path))

    def to_markdown(self) -> str:
        """The report as Markdown tables."""
        return markdown.render(self)

    def to_latex(self) -> str:
        """The worst rows and all rows as LaTeX tables; they need booktabs and longtable."""
        return latex.render(self)

    def to_csv(self) -> str:
        """All rows under one header, accuracies as shares."""
        return sheet.render(self.rows)

    def to_html(self) -> str:
        """The report as one page that needs no network and no script."""
        from phalanx.report.html import render

        return render(self)

    def save(self, folder: Path | str) -> Path:
        """Write ``report.json``, ``.md``, ``.tex``, ``.csv``, ``.html``, each whole or not at all.

        All are made before the first is written, so that a fault in one leaves the old ones.

        Returns:
            The page's path.
        """
        folder = Path(folder)
        texts = {
            JSON: json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n",
            MARKDOWN: self.to_markdown(),
            LATEX: self.to_latex(),
            CSV: self.to_csv(),
            HTML: self.to_html(),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
        return folder / HTML


def _data(found: BaseModel) -> dict[str, Any]:
    """An entry of a list as JSON data."""
    data = found.model_dump(mode="json", exclude_none=True)
    if isinstance(found, DefenseFindings):
        data["checks"] = [_check(one) for one in found.checks]
    return data


def _check(check: Check) -> dict[str, Any]:
    data = check.model_dump(mode="json")
    return {key: x for key, x in data.items() if x is not None or key in _OF_EVERY_CHECK}
