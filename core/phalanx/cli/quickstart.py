"""``phalanx quickstart``: train, attack and report on bundled data, in a few minutes.

Small networks on scikit-learn's handwritten digits, one thread. The settings below stand in for
the papers' on this tiny task; they say nothing of how the methods compare on the papers' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.cli.common import echo, echo_json, load_registry, warn
from phalanx.cli.stopping import keeps
from phalanx.storage import check_output, keeping

if TYPE_CHECKING:
    from phalanx.registry import Registry
    from phalanx.report.model import Report
    from phalanx.training.artifacts import Run

EPILOG = """Examples:

  phalanx quickstart

  phalanx quickstart --seed 1 --out /tmp/phalanx
"""

_SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
_COSINE = {"name": "cosine"}
_FIT = {"batch_size": 32, "optimizer": _SGD, "schedule": _COSINE}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "none": {"params": {}, "training": {**_FIT, "epochs": 20}},
    "pgd-at": {
        "params": {"attack": {"use": "pgd", "params": {"steps": 5}}},
        "training": {**_FIT, "epochs": 20},
    },
    "pdd": {
        "params": {"members": 3, "normalization": "dataset"},
        "training": {**_FIT, "epochs": 16},
    },
    "clm": {
        "params": {"members": 4, "ulm_epochs": 10, "retrain_epochs": 3},
        "training": {"batch_size": 32},
    },
}
"""What each defense is trained with; all use `small_cnn`."""

LARGEST_DROP = 0.05
"""Clean accuracy below that of `none` that the report explains."""


def command(
    out: Annotated[Path, typer.Option(help="Folder of runs and report.")] = Path(
        "phalanx-quickstart"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of training and attacks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train the installed defenses on bundled digits, attack each, and write a report.

    Repeated, it reads what is there already: finished runs and finished cells.
    """
    check_output(out)
    kept = f"what is finished is kept in {out}"
    with (
        keeps(lambda: f"{kept}: the same command again goes on"),
        keeping(f"{kept}: make space, and the same command again goes on"),
    ):
        report, page, last = _all(out, seed)
    if as_json:
        echo_json(report.to_json())
        return
    from phalanx.cli.report import print_report

    print_report(report)
    for note in report.notes:
        echo(f"note: {note}")
    echo(f"report: {page}")
    echo(f"next: phalanx list; phalanx show {last}; phalanx train --help")


def _all(out: Path, seed: int) -> tuple[Report, Path, str]:
    """The report, its page, and the name of the defense that was trained last."""
    from phalanx.cli.evaluate_progress import EvaluationProgress
    from phalanx.report.model import Report

    registry = load_registry()
    names = _installed(registry)
    runs = [_trained(name, out / "runs" / name, seed) for name in names]

    import torch

    from phalanx.cli.evaluate import subjects_of
    from phalanx.data.sets import load_data
    from phalanx.evaluation.evaluate import evaluate_models
    from phalanx.evaluation.protocol import load_protocol
    from phalanx.evaluation.subjects import Plan

    torch.set_num_threads(1)
    folder = out / "report"
    data = load_data("digits")
    protocol = load_protocol("quick", threat=data.threat, registry=registry)
    plan = Plan(protocol.attacks, limit=protocol.limit, protocol=protocol.name)
    with EvaluationProgress() as progress:
        found = evaluate_models(
            subjects_of(runs), data, plan, out=folder, seed=seed, progress=progress
        )
    report = Report(found.rows, found.environment, found.failed, notes=tuple(notes(found)))
    return report, report.save(folder), names[-1]


def _installed(registry: Registry) -> list[str]:
    """Those of the defenses that are there; the others are named with what brings them."""
    from phalanx.errors import PhalanxError
    from phalanx.specs import Kind

    names = []
    for name in SETTINGS:
        try:
            registry.find(Kind.DEFENSE, name)
        except PhalanxError as error:
            warn(f"left out: {error}")
        else:
            names.append(name)
    return names


def _trained(name: str, out: Path, seed: int) -> Run:
    """The defense, trained or gone on with."""
    from phalanx.cli.progress import TrainingProgress
    from phalanx.training.run import train

    settings = SETTINGS[name]
    config = {
        "seed": seed,
        "data": {"use": "digits"},
        "defense": {"use": name, "params": {"backbone": "small_cnn", **settings["params"]}},
        "training": settings["training"],
    }
    with TrainingProgress(epochs=False) as progress:
        progress.console.print(f"training {name}", highlight=False)
        return train(config, out=out, resume=True, progress=progress)


def notes(report: Report) -> list[str]:
    """What a reader of the quickstart's numbers has to know."""
    clean = {row.defense: row.clean_accuracy for row in report.worst}
    found = [
        "small networks on 8x8 digits, trained for seconds: this shows how Phalanx works, not how "
        "the defenses compare on their papers' data"
    ]
    for name, accuracy in clean.items():
        if "none" in clean and accuracy < clean["none"] - LARGEST_DROP:
            found.append(
                f"{name} has a clean accuracy of {100 * accuracy:.1f} %, more than 5 points below "
                f"none's {100 * clean['none']:.1f} %: its few epochs here do not train it to its "
                "end, and its robust accuracies are bounded by that"
            )
    return found
