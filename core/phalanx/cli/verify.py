"""``phalanx verify``: kept adversarial examples, checked and scored again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from phalanx.cli.common import echo, echo_json, files_checked

EPILOG = """Examples:

  phalanx evaluate runs/pdd --keep-examples --out report

  phalanx verify report runs/pdd
"""


def command(
    folder: Annotated[Path, typer.Argument(help="Report folder made with --keep-examples.")],
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="The runs it is of.")],
    data: Annotated[str | None, typer.Option(help="Data set, if not the runs'.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data sets are, else $PHALANX_DATA.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh draws.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the budget of kept adversarial examples, and score them on fresh draws.

    Ends with 1 if an example leaves its ball or the box.
    """
    from phalanx.cli.evaluate import subjects_of
    from phalanx.cli.evaluate_data import AskedData, data_of_runs
    from phalanx.evaluation.subjects import images_of
    from phalanx.evaluation.verify import problems, verify
    from phalanx.training.artifacts import open_run

    opened = [open_run(path) for path in dict.fromkeys(runs)]
    loaded = data_of_runs(opened, AskedData(data, data_root, None, False, told=files_checked()))
    found, others = verify(folder, subjects_of(opened), images_of(loaded), seed=seed)
    if as_json:
        echo_json([asdict(one) for one in found])
    else:
        for one in found:
            stored = "gone" if one.stored is None else f"{100 * one.stored:.2f} %"
            echo(
                f"{one.defense}, {one.view}, {one.attack} ({one.threat}): {one.images} examples, "
                f"{one.outside} outside; robust {stored} as stored, {100 * one.again:.2f} % again"
            )
        if others:
            echo(
                "1 file is of another model; name its run too to check it"
                if others == 1
                else f"{others} files are of other models; name their runs too to check them"
            )
    wrong = list(problems(found))
    for line in wrong:
        echo(line)
    if wrong:
        raise typer.Exit(1)
