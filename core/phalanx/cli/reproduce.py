"""``phalanx reproduce``: train a paper's table again, attack it, and hold it against the claims."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx import catalog
from phalanx.claims import Wanted, answered, wanted, words
from phalanx.cli.common import echo, echo_json, load_registry
from phalanx.cli.reproduce_lines import Line, lines_of, notes, print_lines, table
from phalanx.cli.reproduce_list import print_list
from phalanx.cli.stopping import keeps
from phalanx.errors import InputError
from phalanx.reproduction import Declared, ScaleName, choose, configs_of, datasets, found_in
from phalanx.storage import check_output, keeping, write_atomically

if TYPE_CHECKING:
    from phalanx.config import RunConfig
    from phalanx.registry import Registry
    from phalanx.report.model import Report
    from phalanx.training.artifacts import Run

EPILOG = """Examples:

  phalanx reproduce                                (what there is)

  phalanx reproduce pdd/table2 --scale cpu --out runs/table2

  phalanx reproduce clm/table2 --scale cpu --limit 250 --json
"""

JSON, MARKDOWN = "reproduction.json", "reproduction.md"
READ = (
    "Claims are those of registry.toml, accuracies in per cent; “of clean-correct” counts only "
    "images that are right without an attack, and so does the number beside such a claim. Delta is "
    "reproduced minus claimed, in points. A claim holds if it lies in the 95 % interval of the "
    "reproduced number; else that number is lower, or higher. The interval is over test images: it "
    "holds neither the noise of the training seed nor that of the paper's own number."
)


def command(
    name: Annotated[
        str | None, typer.Argument(help="PLUGIN/TABLE; without it: list what there is.")
    ] = None,
    scale: Annotated[
        ScaleName | None,
        typer.Option(help="The paper's setting, or a reduced one; absent: cpu."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of runs and reports; absent: reproductions/PLUGIN-TABLE-SCALE."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data sets are, else $PHALANX_DATA.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch data sets that are not there.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Attack the first N test images, whatever recipes say."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a paper's table again, attack it, and print claim, reproduced and delta.

    Each run is trained into DIR/RUN and evaluated into DIR/report-RUN. The same command again reads
    what is finished and goes on with the rest.
    """
    registry = load_registry()
    found = found_in(registry)
    known = catalog.load()
    if name is None:
        print_list(found, known, as_json=as_json)
        return
    chosen = choose(name, found, known)
    at = _scale(chosen, scale)
    folder = out or Path("reproductions", f"{chosen.name.replace('/', '-')}-{at}")
    check_output(folder)
    configs = configs_of(
        chosen, at, out=folder, homes=found.homes, catalog=known, registry=registry
    )
    every = wanted(chosen, known)
    claims = answered(every, at, configs)
    _check_data(configs, data_root, download=download)
    kept = f"what is finished is kept in {folder}"
    with (
        keeps(lambda: f"{kept}: the same command again goes on"),
        keeping(f"{kept}: make space, and the same command again goes on"),
    ):
        runs = _trained(configs, folder, data_root)
        reports = _evaluated(claims, runs, folder, data_root, limit, registry)
        lines = lines_of(claims, reports)
        elsewhere = [one for one in every if at not in one.scales]
        result = _result(chosen, at, lines, elsewhere, runs, reports)
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / JSON, text.encode())
        write_atomically(folder / MARKDOWN, _markdown(chosen, at, lines, elsewhere).encode())
    if as_json:
        echo_json(result)
        return
    for head in _head(chosen, at):
        echo(head)
    print_lines(lines)
    for remark in [*notes(lines), *_elsewhere(chosen, elsewhere)]:
        echo(f"note: {remark}")
    echo(f"written: {folder / MARKDOWN}, {folder / JSON}")


def _scale(chosen: Declared, asked: ScaleName | None) -> ScaleName:
    """The scale that was asked for; else the one for a CPU, never silently the paper's.

    Raises:
        InputError: if it is not there.
    """
    scales = chosen.reproduction.scales
    at = asked or ScaleName.CPU
    if at not in scales:
        (other,) = scales
        raise InputError(
            f"{chosen.name} has no scale {at}; it has {other}: phalanx reproduce {chosen.name} "
            f"--scale {other}"
        )
    return at


# ---------------------------------------------------------------- the work


def _check_data(configs: Mapping[str, RunConfig], root: Path | None, *, download: bool) -> None:
    """Refuse data sets that are not there before hours are spent on others.

    Raises:
        DataError: with what to do.
    """
    from phalanx.config import FOLDER
    from phalanx.data import catalog as data_catalog, default_root, load_data

    place = root or default_root()
    for name in datasets(list(configs.values())):
        files = () if name == FOLDER else data_catalog.info(name).files
        if not all((place / file).is_file() for file in files):
            load_data(name, root=place, download=download)


def _trained(configs: Mapping[str, RunConfig], out: Path, root: Path | None) -> dict[str, Run]:
    """Every run, trained to its end: read if it is finished, gone on with if it was begun."""
    from phalanx.cli.progress import TrainingProgress
    from phalanx.training.run import train

    runs = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        with TrainingProgress(epochs=False) as progress:
            progress.console.print(
                f"run {number} of {len(configs)}: {name} ({config.defense.use} on "
                f"{config.data.use})",
                highlight=False,
                soft_wrap=True,
            )
            runs[name] = train(
                config, out=out / name, resume=True, data_root=root, progress=progress
            )
    return runs


def _evaluated(
    claims: Sequence[Wanted],
    runs: Mapping[str, Run],
    out: Path,
    root: Path | None,
    limit: int | None,
    registry: Registry,
) -> dict[str, Report]:
    """The reports of the runs that claims ask for, each by its recipe's own evaluation."""
    import torch

    from phalanx.cli.evaluate import subjects_of
    from phalanx.cli.evaluate_progress import EvaluationProgress
    from phalanx.evaluation.evaluate import evaluate_models
    from phalanx.evaluation.subjects import Plan
    from phalanx.training.inputs import evaluation_data

    reports = {}
    for name in dict.fromkeys(run for one in claims for run in (one.run, *one.over)):
        run, folder = runs[name], out / f"report-{name}"
        torch.set_num_threads(run.config.training.threads)
        data = evaluation_data(run, root=root)
        own = run.config.evaluation
        plan = Plan(own.attacks, own.views, limit or own.limit)
        with EvaluationProgress() as progress:
            progress.say(f"evaluating {name}")
            reports[name] = evaluate_models(
                subjects_of([run]), data, plan, out=folder, registry=registry, progress=progress
            )
        reports[name].save(folder)
    return reports


# ---------------------------------------------------------------- the outcome


def _head(chosen: Declared, at: ScaleName) -> list[str]:
    """What was reproduced, and how far that is from the paper's setting."""
    scale = chosen.reproduction.scales[at]
    lines = [f"{chosen.name} at scale {at}: {chosen.reproduction.title}"]
    if scale.differs and at is ScaleName.CPU:
        lines.append(f"reduced: {scale.differs}: not the paper's setting")
    elif scale.differs:
        lines.append(f"not as in the paper: {scale.differs}")
    return lines


def _elsewhere(chosen: Declared, claims: Sequence[Wanted]) -> list[str]:
    """The claims that this scale has no run for, and which one has."""
    told: dict[str, list[Wanted]] = {}
    for one in claims:
        told.setdefault(str(one.scales[0]), []).append(one)
    return [
        f"{len(of)} more {'claim is' if len(of) == 1 else 'claims are'} answered at scale {scale} "
        f"only (phalanx reproduce {chosen.name} --scale {scale}): "
        + "; ".join(f"{one.claim.dataset}, {words(one.claim)}" for one in of)
        for scale, of in told.items()
    ]


def _result(
    chosen: Declared,
    at: ScaleName,
    lines: Sequence[Line],
    elsewhere: Sequence[Wanted],
    runs: Mapping[str, Run],
    reports: Mapping[str, Report],
) -> dict[str, Any]:
    from phalanx.runfile import config_hash

    scale = chosen.reproduction.scales[at]
    return {
        "schema": 1,
        "name": chosen.name,
        "title": chosen.reproduction.title,
        "scale": str(at),
        "differs": scale.differs,
        "lines": [line.to_json() for line in lines],
        "elsewhere": [
            {
                "claim": one.claim.model_dump(mode="json", exclude={"evidence"}),
                "scales": list(one.scales),
            }
            for one in elsewhere
        ],
        "runs": [
            {
                "id": run.id,
                "recipe": run.recipe,
                "init": run.init,
                "set": run.set_,
                "defense": runs[run.id].config.defense.use,
                "data": runs[run.id].config.data.use,
                "config_hash": config_hash(runs[run.id].config),
                "sha256": runs[run.id].sha256,
                "environment": dict(reports[run.id].environment) if run.id in reports else None,
            }
            for run in scale.runs
        ],
    }


def _markdown(
    chosen: Declared, at: ScaleName, lines: Sequence[Line], elsewhere: Sequence[Wanted]
) -> str:
    first, *more = _head(chosen, at)
    remarks = [*notes(lines), *_elsewhere(chosen, elsewhere)]
    scale = f" --scale {at}"
    parts = [f"# {first}", *(one[0].upper() + one[1:] + "." for one in more), READ, table(lines)]
    parts += ["\n".join(f"- {' '.join(one.split())}" for one in remarks)] if remarks else []
    parts += [f"Again: `phalanx reproduce {shlex.quote(chosen.name)}{scale}`"]
    return "\n\n".join(parts) + "\n"
