"""A classifier of timm's registry with weights from a file, as ``--model`` and its options name it.

Torch-free to import, as every module of the command line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.cli.common import parse_set, warn
from phalanx.errors import ArtifactError, ConfigError, InputError

if TYPE_CHECKING:
    from torch import nn

    from phalanx.data.sets import Data
    from phalanx.evaluation.subjects import Subject

_ELSEWHERE = {
    "num_classes": "--classes says how many there are",
    "pretrained": "--weights names the file, and nothing is downloaded",
    "checkpoint_path": "--weights names the file",
}


@dataclass(frozen=True)
class ForeignModel:
    """What the command line says of a foreign model.

    Attributes:
        name: in timm's registry, ours among them.
        options: keywords of ``timm.create_model``.
        weights: the checkpoint file.
        classes: K; absent: the data set's.
        mean: per channel, in units of [0, 1]; absent: the data set's.
        std: likewise.
    """

    name: str
    options: Mapping[str, Any]
    weights: Path
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def asked_for(
    model: str | None,
    *,
    options: Sequence[str],
    weights: Path | None,
    classes: int | None,
    mean: str | None,
    std: str | None,
) -> ForeignModel | None:
    """The options of the command line, checked as far as they can be without a file; or None.

    Raises:
        InputError: if one is given without the others that it needs, or is no list of numbers.
        ConfigError: for a model option that is not ``key=value``, or has an option of its own.
    """
    if model is None:
        given = {
            "--model-option": options,
            "--weights": weights,
            "--classes": classes,
            "--mean": mean,
            "--std": std,
        }
        wrong = [name for name, value in given.items() if value not in (None, [], ())]
        if wrong:
            raise InputError(f"{', '.join(wrong)} describe a --model NAME, and none is given")
        return None
    if weights is None:
        raise InputError(
            f"--model {model} needs --weights FILE, its trained weights: .safetensors, or what "
            "torch.save wrote of its state dict"
        )
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together, such as --mean 0.5 --std 0.25")
    return ForeignModel(
        name=model,
        options=options_of(options),
        weights=weights,
        classes=classes,
        mean=None if mean is None else _numbers("--mean", mean),
        std=None if std is None else _numbers("--std", std),
    )


def options_of(assignments: Sequence[str]) -> dict[str, Any]:
    """``["shortcut=pad", "width=16"]`` as keywords of ``timm.create_model``.

    Raises:
        ConfigError: with every one that is not ``key=value`` or has an option of its own.
    """
    try:
        options = parse_set(assignments)
    except ConfigError as error:
        raise ConfigError(error.problems, source="--model-option") from error
    wrong = [
        f"{key}: cannot be set here: {why}" for key, why in _ELSEWHERE.items() if key in options
    ]
    if wrong:
        raise ConfigError(wrong, source="--model-option")
    return options


def build_network(
    name: str,
    options: Mapping[str, Any],
    *,
    classes: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> nn.Module:
    """An untrained classifier of timm's registry.

    Args:
        name: its name there.
        options: keywords of ``timm.create_model``; they go before what follows from `shape`.
        classes: K; absent: the classifier's own default.
        shape: (C, H, W) of an image; absent: the classifier's own default.

    Raises:
        InputError: if there is none of that name, or it cannot be built so.
    """
    import timm

    import phalanx.nn  # noqa: F401  # registers our backbones

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"--model: no classifier is called {name!r}; {hint}timm.list_models() has all names"
        )
    keywords: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if shape is not None:
        keywords["in_chans"] = shape[0]
        known = timm.get_pretrained_cfg(name)
        if known and known.fixed_input_size and tuple(known.input_size[1:]) != shape[1:]:
            keywords["img_size"] = shape[1:]
    try:
        network: nn.Module = timm.create_model(name, **{**keywords, **options})
    except Exception as error:  # third-party constructors raise anything
        told = ", ".join(f"{key}={value}" for key, value in {**keywords, **options}.items())
        raise InputError(
            f"--model {name} cannot be built with {told or 'its defaults'}: {error}"
        ) from error
    return network


def subject_of(asked: ForeignModel, data: Data) -> Subject:
    """The model with its weights, ready to be attacked; how it is set up is said on stderr.

    Raises:
        InputError: if it cannot be built for these images, or mean and std do not fit them.
        ArtifactError: if the weights cannot be read or do not fit.
    """
    from phalanx.evaluation.subjects import Subject
    from phalanx.nn.foreign import wrap
    from phalanx.nn.weights import load_weights, read_weights

    weights = read_weights(asked.weights)
    if str(weights.metadata.get("format")).startswith("phalanx/"):
        raise ArtifactError(
            f"{asked.weights} is a run's: its header names the defense and the data; evaluate it "
            f"without --model: phalanx evaluate {asked.weights}"
        )
    classes = asked.classes or data.task.classes
    if classes > data.task.classes:
        warn(
            f"warning: {asked.name} tells {classes} classes apart and {data.task.name} has "
            f"{data.task.classes}: label 0 of the data is taken for class 0 of the model, and so on"
        )
    mean, std = asked.mean or data.task.mean, asked.std or data.task.std
    channels = data.task.shape[0]
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise InputError(
                f"{option} has {len(values)} values, but images of {data.task.name} have "
                f"{channels} channels; give one for each"
            )
    network = build_network(asked.name, asked.options, classes=classes, shape=data.task.shape)
    fit = load_weights(network, weights)
    for theirs, ours in fit.renamed.items():
        warn(f"{asked.weights.name}: its classifier {theirs!r} is {ours!r} of {asked.name}")
    whose = f"of {data.task.name}; --mean and --std change them" if asked.mean is None else "given"
    warn(f"normalisation: mean {_list(mean)}, std {_list(std)} ({whose})")
    model = wrap(network, classes=classes, mean=mean, std=std)
    identity = [weights.sha256, asked.name, dict(asked.options), classes, mean, std]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return Subject(asked.name, model, digest)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} {text!r}: numbers with commas between, one for each channel, such as "
            f"{option} 0.485,0.456,0.406"
        ) from None


def _list(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
