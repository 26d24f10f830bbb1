"""What is evaluated, on what, with which attacks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from phalanx.config import UseAttack
from phalanx.data import default_root
from phalanx.data.sets import Data, Split, load_data
from phalanx.defense import DefendedModel, View
from phalanx.errors import DataError, InputError, ThreatModelError
from phalanx.evaluation.cell import BLOCK
from phalanx.specs import Threat


@dataclass(frozen=True)
class Subject:
    """A model under the name that a report gives it.

    Attributes:
        name: the report's `defense`.
        model: what is attacked.
        sha256: of its weights file, or `digest_of` a model in memory; stored cells answer to it.
        config_hash: of the run that trained it, or ''.
    """

    name: str
    model: DefendedModel
    sha256: str
    config_hash: str = ""


@dataclass(frozen=True)
class Plan:
    """How a model is attacked.

    Attributes:
        attacks: each with its threat; run on every view.
        views: names of the views to attack; () is all that the model has.
        limit: first N test images; None is all.
        protocol: its name, or '' where the attacks were named one by one.
    """

    attacks: tuple[UseAttack, ...]
    views: tuple[str, ...] = ()
    limit: int | None = None
    protocol: str = ""

    def views_of(self, subject: Subject) -> dict[str, View]:
        """The model's views that are to be attacked, in the model's order."""
        views = subject.model.views()
        return {name: views[name] for name in views if not self.views or name in self.views}


@dataclass(frozen=True)
class Images:
    """Labelled test images under a name, with the threat that attackers have by default."""

    name: str
    split: Split
    threat: Threat | None


def images_of(data: str | Data | tuple[Any, Any]) -> Images:
    """A data set's name, a `Data`, or a pair (x, y), as test images.

    A name is looked for in `phalanx.data.default_root`.

    Raises:
        DataError: if the data set is unknown or missing, or x and y are no images and labels.
    """
    if isinstance(data, str):
        data = load_data(data, root=default_root())
    if isinstance(data, Data):
        return Images(data.task.name, data.test, data.threat)
    if not (isinstance(data, tuple) and len(data) == 2):
        raise DataError(
            "data is a data set's name, a phalanx.data.Data, or a pair (x, y) of images "
            f"(N, C, H, W) in [0, 1] and labels (N,); found {type(data).__name__}"
        )
    return Images("arrays", Split.from_arrays(*data), None)


def check_model(model: object) -> None:
    """Refuse what is no model of ours.

    Raises:
        InputError: if it is no `DefendedModel`.
    """
    if not isinstance(model, DefendedModel):
        raise InputError(
            "an evaluation takes a phalanx.defense.DefendedModel, found "
            f"{type(model).__module__}.{type(model).__qualname__}; give the model of a run "
            "(phalanx.load), or derive a class of your own from DefendedModel with `draw`"
        )


def check_limit(limit: int | None) -> None:
    """Refuse a number of images that is none.

    Raises:
        InputError: if it is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is the first N test images, N >= 1, found {limit}; None is all")


def check_images(subjects: Sequence[Subject], images: Images) -> None:
    """Refuse images that the models cannot be evaluated on.

    Raises:
        DataError: if there are none, or their shape is not that of a model's task.
    """
    if not len(images.split):
        raise DataError(f"{images.name} has no test images; an evaluation needs at least one")
    shape = tuple(images.split.shape)
    for subject in subjects:
        task = subject.model.task
        if task is not None and tuple(task.shape) != shape:
            raise DataError(
                f"{subject.name} takes images {tuple(task.shape)} of {task.name}, but those of "
                f"{images.name} are {shape}; give images (N, C, H, W) of the model's shape"
            )


def check_plans(subjects: Sequence[Subject], plans: Sequence[Plan]) -> None:
    """Refuse what cannot be evaluated before anything is computed.

    Raises:
        InputError: for names that are given twice, models that are none, a limit below 1, nothing
            to attack with, or views that no model has, or none of which one model has.
        ThreatModelError: for an attack without a threat.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names) or not names:
        raise InputError(f"an evaluation needs models, each under its own name; found {names}")
    for subject in subjects:
        check_model(subject.model)
    known = {name for subject in subjects for name in subject.model.views()}
    for subject, plan in zip(subjects, plans, strict=True):
        check_limit(plan.limit)
        if not plan.attacks:
            raise InputError(f"{subject.name}: no attacks; name a protocol or an attack")
        unknown = [name for name in plan.views if name not in known]
        if unknown or not plan.views_of(subject):
            asked = unknown[0] if unknown else ", ".join(plan.views)
            raise InputError(
                f"{subject.name} has no view {asked!r}; it has: {', '.join(subject.model.views())}"
            )
        for use in plan.attacks:
            if getattr(use.params, "threat", None) is None:
                raise ThreatModelError(
                    f"attack {use.use} has no threat, and the data has no default one: give "
                    "threat='linf:8/255' (or --norm linf --eps 8/255)"
                )


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a model in memory: its structure as printed, its state dict and other buffers.

    Hyper-parameters that stand in neither do not enter: give each such model an `out` of its own.
    """
    digest = hashlib.sha256(repr(model).encode())
    state = model.state_dict()
    others = {name: value for name, value in model.named_buffers() if name not in state}
    for name, value in (*state.items(), *others.items()):
        digest.update(name.encode())
        digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def digest_of_rows(split: Split, rows: int) -> str:
    """SHA-256 of the first rows' images and labels."""
    digest = hashlib.sha256()
    for first in range(0, rows, BLOCK):
        batch = split.fetch(slice(first, min(first + BLOCK, rows)))
        digest.update(_bytes(batch.x) + _bytes(batch.y))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    """Type, shape and content of a tensor."""
    found: bytes = save({"": value.detach().cpu().contiguous().clone()})
    return found
