"""``phalanx evaluate``: attack trained runs, or a foreign model, and write a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.cli.common import echo, echo_json, files_checked, load_registry
from phalanx.cli.evaluate_data import AskedData, data_of_model, data_of_runs
from phalanx.cli.foreign_model import asked_for
from phalanx.cli.stopping import keeps
from phalanx.cli.threats import Norm, threat_of
from phalanx.cli.train import seconds
from phalanx.errors import InputError
from phalanx.storage import check_output, keeping

if TYPE_CHECKING:
    from phalanx.config import EvaluationConfig
    from phalanx.data.sets import Data
    from phalanx.evaluation.findings import Tier
    from phalanx.evaluation.subjects import Plan, Subject
    from phalanx.registry import Registry
    from phalanx.specs import Threat
    from phalanx.training.artifacts import Run

EPILOG = """Examples:

  phalanx evaluate runs/pdd --out report

  phalanx evaluate runs/none runs/pdd --protocol standard --limit 1000 --out report

  phalanx evaluate runs/clm --attack pgd:step=2/255,steps=40 --attack art/DeepFool \\
      --view one-draw --norm linf --eps 0.3 --out report

  phalanx evaluate --model resnet20_cifar --model-option shortcut=pad --weights FILE.safetensors \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data cifar10 --norm linf --eps 0.5/255 \\
      --limit 512 --out report

  phalanx evaluate --model resnet18 --weights FILE --data folder --data-root ~/photos \\
      --norm linf --eps 4/255 --out report
"""


class Checks(Enum):
    """Tiers of checks, as `phalanx.evaluation.findings.Tier`."""

    FREE = "free"
    CORE = "core"
    FULL = "full"


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the attacks; tables as `parse_attack` makes them."""

    protocol: str | None
    attacks: tuple[dict[str, Any], ...]
    views: tuple[str, ...]
    threat: Threat | None
    limit: int | None
    checks: Tier | None


def command(
    out: Annotated[Path, typer.Option(help="Report folder; finished cells are kept in it.")],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN…]", help="Run folders, or weights files of runs."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead of RUN: a classifier of timm's registry.")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(help="key=value of --model; may be repeated.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights of --model.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="Of --model; absent: the data set's.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Of --model's images in [0, 1], one number a channel: a,b,c.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Likewise; absent: the data set's.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set, for --model.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="quick, standard, adaptive, union, clm/paper …, or FILE.toml; absent: the run "
            "file's."
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:key=value,…] instead of a protocol; may be repeated."),
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="Attack this view alone; may be repeated.")
    ] = None,
    checks: Annotated[
        Checks | None,
        typer.Option(help="Validity checks that follow; absent: as the protocol says."),
    ] = None,
    norm: Annotated[Norm | None, typer.Option(help="Norm of the threat, with --eps.")] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius in pixel units of [0, 1], such as 8/255.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N test images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where the data sets are, else $PHALANX_DATA; or the folder of photos."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Of --data folder: side of --model's images.")
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Of a folder: leave out files that are no images."),
    ] = False,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(help="A run whose adversarial examples the models must withstand too."),
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: this is process i of n that share --out; each reports all.")
    ] = "1/1",
    time_budget: Annotated[
        str | None, typer.Option(help="Such as 25m: as many images as fit; says what is left out.")
    ] = None,
    keep_examples: Annotated[
        bool, typer.Option("--keep-examples", help="Keep adversarial images, for phalanx verify.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Attack trained runs, or somebody's classifier, and write DIR/report.html and its other forms.

    Each finished cell is kept in DIR: the same command again reads it and computes the rest.
    """
    check_output(out)
    foreign = asked_for(
        model, options=model_option or (), weights=weights, classes=classes, mean=mean, std=std
    )
    if (foreign is None) == (not runs):
        raise InputError("give RUN… or --model NAME with its --weights FILE, one of the two")
    if protocol is not None and attack:
        raise InputError("give --protocol or --attack, not both")
    asked = _Asked(
        protocol=protocol,
        attacks=tuple(_attack_table(one) for one in attack or ()),
        views=tuple(view or ()),
        threat=threat_of(norm, eps),
        limit=limit,
        checks=None if checks is None else checks.value,
    )
    registry = load_registry()
    for table in asked.attacks:
        _known(table, registry)

    import torch

    from phalanx.cli.evaluate_progress import EvaluationProgress
    from phalanx.cli.foreign_model import subject_of
    from phalanx.cli.report import print_report
    from phalanx.config import EvaluationConfig
    from phalanx.evaluation.evaluate import evaluate_models
    from phalanx.evaluation.planning import surrogate_plan
    from phalanx.training.artifacts import open_run

    opened = [open_run(path) for path in dict.fromkeys(runs or ())]
    wanted = AskedData(data, data_root, image_size, skip_unreadable, told=files_checked())
    if foreign is not None:
        loaded = data_of_model(foreign, wanted)
        subjects, own = [subject_of(foreign, loaded)], [EvaluationConfig()]
    else:
        loaded = data_of_runs(opened, wanted)
        subjects, own = subjects_of(opened), [run.config.evaluation for run in opened]
        torch.set_num_threads(max(run.config.training.threads for run in opened))
    plans = [
        _plan(subject, one, loaded, asked, registry)
        for subject, one in zip(subjects, own, strict=True)
    ]
    others = surrogates_of(surrogate or (), [one.name for one in subjects])
    subjects += others
    shown = surrogate_plan(*plans)
    plans += [shown for _ in others]
    kept = f"finished cells are kept in {out}"
    with (
        keeps(lambda: f"{kept}: the same command again goes on"),
        keeping(f"{kept}: make space, and the same command again goes on"),
    ):
        with EvaluationProgress() as progress:
            report = evaluate_models(
                subjects,
                loaded,
                plans,
                out=out,
                seed=seed,
                registry=registry,
                progress=progress,
                shard=shard_of(shard),
                time_budget=None if time_budget is None else seconds(time_budget),
                keep_examples=keep_examples,
            )
        page = report.save(out)
    if as_json:
        echo_json(report.to_json())
    else:
        print_report(report)
        echo(f"report: {page}")


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
        found.append(
            Subject(
                name,
                run.model,
                run.sha256,
                config_hash(run.config),
                component=run.config.defense.use,
                training=_passes(folders[place]),
            )
        )
    return found


def _passes(folder: Path) -> tuple[float, float] | None:
    """Passes per training image of all epochs that a run's log has; None without a log."""
    import json

    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return None
    forwards, backwards = (
        sum(float(one.get(f"{way}_per_example", 0.0)) for one in logged)
        for way in ("forwards", "backwards")
    )
    return forwards, backwards


def surrogates_of(paths: Sequence[Path], taken: Sequence[str]) -> list[Subject]:
    """Runs whose examples alone are used, under names that no subject has."""
    from dataclasses import replace

    from phalanx.training.artifacts import open_run

    found = subjects_of([open_run(path) for path in dict.fromkeys(paths)])
    names = [f"surrogate {one.name}" if one.name in taken else one.name for one in found]
    return [replace(s, name=name, surrogate=True) for s, name in zip(found, names, strict=True)]


def shard_of(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4).

    Raises:
        InputError: if it is no process of so many.
    """
    first, _, second = text.partition("/")
    try:
        i, n = int(first), int(second)
    except ValueError:
        i, n = 0, 0
    if not 1 <= i <= n:
        raise InputError(f"--shard is i/n with 1 <= i <= n, such as 1/2, found {text!r}")
    return i, n


def _attack_table(text: str) -> dict[str, Any]:
    from phalanx.evaluation.labels import parse_attack

    return parse_attack(text)


def _known(table: dict[str, Any], registry: Registry) -> None:
    """Refuse an unknown attack before anything is opened."""
    from phalanx.specs import Kind

    registry.config_class(Kind.ATTACK, table["use"])


def _plan(
    subject: Subject, own: EvaluationConfig, data: Data, asked: _Asked, registry: Registry
) -> Plan:
    """What the command line says, else a run's own [evaluation]."""
    from phalanx.evaluation.planning import plan_of
    from phalanx.evaluation.protocol import (
        Protocol,
        load_protocol,
        resolve_attack,
        with_threat,
    )
    from phalanx.evaluation.subjects import Plan

    threat = asked.threat or own.threat or data.threat

    def plan(protocol: Protocol, views: tuple[str, ...], limit: int | None) -> Plan:
        return plan_of(
            subject,
            protocol,
            threat=threat,
            registry=registry,
            shape=data.task.shape,
            views=views,
            limit=limit,
            checks=asked.checks,
        )

    if asked.attacks:
        uses = tuple(
            resolve_attack(
                table, threat=threat, registry=registry, source=f"--attack {table['use']}"
            )
            for table in asked.attacks
        )
        return Plan(uses, asked.views, asked.limit, checks=asked.checks or "free")
    if asked.protocol is None and own.attacks:
        uses = own.attacks
        if asked.threat is not None:
            uses = tuple(with_threat(use, asked.threat) for use in uses)
        return Plan(
            uses,
            asked.views or own.views,
            asked.limit or own.limit,
            checks=asked.checks or "free",
        )
    if asked.protocol is None:
        found = load_protocol(own.protocol, threat=threat, registry=registry)
        return plan(found, asked.views or own.views, asked.limit or own.limit)
    found = load_protocol(asked.protocol, threat=threat, registry=registry)
    return plan(found, asked.views, asked.limit)
