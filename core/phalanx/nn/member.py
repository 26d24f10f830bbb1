"""One network of a defense: input normalisation and a timm backbone, split at its classifier."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import answering
from phalanx.config import Backbone, Normalization
from phalanx.defense import cast_like
from phalanx.errors import ConfigError
from phalanx.nn import backbones  # noqa: F401  # a member may be one of ours, so they must be known
from phalanx.specs import Task

TOLERANCE = 1e-4
"""How far head(features(x)) may be from the backbone's own scores, relative to the largest."""

_FROM_TASK = {
    "num_classes": "the data set has its number of classes",
    "in_chans": "the data set has its number of channels",
    "pretrained": "members begin untrained",
}


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel; its constants are not among the stored weights.

    Args:
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1], positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to the same shape, about -3 to 3."""
        return (x - self.mean) / self.std

    def has(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether these are its constants, at the precision that they are kept in."""
        pairs = ((self.mean, mean), (self.std, std))
        return all(own.flatten().tolist() == torch.tensor(new).tolist() for own, new in pairs)


class Member(nn.Module):
    """A classifier that can be asked for its features and for its head alone.

    Args:
        backbone: a classifier with timm's interface (`forward_features`, `forward_head`,
            `get_classifier`).
        normalize: what is done to images first; `torch.nn.Identity` for nothing.
        made_from: the backbone's name and keywords, by which timm makes it again; None if unknown.
    """

    def __init__(
        self, backbone: nn.Module, normalize: nn.Module, *, made_from: Backbone | None = None
    ) -> None:
        super().__init__()
        self.made_from = made_from
        self.normalize = normalize
        self.backbone: Any = backbone  # timm's classifiers share methods, not a base class

    def features(self, x: Tensor) -> Tensor:
        """What the classifier sees: images ``(N, C, H, W)`` in [0, 1] to ``(N, D)``, pooled.

        Images of another type are cast to the weights' type.
        """
        maps = self.backbone.forward_features(self.normalize(cast_like(x, self.backbone)))
        features: Tensor = self.backbone.forward_head(maps, pre_logits=True)
        return features

    def head(self, f: Tensor) -> Tensor:
        """Features ``(N, D)`` to logits ``(N, K)``."""
        logits: Tensor = self.backbone.get_classifier()(f)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``."""
        return self.head(self.features(x))


def build_member(
    backbone: Backbone, task: Task, *, normalization: Normalization = "dataset"
) -> Member:
    """An untrained member for a task, its weights drawn from torch's global generator.

    Args:
        backbone: a classifier of timm's registry by its name, ours among them, and keywords.
        task: gives image shape, number of classes, mean and standard deviation.
        normalization: ``dataset``: its mean and standard deviation; ``none``: images as they are.

    Raises:
        ConfigError: if the backbone is unknown, does not take its keywords or these images, or
            cannot be split at its classifier (levit, resnetv2, volo and others).
    """
    normalize: nn.Module = nn.Identity()
    if normalization == "dataset":
        normalize = Normalize(task.mean, task.std)
    member = Member(_create(backbone, task), normalize, made_from=backbone)
    reason = _defect(member, task)
    if reason:
        raise _refused("use", f"{backbone.use!r} cannot be a member: {reason}")
    return member


def _refused(key: str, problem: str) -> ConfigError:
    return ConfigError([f"backbone.{key}: {problem}"])


def _create(backbone: Backbone, task: Task) -> nn.Module:
    name, params = backbone.use, backbone.params
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise _refused(
            "use", f"no classifier is called {name!r}; {hint}timm.list_models() has all names"
        )
    problems = [
        f"backbone.params.{key}: cannot be set here: {reason}"
        for key, reason in _FROM_TASK.items()
        if key in params
    ]
    if problems:
        raise ConfigError(problems)
    try:
        created = create_backbone(backbone, task)
    except Exception as error:  # third-party constructors raise anything
        raise _refused(
            "params", f"{name!r} cannot be built with them for images {task.shape}: {error}"
        ) from error
    return created


def create_backbone(backbone: Backbone, task: Task, **keywords: Any) -> nn.Module:
    """A classifier as timm makes it for a task; anything that its constructor raises comes through.

    Args:
        backbone: its name and keywords.
        task: gives image shape and number of classes.
        keywords: of timm.create_model, over those.
    """
    channels, height, width = task.shape
    given: dict[str, Any] = {"num_classes": task.classes, "in_chans": channels}
    if _has_fixed_size(backbone.use, (height, width)):
        given["img_size"] = (height, width)
    created: nn.Module = timm.create_model(backbone.use, **{**given, **backbone.params, **keywords})
    return created


def _has_fixed_size(name: str, size: tuple[int, int]) -> bool:
    """Whether the classifier is made for images of one size, which is not `size`."""
    known = timm.get_pretrained_cfg(name)
    return bool(known and known.fixed_input_size and tuple(known.input_size[1:]) != size)


@torch.no_grad()
def _defect(member: Member, task: Task) -> str:
    """Why the backbone cannot be split at its classifier; empty if it can.

    The classifier gets random weights for this, since an initial weight of 0 would hide a fault.
    """
    try:
        classifier = member.backbone.get_classifier()
        if not isinstance(classifier, nn.Module):
            return "it has several classifiers"
        images = torch.rand(2, *task.shape, generator=randomness.generator("build_member"))
        with randomness.seeded("build_member"), answering(member), _randomised(classifier):
            features = member.features(images)
            split = member.head(features)
            whole = member.backbone(member.normalize(images))
    except Exception as error:  # third-party networks raise anything
        return f"it fails on a batch of images {task.shape}: {type(error).__name__}: {error}"
    if features.ndim != 2:
        return f"its features are not (N, D) but {tuple(features.shape)}"
    if split.shape != (2, task.classes):
        return f"its scores are not (N, {task.classes}) but {('N', *split.shape[1:])}"
    gap = float((split - whole).abs().max())
    if not gap <= TOLERANCE * max(1.0, float(whole.abs().max())):
        return f"head(features(x)) is {gap:.2g} away from its own scores"
    return ""


@contextmanager
def _randomised(classifier: nn.Module) -> Iterator[None]:
    """Random weights inside, of about the size of a linear layer's initial ones."""
    kept = [(p, p.detach().clone()) for p in classifier.parameters()]
    for p, _ in kept:
        p.normal_(std=p.shape[-1] ** -0.5)
    try:
        yield
    finally:
        for p, value in kept:
            p.copy_(value)
