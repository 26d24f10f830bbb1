"""``phalanx train``: a defense by its name, or a run file, into a run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from phalanx.cli.common import files_checked, load_registry, parse_set, run_kept
from phalanx.cli.stopping import keeps
from phalanx.errors import ConfigError, InputError

EPILOG = """Examples:

  phalanx train pdd --out runs/pdd                       (on digits, the bundled data)

  phalanx train clm --data mnist --data-root ~/data --set training.threads=2 --out runs/clm

  phalanx train plugins/pdd/recipes/smoke.toml --out runs/smoke --time-budget 25m

  phalanx train runs/smoke/config.json --resume --out runs/smoke

  phalanx train examples/photos.toml --data-root ~/photos --skip-unreadable --out runs/photos
"""


def seconds(text: str) -> float:
    """A duration such as 90, 90s, 25m or 1.5h in seconds.

    Raises:
        ConfigError: if it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise ConfigError(
            [f"--time-budget: {text!r} is no duration; write 90s, 25m or 1.5h"], source="command"
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def command(
    what: Annotated[str, typer.Argument(help="A defense's name, or a run file (.toml, .json).")],
    out: Annotated[Path, typer.Option(help="Run folder; made if it is not there.")],
    data: Annotated[str | None, typer.Option(help="Data set, instead of the run file's.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the run file, e.g. defense.params.members=5."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the run file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    restart_phase: Annotated[
        bool,
        typer.Option("--restart-phase", help="With --resume: begin the running phase anew."),
    ] = False,
    time_budget: Annotated[
        str | None, typer.Option(help="Stop at a checkpoint after so long: 90s, 25m, 1.5h.")
    ] = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Least time between two checkpoints, in seconds.")
    ] = 60.0,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where the data sets are, else $PHALANX_DATA; or the folder of photos."),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Of a folder: leave out files that are no images."),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set if it is not there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a defense into a run folder."""
    from phalanx.cli.progress import TrainingProgress
    from phalanx.runfile import read_run
    from phalanx.training.run import train

    load_registry()
    assignments = [*(set_ or []), *([] if data is None else [f"data.use={data}"])]
    assignments += ["data.skip_unreadable=true"] if skip_unreadable else []
    overrides = parse_set([*assignments, *([] if seed is None else [f"seed={seed}"])])
    source: Path | dict[str, Any]
    if (Path(what) / "config.json").is_file():
        raise InputError(f"{what} is a run folder; go on with {what}/config.json --resume")
    is_file = what.endswith((".toml", ".json")) or Path(what).is_file()
    source = Path(what) if is_file else {"defense": {"use": what}}
    config = read_run(source, overrides=overrides)
    budget = seconds(time_budget) if time_budget is not None else None
    with keeps(lambda: run_kept(out)), TrainingProgress() as progress:
        run = train(
            config,
            out=out,
            resume=resume,
            restart_phase=restart_phase,
            data_root=data_root,
            download=download,
            time_budget=budget,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            told=files_checked(),
        )
    if as_json:
        result = {
            "out": str(out),
            "finished": run.finished,
            "sha256": run.sha256,
            "epochs": len(run.metrics),
        }
        typer.echo(json.dumps(result))
    elif run.finished:
        typer.echo(f"trained: {out}  (evaluate it: phalanx evaluate {out} --out {out}/report)")
    else:
        typer.echo(
            f"time budget used up after a checkpoint; go on with: phalanx train "
            f"{out}/config.json --resume --out {out}"
        )
