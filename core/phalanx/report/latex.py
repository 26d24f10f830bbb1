"""A report's tables for a LaTeX document: the worst rows, then all rows.

It is to be read into a document with the packages booktabs and longtable; its first lines say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from phalanx.evaluation.rows import Row
from phalanx.report import arrange
from phalanx.report.figures import ABSENT, one_line

if TYPE_CHECKING:
    from phalanx.report.model import Report

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "[": "{[}",  # at the start of a line it would belong to the rule above
        "*": "{*}",
        "`": "{`}",
        "'": "{'}",
        "·": r"\textperiodcentered{}",
        "×": r"\texttimes{}",
    }
)
_HYPHENS = re.compile("-(?=-)")
"""Two would become a dash."""
HEAD = """\
% Tables of a robustness report, written by Phalanx. In the document:
%   \\usepackage{booktabs,longtable}  \\usepackage[T1]{fontenc}
%   \\input{report}"""


def render(report: Report) -> str:
    """Both tables; accuracies in per cent."""
    ranked = arrange.ranked(report)
    parts = [HEAD]
    if ranked:
        parts.append(_worst(report, ranked))
    if report.rows:
        parts.append(_all(arrange.rows(report)))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return _HYPHENS.sub("-{}", one_line(text).translate(_ESCAPES)).replace("–", "--")


def _worst(report: Report, ranked: Sequence[Row]) -> str:
    masked = bool(report.defenses)
    columns = "ll" + "r" * 4 + ("ll" if masked else "l")
    head = ["Defense", "Threat", *_NUMBERS, "Verdict", *(["Masking"] if masked else [])]
    lines = (
        [
            row.defense,
            row.threat,
            *_numbers(row),
            row.verdict,
            *([arrange.masking(report, row.defense)] if masked else []),
        ]
        for row in ranked
    )
    return "\n".join(
        [
            r"\begin{table}[tb]",
            r"\centering",
            r"\caption{Worst-case accuracy, the most trusted verdict first.}",
            r"\small",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _line(head),
            r"\midrule",
            *map(_line, lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _all(rows: Sequence[Row]) -> str:
    named = any(row.protocol for row in rows)
    drawn = any(arrange.is_drawn(row) for row in rows)
    columns = "llll" + "r" * (7 if drawn else 5) + ("ll" if named else "l")
    head = ["Defense", "View", "Attack", "Threat", *_NUMBERS, _CONDITIONAL]
    head += [*(_DRAWS if drawn else ()), "Verdict", *(["Protocol"] if named else [])]
    lines = (
        [
            row.defense,
            row.view,
            row.attack,
            row.threat,
            *_numbers(row),
            _share(row.conditional_accuracy),
            *((_share(row.majority), _share(row.worst_draw)) if drawn else ()),
            row.verdict,
            *([row.protocol or ""] if named else []),
        ]
        for row in rows
    )
    return "\n".join(
        [
            r"{\footnotesize",
            rf"\begin{{longtable}}{{{columns}}}",
            r"\caption{Every attack through every view.}\\",
            r"\toprule",
            _line(head),
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *map(_line, lines),
            r"\end{longtable}",
            r"}",
        ]
    )


_NUMBERS = ("Clean (%)", "Robust (%)", "95 % interval", "N")
_CONDITIONAL = "Of clean-correct (%)"
_DRAWS = ("Right in most draws (%)", "Worst draw (%)")


def _numbers(row: Row) -> Iterator[str]:
    low, high = row.ci95
    yield _share(row.clean_accuracy)
    yield _share(row.robust_accuracy)
    yield f"{100 * low:.1f}{ABSENT}{100 * high:.1f}"
    yield str(row.n)


def _share(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
