"""``phalanx show RUN``: how large a trained run is, on disk and in memory, and how fast."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.cli.common import echo, warn

if TYPE_CHECKING:
    from phalanx.config import UsePruner
    from phalanx.defense import DefendedModel
    from phalanx.specs import Task
    from phalanx.training.artifacts import Run

BATCHES = (1, 64)
"""Images in a pass, as latency is measured."""


def describe(path: Path) -> dict[str, Any]:
    """All that is known of a trained run's size, as data; latencies are measured now.

    Args:
        path: a run folder, or its weights file.

    Raises:
        ArtifactError: if there is no finished run, or it is damaged.
        PluginContractError: if its pruner's code fails.
    """
    from torch import nn

    from phalanx.nn.size import processor, tensor_bytes
    from phalanx.training.artifacts import WEIGHTS, open_run, shipped
    from phalanx.training.files import data_bytes

    run = open_run(path)
    file = path if path.is_file() else path / WEIGHTS
    size = file.stat().st_size
    model = run.model
    dense = size - data_bytes(file) + tensor_bytes(shipped(model).values())
    model.aux = nn.Module()  # it is not part of the run's weights
    compacted = _compacted(run)
    models = [model] if compacted is None else [model, compacted]
    threads = run.config.training.threads
    own, *smaller = _measured(models, run.task, threads)
    return {
        "run": str(path),
        "defense": run.config.defense.use,
        "data": run.config.data.use,
        "members": len(model.members),
        "backbones": _backbones(model),
        "sha256": run.sha256,
        "disk": {"bytes": size, "dense_bytes": dense},
        **own,
        "compacted": smaller[0] if smaller else None,
        "threads": threads,
        "processor": processor(),
    }


def _measured(models: list[DefendedModel], task: Task, threads: int) -> list[dict[str, Any]]:
    """Of each: numbers of parameters, and seconds for an image in batches of `BATCHES`."""
    import torch

    from phalanx import randomness
    from phalanx.nn.size import latencies, size_of

    images = torch.rand(max(BATCHES), *task.shape, generator=randomness.generator("show"))
    served = [model.eval().serve(0) for model in models]
    timed = [latencies(served, images[:batch], threads=threads) for batch in BATCHES]
    found = []
    for place, model in enumerate(models):
        size = size_of(model)
        latency = [asdict(batch[place]) for batch in timed]
        found.append({**asdict(size), "sparsity": size.sparsity, "latency": latency})
    return found


def _compacted(run: Run) -> DefendedModel | None:
    """A copy that the run's pruners make smaller; None if they do not."""
    from phalanx.nn.size import size_of
    from phalanx.registry import default_registry

    model = run.model
    for use in _pruners(run.config.defense):
        with (
            default_registry().blamed(use.kind, use.use, "failed to compact its model"),
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always")
            model = use.create().compact(model)
        for one in told:
            warn(f"warning: {one.message}")
    smaller = size_of(model).parameters < size_of(run.model).parameters
    return model if smaller else None


def _pruners(value: Any) -> Iterator[UsePruner]:
    """Every pruner that a config names, wherever it stands."""
    from phalanx.config import UsePruner
    from phalanx.specs import Spec

    if isinstance(value, UsePruner):
        yield value
    elif isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from _pruners(getattr(value, name))
    elif isinstance(value, Mapping):
        yield from _pruners(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _pruners(one)


def _backbones(model: DefendedModel) -> dict[str, int]:
    """How many networks there are of each architecture, members or not."""
    from phalanx.nn.member import Member

    made = [part.made_from for part in model.modules() if isinstance(part, Member)]
    names = []
    for one in made:
        params = one.params if one is not None else {}
        told = ", ".join(f"{key}={value}" for key, value in params.items())
        name = one.use if one is not None else "unknown"
        names.append(f"{name}({told})" if told else name)
    return dict(Counter(names))


# ---------------------------------------------------------------- text


def show(shown: dict[str, Any]) -> None:
    """Print what `describe` found."""
    echo(f"{shown['run']}  ({shown['defense']} on {shown['data']})")
    networks = ", ".join(f"{count} x {name}" for name, count in shown["backbones"].items())
    echo(f"  members: {shown['members']}" + (f" ({networks})" if networks else ""))
    echo(f"  sha256: {shown['sha256']}")
    disk = shown["disk"]
    share = f", {disk['bytes'] / disk['dense_bytes']:.1%} of its dense form"
    told = share if disk["bytes"] < disk["dense_bytes"] else ""
    echo(f"  on disk: {disk['bytes']:,} bytes{told}")
    _show_measured(shown)
    if shown["compacted"] is not None:
        echo("Compacted, with the same answers:")
        _show_measured(shown["compacted"])
    threads = f"{shown['threads']} thread{'s' if shown['threads'] > 1 else ''}"
    echo(f"Latencies: medians, {threads} of {shown['processor']}")


def _show_measured(shown: dict[str, Any]) -> None:
    echo(f"  parameters: {shown['parameters']:,}, not zero: {shown['nonzero']:,}")
    if shown["convolution_weights"]:
        weights = f"{shown['convolution_weights']:,} weights, {shown['sparsity']:.1%} of them zero"
        echo(f"  convolutions: {weights}")
    for one in shown["latency"]:
        batch = f"batches of {one['batch']}" if one["batch"] > 1 else "one image at a time"
        echo(f"  latency: {1e3 * one['seconds']:.3g} ms an image, {batch} ({one['passes']} passes)")
