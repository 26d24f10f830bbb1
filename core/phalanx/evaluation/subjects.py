"""What is evaluated, on what, with which attacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from phalanx.config import UseAttack
from phalanx.data import default_root
from phalanx.data.datasets import split_of
from phalanx.data.sets import Data, Split, load_data
from phalanx.defense import DefendedModel, View
from phalanx.errors import DataError, InputError, ThreatModelError
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Tier
from phalanx.nn.foreign import Foreign, wrap
from phalanx.phase import Batch
from phalanx.specs import Threat

OWN = "arrays"
"""Name of images that came without one; one for all forms, since draws are keyed by it."""
_BOOKKEEPING = frozenset(vars(nn.Module()))
"""What torch keeps in every module, its mode and its registered tensors among it."""


@dataclass(frozen=True)
class Subject:
    """A model under the name that a report gives it.

    Attributes:
        name: the report's `defense`.
        model: what is attacked.
        sha256: of its weights file, or `digest_of` a model in memory; stored cells answer to it.
        config_hash: of the run that trained it, or ''.
        surrogate: it is no subject of the report: its examples alone are shown to the others.
        component: the registered name of its defense, or ''.
        training: forward and backward passes per training image, over all phases; None: unknown.
    """

    name: str
    model: DefendedModel
    sha256: str
    config_hash: str = ""
    surrogate: bool = False
    component: str = ""
    training: tuple[float, float] | None = None


@dataclass(frozen=True)
class Also:
    """An attack besides those that run on every view.

    Attributes:
        use: the attack, with its threat.
        views: names of the views it runs on, of those that the model has; () is all.
        protocol: ``paper``, ``adaptive`` or None: whose it is, for the report.
    """

    use: UseAttack
    views: tuple[str, ...] = ()
    protocol: str | None = None


@dataclass(frozen=True)
class Plan:
    """How a model is attacked.

    Attributes:
        attacks: each with its threat; run on every view.
        views: names of the views to attack; () is all that the model has.
        limit: first N test images; None is all.
        protocol: its name, or '' where the attacks were named one by one.
        also: attacks besides, on some views.
        checks: which validity checks follow: those that cost nothing, the core's, or all.
        thresholds: when these checks warn and fail.
        notes: what was asked for and is left out, in sentences.
    """

    attacks: tuple[UseAttack, ...]
    views: tuple[str, ...] = ()
    limit: int | None = None
    protocol: str = ""
    also: tuple[Also, ...] = ()
    checks: Tier = "free"
    thresholds: Thresholds = DEFAULTS
    notes: tuple[str, ...] = ()

    @property
    def uses(self) -> tuple[UseAttack, ...]:
        """All attacks."""
        return (*self.attacks, *(one.use for one in self.also))

    def views_of(self, subject: Subject) -> dict[str, View]:
        """The model's views that are to be attacked, in the model's order."""
        views = subject.model.views()
        return {name: views[name] for name in views if not self.views or name in self.views}


@dataclass(frozen=True)
class Images:
    """Labelled test images under a name.

    Attributes:
        name: of the data set.
        split: the images.
        threat: that attackers have by default.
        notes: what a report's reader has to know of them, in sentences.
        facts: what a report's environment says of them.
    """

    name: str
    split: Split
    threat: Threat | None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


AnyData = str | Data | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]
"""What an evaluation takes for labelled test images."""


def images_of(data: AnyData, limit: int | None = None) -> Images:
    """What was given for data, as test images.

    Args:
        data: a data set's name, looked for in `phalanx.data.default_root`; a `Data`; a pair (x, y);
            a torch data set of (image, label), read by row; or a loader of such.
        limit: how many images are needed at most: no more are read of what is read once.

    Raises:
        DataError: if the data set is unknown or missing, or holds no images and labels.
    """
    if isinstance(data, str):
        data = load_data(data, root=default_root())
    if isinstance(data, Data):
        return _of(data)
    if isinstance(data, Dataset | DataLoader):
        return Images(OWN, split_of(data, limit), None)
    if not (isinstance(data, tuple) and len(data) == 2):
        raise DataError(
            "data is a data set's name, a phalanx.data.Data, a pair (x, y) of images (N, C, H, W) "
            "in [0, 1] and labels (N,), or a torch Dataset or DataLoader of these; found "
            f"{type(data).__name__}"
        )
    return Images(OWN, Split.from_arrays(*data), None)


def _of(data: Data) -> Images:
    """The test images of a data set; of photos, with what a reader has to know of them."""
    preprocessing = data.task.preprocessing
    if preprocessing is None:
        return Images(data.task.name, data.test, data.threat)
    facts = {"preprocessing": str(preprocessing)}
    left_out = "" if data.folder is None else data.folder.text()
    note = (
        f"The attacker changes the resized image in [0, 1], not the file: {preprocessing}. Test "
        "images come in a fixed random order of their files."
    )
    if left_out:
        facts["unreadable"] = left_out
    return Images(data.task.name, data.test, data.threat, notes=(note,), facts=facts)


def model_of(model: object) -> DefendedModel:
    """What was given for a model, as a defended model.

    Args:
        model: a `DefendedModel`, any `torch.nn.Module` (`phalanx.wrap`), or an ART estimator
            (`phalanx.from_art`).

    Raises:
        InputError: if it is none of these, or an estimator that cannot be read.
    """
    if isinstance(model, nn.Module):
        return wrap(model)
    if any(kind.__module__.startswith("art.estimators") for kind in type(model).__mro__):
        from phalanx.art.reading import from_art

        return from_art(model)
    raise InputError(
        "an evaluation takes a torch.nn.Module (images to scores), an ART PyTorchClassifier or the "
        f"model of a run (phalanx.load), found {type(model).__module__}."
        f"{type(model).__qualname__}"
    )


def name_of(model: nn.Module) -> str:
    """What a report calls a model that was given no name: its class, or that of a foreign one."""
    return model.title if isinstance(model, Foreign) else type(model).__name__


def members_of(model: DefendedModel) -> Sequence[nn.Module]:
    """A model's members; () where it fails to tell them."""
    try:
        return tuple(model.members)
    except Exception:  # somebody's model raises anything
        return ()


def check_model(model: object) -> None:
    """Refuse what is no defended model.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(model, DefendedModel):
        raise InputError(
            "a subject's model is a phalanx.defense.DefendedModel, found "
            f"{type(model).__module__}.{type(model).__qualname__}; put any other torch.nn.Module "
            "into phalanx.wrap"
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
        if not plan.uses:
            raise InputError(f"{subject.name}: no attacks; name a protocol or an attack")
        unknown = [name for name in plan.views if name not in known]
        if unknown or not plan.views_of(subject):
            asked = unknown[0] if unknown else ", ".join(plan.views)
            raise InputError(
                f"{subject.name} has no view {asked!r}; it has: {', '.join(subject.model.views())}"
            )
        views = plan.views_of(subject)
        if not plan.attacks and not any(
            not one.views or views.keys() & set(one.views) for one in plan.also
        ):
            raise InputError(
                f"{subject.name}: no attack of {plan.protocol or 'the plan'} runs on a view that "
                f"it has ({', '.join(views)}); name another protocol or attacks"
            )
        for use in plan.uses:
            if getattr(use.params, "threat", None) is None:
                raise ThreatModelError(
                    f"attack {use.use} has no threat, and the data has no default one: give "
                    "threat='linf:8/255' (or --norm linf --eps 8/255)"
                )


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a model in memory: its structure as printed, its state dict and other buffers.

    Of a foreign model also its parts' plain attributes and unregistered tensors, such as the
    deviation of a noise or a mean that was never made a buffer. What else a forward depends on (its
    code, functions it was given) does not enter: give each such model an `out` of its own.
    """
    digest = hashlib.sha256(repr(model).encode())
    state = model.state_dict()
    others = {name: value for name, value in model.named_buffers() if name not in state}
    for name, value in (*state.items(), *others.items()):
        digest.update(name.encode())
        digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    for name, part in model.named_modules():
        digest.update(name.encode() + _plain(_attributes(part)))
    return digest.hexdigest()


def digest_of_batch(batch: Batch) -> str:
    """SHA-256 of some rows' images and labels."""
    return hashlib.sha256(_bytes(batch.x) + _bytes(batch.y)).hexdigest()


def _attributes(part: nn.Module) -> dict[str, Any]:
    """What a module holds besides parameters, buffers, modules and torch's own bookkeeping."""
    return {name: value for name, value in vars(part).items() if name not in _BOOKKEEPING}


def _plain(value: Any) -> bytes:
    """A plain value, or containers of such; nothing of an object, which may print its address."""
    if isinstance(value, Tensor):
        return _bytes(value)
    if isinstance(value, np.ndarray | np.generic):
        return b"?" if value.dtype.hasobject else repr(value.shape).encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"{%s}" % b",".join(_plain(pair) for pair in value.items())
    if isinstance(value, tuple | list):
        return b"[%s]" % b",".join(_plain(one) for one in value)
    kinds = (bool, int, float, complex, str, bytes, torch.dtype)
    return repr(value).encode() if value is None or isinstance(value, kinds) else b"?"


def _bytes(value: Tensor) -> bytes:
    """Type, shape and content of a tensor; of one without data its shape, to be refused later."""
    if value.is_meta:
        return repr(value.shape).encode()
    found: bytes = save({"": value.detach().cpu().contiguous().clone()})
    return found
