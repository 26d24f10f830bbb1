"""Somebody's weights in a member's backbone: adapted to its classes, channels and image size.

A file that fits is copied as it is. One that does not is given to timm, which knows for each family
how position embeddings are resampled, how an input convolution changes its number of channels, and
how the names of its authors are mapped. A classifier of another number of classes stays new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from phalanx import randomness
from phalanx.config import Backbone
from phalanx.errors import ArtifactError, ConfigError
from phalanx.nn.fit import classes_of, classifier_names, fit
from phalanx.nn.member import Member, create_backbone
from phalanx.nn.resolve import timm_data
from phalanx.nn.weights import Weights, load_weights
from phalanx.specs import Task

Head = Literal["kept", "new"]
"""What became of a member's classifier."""


def load_backbone(member: Member, weights: Weights, task: Task) -> Head:
    """Copy a checkpoint of a backbone into a member's, all or nothing.

    The classifier is kept where the file has one of the same number of classes. Position
    embeddings are resampled to the task's image size, the input convolution is changed to its
    number of channels as timm does it: summed to one channel, else repeated and scaled.

    Args:
        member: whose backbone it is for.
        weights: a state dict of that backbone.
        task: what the member was built for.

    Raises:
        ArtifactError: if it is a checkpoint of another network, with what does not fit.
    """
    plan = fit(member.backbone, weights.tensors, replace_head=True)
    if plan.problem:
        adapted = _adapted(member, weights.tensors, plan.fit.renamed, task)
        weights = replace(weights, tensors=adapted)
    done = load_weights(member.backbone, weights, replace_head=True)
    return "new" if done.missing or done.reshaped else "kept"


def pretrained(backbone: Backbone, task: Task) -> Weights:
    """The weights that timm has of a backbone, for the task's image size and channels.

    They come from the Hugging Face cache, or are downloaded into it.

    Returns:
        Tensors with the classifier that they were trained with; the hash is of the tensors.

    Raises:
        ConfigError: if timm has none for it.
        ArtifactError: if they cannot be fetched, or do not fit the backbone's keywords or the
            number of channels.
    """
    known = timm.get_pretrained_cfg(backbone.use)
    if known is None or not known.has_weights:
        raise ConfigError(
            [
                f"init.from: timm has no pretrained weights of {backbone.use!r}; give a file with "
                "init.from = 'FILE', or choose a backbone of timm.list_pretrained()"
            ],
            source="run file",
        )
    name = f"{known.architecture}.{known.tag}" if known.tag else str(known.architecture)
    try:
        with randomness.seeded("init"):  # what it draws is overwritten; nobody else's draws move
            made = create_backbone(backbone, task, pretrained=True, num_classes=known.num_classes)
    except Exception as error:  # timm, its hub client and the network raise anything
        raise ArtifactError(
            f"init.from = 'timm': the pretrained weights of {name} could not be had "
            f"({type(error).__name__}: {_first_line(error)}). Without a network, fetch them "
            f"elsewhere and give the file: init.from = 'FILE'"
        ) from error
    _check_input(made, known.first_conv, given=known.input_size[0], channels=task.shape[0])
    tensors = made.state_dict()
    return Weights(tensors, _digest(tensors), Path(f"timm:{name}"), {})


def statistics(
    backbone: Backbone | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that timm's weights of a backbone were trained with.

    None for a backbone that is not timm's own, such as ours.

    >>> statistics(Backbone(use="test_vit"), 1)
    ((0.5,), (0.5,))
    """
    if backbone is None or timm.get_pretrained_cfg(backbone.use) is None:
        return None
    found = timm_data(backbone)
    return with_channels(found.mean, channels), with_channels(found.std, channels)


def with_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Values per channel for another number of channels: their mean for one, else repeated.

    >>> with_channels((0.25, 0.5, 0.75), 1), with_channels((0.5,), 3)
    ((0.5,), (0.5, 0.5, 0.5))
    """
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[place % len(values)] for place in range(channels))


def _adapted(
    member: Member, tensors: Mapping[str, Tensor], renamed: Mapping[str, str], task: Task
) -> dict[str, Tensor]:
    """Tensors in the shapes of the member's backbone; as they are if nobody knows how."""
    backbone, made_from = member.backbone, member.made_from
    known = timm.get_pretrained_cfg(made_from.use) if made_from is not None else None
    if made_from is None or known is None:
        return _with_input(backbone, tensors, task.shape[0])
    named = {_renamed(name, renamed): value for name, value in tensors.items()}
    head = {
        name: value
        for name, value in backbone.state_dict().items()
        if any(name.startswith(f"{layer}.") for layer in classifier_names(backbone))
    }
    if head.keys() <= named.keys():
        classes = max((len(named[name]) for name in head), default=known.num_classes)
    else:  # it has none: timm is given ours, and the result's is left out
        named |= head
        classes = classes_of(backbone) or task.classes
    channels = _channels(backbone, named, known.first_conv, task.shape[0])
    channels = channels or known.input_size[0]
    overlay = {
        "state_dict": named,
        "num_classes": classes,
        "input_size": (channels, *known.input_size[1:]),
        "label_offset": 0,
    }
    try:
        with randomness.seeded("init"):
            made = create_backbone(
                made_from,
                task,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=classes,
            )
    except Exception:  # timm raises anything on another network's names; our message says it better
        return dict(tensors)
    found = made.state_dict()
    if not all(named[n].shape == found[n].shape for n in _inputs(made, known.first_conv, named)):
        _check_input(made, known.first_conv, given=channels, channels=task.shape[0])
    if not head.keys() <= {_renamed(name, renamed) for name in tensors}:
        found = {name: value for name, value in found.items() if name not in head}
    return found


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{layers[layer]}.{leaf}" if layer in layers else name


def _channels(
    backbone: nn.Module, tensors: Mapping[str, Tensor], layers: Any, channels: int
) -> int | None:
    """For how many channels a checkpoint's input convolution is; None if it does not show."""
    own = backbone.state_dict()
    for name in _inputs(backbone, layers, tensors):
        if tensors[name].ndim == own[name].ndim == 4:
            return int(channels * tensors[name].shape[1] // own[name].shape[1])
    return None


def _inputs(backbone: nn.Module, layers: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the input layers' weights, as timm tells the layers, that are among the tensors."""
    told = (layers,) if isinstance(layers, str) else tuple(layers or ())
    own = backbone.state_dict()
    return [
        name for name in (f"{layer}.weight" for layer in told) if name in own and name in tensors
    ]


def _check_input(made: nn.Module, layers: Any, *, given: int, channels: int) -> None:
    """Refuse an input layer that timm leaves random since it cannot change its channels.

    Raises:
        ArtifactError: with what to do.
    """
    own = made.state_dict()
    for name in _inputs(made, layers, own):
        shape = own[name].shape
        if given != channels and (len(shape) != 4 or channels not in (1, shape[1])):
            raise ArtifactError(
                f"the weights are for images of {given} channels, these have {channels}, and timm "
                f"cannot change {name} {tuple(shape)} of {type(made).__name__}; choose another "
                f"backbone, or weights for {channels} channels"
            )


def _with_input(
    backbone: nn.Module, tensors: Mapping[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """The first convolution changed to the number of channels, where that is all that differs."""
    adapted = dict(tensors)
    convolutions = {
        f"{name}.weight": part
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Conv2d)
    }
    first = next(iter(convolutions), "")
    weight = tensors.get(first)
    if weight is not None and weight.ndim == 4 and weight.shape[1] != channels:
        adapted[first] = adapt_input_conv(channels, weight, base_chans=weight.shape[1])
    return adapted


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
