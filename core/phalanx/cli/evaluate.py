"""``phalanx evaluate``: attack trained runs through every view, and write a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.cli.common import echo, echo_json, load_registry, warn
from phalanx.errors import InputError

if TYPE_CHECKING:
    from phalanx.data.sets import Data
    from phalanx.evaluation.subjects import Plan, Subject
    from phalanx.registry import Registry
    from phalanx.specs import Threat
    from phalanx.training.artifacts import Run

EPILOG = """Examples:

  phalanx evaluate runs/pdd --out report

  phalanx evaluate runs/none runs/pdd --protocol standard --limit 1000 --out report

  phalanx evaluate runs/clm --attack pgd:step=2/255,steps=40 --attack art/DeepFool \\
      --view one-draw --norm linf --eps 0.3 --out report
"""


class Norm(StrEnum):
    """Norms of a ball."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the attacks; tables as `parse_attack` makes them."""

    protocol: str | None
    attacks: tuple[dict[str, Any], ...]
    views: tuple[str, ...]
    threat: Threat | None
    limit: int | None


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders, or weights files of runs.")
    ],
    out: Annotated[Path, typer.Option(help="Report folder; finished cells are kept in it.")],
    protocol: Annotated[
        str | None, typer.Option(help="quick or standard; else as the run file says, else quick.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:key=value,…] instead of a protocol; may be repeated."),
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="Attack this view alone; may be repeated.")
    ] = None,
    norm: Annotated[Norm | None, typer.Option(help="Norm of the threat, with --eps.")] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius in pixel units of [0, 1], such as 8/255.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N test images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data sets are; else $PHALANX_DATA.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Attack trained runs through every view, and write DIR/report.html, .json and .md.

    Each finished cell is kept in DIR: the same command again reads it and computes the rest.
    """
    if protocol is not None and attack:
        raise InputError("give --protocol or --attack, not both")
    asked = _Asked(
        protocol=protocol,
        attacks=tuple(_attack_table(one) for one in attack or ()),
        views=tuple(view or ()),
        threat=threat_of(norm, eps),
        limit=limit,
    )
    registry = load_registry()
    for table in asked.attacks:
        _known(table, registry)

    import torch

    from phalanx.cli.evaluate_progress import EvaluationProgress
    from phalanx.cli.report import print_report
    from phalanx.data import default_root
    from phalanx.data.sets import load_data
    from phalanx.evaluation.evaluate import evaluate_models
    from phalanx.training.artifacts import open_run

    opened = [open_run(path) for path in dict.fromkeys(runs)]
    data = load_data(_data_of(opened), root=data_root or default_root())
    subjects = subjects_of(opened)
    plans = [_plan(run, data, asked, registry) for run in opened]
    torch.set_num_threads(max(run.config.training.threads for run in opened))
    try:
        with EvaluationProgress() as progress:
            report = evaluate_models(
                subjects, data, plans, out=out, seed=seed, registry=registry, progress=progress
            )
    except KeyboardInterrupt:
        warn(f"interrupted; finished cells are kept in {out}: the same command again goes on")
        raise typer.Exit(130) from None
    page = report.save(out)
    if as_json:
        echo_json(report.to_json())
    else:
        print_report(report)
        echo(f"report: {page}")


def threat_of(norm: Norm | None, eps: str | None) -> Threat | None:
    """``--norm`` and ``--eps`` as a threat; None where neither is given.

    Raises:
        InputError: if only one is given, or eps is no radius of that norm.
    """
    from pydantic import ValidationError

    from phalanx.specs import L1, L2, Linf

    if norm is None and eps is None:
        return None
    if eps is None:
        raise InputError(f"--norm {norm} needs --eps, such as --norm {norm} --eps 8/255")
    if norm is None:
        raise InputError(f"--eps {eps} needs --norm linf, l2 or l1")
    kinds: dict[Norm, type[Linf | L2 | L1]] = {Norm.LINF: Linf, Norm.L2: L2, Norm.L1: L1}
    try:
        return kinds[norm](eps)
    except ValidationError:
        between = "between 0 and 1" if norm is Norm.LINF else "above 0"
        hint = f"; did you mean {eps}/255?" if eps.isdigit() and 1 < int(eps) <= 255 else ""
        raise InputError(
            f"--eps {eps}: a radius in {norm} is in pixel units of [0, 1], so it must be a number "
            f"{between}{hint}"
        ) from None


def subjects_of(runs: Sequence[Run]) -> list[Subject]:
    """The runs' models, named by component, or by folder where two runs would share that name."""
    from phalanx.evaluation.subjects import Subject
    from phalanx.runfile import config_hash

    folders = [run.path.parent if run.path.is_file() else run.path for run in runs]
    forms = [
        [run.config.defense.use for run in runs],
        [folder.resolve().name for folder in folders],
        [str(run.path) for run in runs],
    ]
    found = []
    for place, run in enumerate(runs):
        own = [names[place] for names in forms if names.count(names[place]) == 1]
        name = own[0] if own else str(run.path)
        found.append(Subject(name, run.model, run.sha256, config_hash(run.config)))
    return found


def _attack_table(text: str) -> dict[str, Any]:
    from phalanx.evaluation.labels import parse_attack

    return parse_attack(text)


def _known(table: dict[str, Any], registry: Registry) -> None:
    """Refuse an unknown attack before anything is opened."""
    from phalanx.specs import Kind

    registry.config_class(Kind.ATTACK, table["use"])


def _data_of(runs: Sequence[Run]) -> str:
    """The data set of all runs."""
    names = {run.config.data.use: run.path for run in runs}
    if len(names) > 1:
        told = ", ".join(f"{path} on {name}" for name, path in names.items())
        raise InputError(
            f"these runs were trained on different data ({told}); evaluate the runs of each data "
            "set in a call of their own"
        )
    return next(iter(names))


def _plan(run: Run, data: Data, asked: _Asked, registry: Registry) -> Plan:
    """What the command line says, else the run's own [evaluation]."""
    from phalanx.evaluation.protocol import load_protocol, resolve_attack, with_threat
    from phalanx.evaluation.subjects import Plan

    own = run.config.evaluation
    threat = asked.threat or own.threat or data.threat
    if asked.attacks:
        uses = tuple(
            resolve_attack(
                table, threat=threat, registry=registry, source=f"--attack {table['use']}"
            )
            for table in asked.attacks
        )
        return Plan(uses, asked.views, asked.limit)
    if asked.protocol is None and own.attacks:
        uses = own.attacks
        if asked.threat is not None:
            uses = tuple(with_threat(use, asked.threat) for use in uses)
        return Plan(uses, asked.views or own.views, asked.limit or own.limit)
    if asked.protocol is None:
        found = load_protocol(own.protocol, threat=threat, registry=registry)
        limit = asked.limit or own.limit or found.limit
        return Plan(found.attacks, asked.views or own.views, limit, found.name)
    found = load_protocol(asked.protocol, threat=threat, registry=registry)
    return Plan(found.attacks, asked.views, asked.limit or found.limit, found.name)
