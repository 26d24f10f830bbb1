"""``phalanx compare``: defenses against each other, image by image."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phalanx.cli import evaluate
from phalanx.cli.common import echo, echo_json
from phalanx.cli.threats import Norm
from phalanx.errors import InputError

if TYPE_CHECKING:
    from phalanx.evaluation.findings import Comparison

EPILOG = """Examples:

  phalanx compare runs/none runs/pdd runs/clm --limit 1000 --out report

  phalanx compare report
"""


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Two runs at least; or one folder with a report."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Report folder, for runs; finished cells are kept in it.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="As of evaluate.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="As of evaluate.")] = None,
    norm: Annotated[Norm | None, typer.Option(help="Norm of the threat, with --eps.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius, such as 8/255.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N test images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data sets are, else $PHALANX_DATA.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparisons as JSON.")] = False,
) -> None:
    """Compare worst-case accuracies on the same images: difference, interval, significance.

    Exact McNemar where all outcomes are 0 or 1, else a sign-flip permutation over images; p-values
    are corrected for the number of comparisons (Holm).
    """
    from phalanx.evaluation.paired import holm
    from phalanx.report.model import JSON, Report

    if len(runs) == 1 and (runs[0] / JSON).is_file():
        report = Report.load(runs[0])
    elif len(runs) < 2:
        raise InputError(f"{runs[0]} is one run: name two to compare, or a folder with a report")
    elif out is None:
        raise InputError("runs are evaluated first: name a folder for that with --out DIR")
    else:
        # with --json the table of rows goes where progress goes, so that what is printed is JSON
        aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        with aside:
            evaluate.command(
                out=out,
                runs=runs,
                protocol=protocol,
                attack=attack,
                norm=norm,
                eps=eps,
                limit=limit,
                seed=seed,
                data_root=data_root,
                as_json=False,
            )
        report = Report.load(out)
    if not report.comparisons:
        raise InputError("the report has no two defenses that were attacked at the same threat")
    corrected = holm([one.p_value for one in report.comparisons])
    if as_json:
        echo_json(
            [
                {**one.model_dump(mode="json"), "p_holm": p}
                for one, p in zip(report.comparisons, corrected, strict=True)
            ]
        )
        return
    for one, p in zip(report.comparisons, corrected, strict=True):
        echo(_line(one, p))


def _line(one: Comparison, p: float) -> str:
    lo, hi = (100 * bound for bound in one.ci95)
    if p >= 0.05:
        said = "no significant difference"
    else:
        said = f"{one.first if one.difference > 0 else one.second} withstands more"
    return (
        f"{one.first} - {one.second} ({one.threat}, {one.n} images): {100 * one.difference:+.2f} "
        f"points ({lo:+.2f} to {hi:+.2f}), p = {one.p_value:.2g}, corrected {p:.2g} ({one.test}): "
        f"{said}"
    )
