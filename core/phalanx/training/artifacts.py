"""What a finished run is: a weights file that says what it is, and a manifest.

The header of ``weights.safetensors`` holds the resolved config and the task, so one file is
enough to load a model. Nothing that is loaded is unpickled.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from phalanx import randomness
from phalanx.config import RunConfig
from phalanx.defense import DefendedModel
from phalanx.errors import ArtifactError, ConfigError
from phalanx.registry import default_registry
from phalanx.runfile import config_hash, problems_of
from phalanx.specs import Task
from phalanx.training.files import (
    has_nan,
    read_json,
    read_tensors,
    sha256,
    write_json,
    write_tensors,
)

WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Run:
    """A run folder and its model.

    Attributes:
        path: the folder, or the weights file if the model was loaded from that alone.
        config: the resolved config.
        task: what it classifies.
        model: in evaluation mode; of an unfinished run, as far as it is trained.
        sha256: of the weights file; '' for an unfinished run.
        finished: whether all phases are done.
        metrics: one mapping for each epoch.
    """

    path: Path
    config: RunConfig
    task: Task
    model: DefendedModel
    sha256: str
    finished: bool = True
    metrics: tuple[Mapping[str, Any], ...] = ()


def build_model(config: RunConfig, task: Task) -> DefendedModel:
    """The untrained model of a config: the same weights wherever it is built.

    Raises:
        ConfigError: if the defense's builder refuses its config.
        PluginContractError: if the defense's code fails, or builds something else.
    """
    use, registry = config.defense, default_registry()
    defense = use.create(task)
    try:
        with (
            registry.blamed(use.kind, use.use, "failed to build its model"),
            randomness.seeded(config.seed, "build"),
        ):
            model: DefendedModel = defense.build()
    except ConfigError as error:  # a builder does not know where its config stands
        problems = [f"defense.params.{problem}" for problem in error.problems]
        raise ConfigError(problems, source=f"{config.defense.use} on {task.name}") from error
    if not isinstance(model, DefendedModel):
        kind = type(model).__name__
        raise registry.broken(use.kind, use.use, f"build() gave {kind}, not a DefendedModel")
    model.task = task
    model.component = config.defense.use
    return model


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a number."""
    found = {"python": platform.python_version()}
    for package in ("phalanx", "torch", "torchvision", "timm", "adversarial-robustness-toolbox"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def shipped(model: DefendedModel) -> dict[str, Tensor]:
    """The model's tensors without its `aux`."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("aux.")}


def write_weights(
    folder: Path, model: DefendedModel, config: RunConfig, task: Task, facts: Mapping[str, Any]
) -> str:
    """Write ``weights.safetensors`` and ``manifest.json``; the weights' SHA-256.

    Weights with many zeros, as a pruner leaves them, take less room and are read as they were.
    """
    header = {
        "format": "phalanx/1",
        "config": config.model_dump_json(),
        "task": task.model_dump_json(),
    }
    digest = write_tensors(folder / WEIGHTS, shipped(model), header, pack=True)
    write_json(
        folder / MANIFEST,
        {
            "format": "phalanx/1",
            "weights": WEIGHTS,
            "sha256": digest,
            "config_hash": config_hash(config),
            "config": json.loads(header["config"]),
            "seed": config.seed,
            "threads": config.training.threads,
            "versions": versions(),
            **facts,
        },
    )
    return digest


def read_model(file: Path, digest: str | None = None) -> tuple[RunConfig, Task, DefendedModel]:
    """Config, task and model of a weights file.

    Raises:
        ArtifactError: if the file is missing, damaged, or not one of ours.
    """
    tensors, header = read_tensors(file, digest)
    if header.get("format") != "phalanx/1":
        raise ArtifactError(
            f"{file} is a safetensors file that Phalanx did not write: its header names no "
            "defense; give a run folder, or a weights.safetensors from one"
        )
    try:
        config = RunConfig.model_validate(
            json.loads(header["config"]), context={"registry": default_registry()}
        )
        task = Task.model_validate_json(header["task"])
    except (ValueError, KeyError) as error:
        told = str(error)
        if isinstance(error, ValidationError):
            told = "; ".join(problems_of(error))
        raise ArtifactError(
            f"{file} holds a config that cannot be read: {told}; is its plugin installed and "
            "recent enough? (`phalanx doctor`)"
        ) from error
    model = build_model(config, task)
    own = shipped(model)
    if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
        wrong = sorted(
            own.keys() ^ tensors.keys()
            | {k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape}
        )
        raise ArtifactError(
            f"{file} does not fit the model that its config describes: {len(wrong)} tensors "
            f"differ, such as {', '.join(wrong[:3])}; was it written by another version?"
        )
    if broken := [name for name, value in tensors.items() if has_nan(value)]:
        raise ArtifactError(
            f"{file} holds NaN in {len(broken)} of its {len(tensors)} tensors, such as "
            f"{broken[0]}: the training that wrote it diverged; train again with a lower "
            "training.optimizer lr, or a clip_grad"
        )
    model.load_state_dict(tensors, strict=False)  # aux is not part of the file
    return config, task, model.eval()


def open_run(path: Path | str) -> Run:
    """A finished run, from its folder or from a weights file alone.

    Raises:
        ArtifactError: if there is no finished run, or it is damaged.
    """
    path = Path(path)
    if path.is_file():
        config, task, model = read_model(path)
        return Run(path, config, task, model, sha256(path))
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist; give a run folder that `phalanx train` wrote")
    if not (path / MANIFEST).exists():
        if (path / "state.json").exists():
            raise ArtifactError(
                f"{path} is not trained to its end; go on with `phalanx train {path}/config.json "
                f"--resume --out {path}`"
            )
        told = f"{path} is not a run folder: it has no {MANIFEST}"
        hint = _weights_hint(path) or "; give a folder that `phalanx train` wrote"
        raise ArtifactError(told + hint)
    digest = _recorded(path)
    config, task, model = read_model(path / WEIGHTS, digest)
    return Run(path, config, task, model, digest, metrics=read_metrics(path))


def _recorded(folder: Path) -> str:
    """The SHA-256 of the weights that the manifest names."""
    try:
        return str(read_json(folder / MANIFEST)["sha256"])
    except (KeyError, TypeError):
        told = f"{folder / MANIFEST} is damaged: it names no sha256"
    except ArtifactError as error:
        told = str(error)
    raise ArtifactError(f"{told}{_weights_hint(folder)}")


def _weights_hint(folder: Path) -> str:
    """That the weights say themselves what they are, where they are there."""
    file = folder / WEIGHTS
    return f"; {file} alone can be evaluated, unchecked" if file.is_file() else ""


def read_metrics(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The lines of ``metrics.jsonl`` up to the first that is cut short or damaged."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line) if line.endswith(b"\n") else None)
        except ValueError:
            break
    return tuple(line for line in found if line is not None)


def load(path: Path | str) -> DefendedModel:
    """The trained model of a run folder or of a weights file, in evaluation mode.

    Args:
        path: a folder that `train` wrote, or its ``weights.safetensors`` alone.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``.

    Raises:
        ArtifactError: if there is no finished run, or it is damaged.
    """
    return open_run(path).model


def count_parameters(model: torch.nn.Module) -> int:
    """Trainable and frozen parameters of a module."""
    return sum(p.numel() for p in model.parameters())
