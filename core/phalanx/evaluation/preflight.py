"""A foreign model is asked for the scores of two images before anything is attacked."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import attacking
from phalanx.data.sets import Split
from phalanx.defense import DefendedModel
from phalanx.errors import DataError, InputError, NonFiniteError, ValidityWarning
from phalanx.nn.foreign import Foreign

IMAGES = 2
"""How many images are asked about: one cannot show what belongs to a row."""
TOLERANCE = 1e-3
"""How far rows of probabilities may be from a sum of 1."""


def preflight(model: DefendedModel, split: Split, *, limit: int | None = None) -> None:
    """Refuse a foreign model that cannot be evaluated on these images; models of ours pass.

    Args:
        model: asked in evaluation mode, for the scores of the first two images in every view.
        split: the images and labels.
        limit: first N images that will be used; absent: all.

    Raises:
        InputError: if the model fails on the images, or its answers are no scores (N, K).
        DataError: if a label is not below K.
        NonFiniteError: if a score is NaN or infinite.
    """
    if not isinstance(model, Foreign):
        return
    name = model.title
    x = split.fetch(slice(0, min(IMAGES, len(split)))).x
    scores = _asked(model, x, name)
    if not torch.isfinite(scores).all():
        raise NonFiniteError(f"{name} answers with NaN or infinite scores; {_reason(model.module)}")
    K = scores.shape[1]
    if K < 2:
        raise InputError(
            f"{name} answers with {K} column of scores; an evaluation needs one for each class, at "
            "least 2: give a yes-or-no classifier the scores (-z, z)"
        )
    labels = split.labels[:limit]
    wrong = (labels >= K).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"row {row} has label {int(labels[row])}, but {name} tells {K} classes apart (labels 0 "
            f"to {K - 1}); {len(wrong)} of {len(labels)} rows are such: evaluate it on the data "
            "that it was made for, or number the classes as it does"
        )
    if _are_probabilities(scores):
        warnings.warn(
            f"{name} seems to answer with probabilities, not with logits: attacks apply softmax "
            "again, which hides gradients and makes it look more robust; leave the last softmax "
            "out, or give the logarithm of the probabilities (log_softmax)",
            ValidityWarning,
            stacklevel=3,
        )


def _asked(model: Foreign, x: Tensor, name: str) -> Tensor:
    """The deployed scores; every other view is asked too, which may find it broken."""
    places = [part.device for part in model.parameters()][:1]
    x = x.to(places[0]) if places else x
    found: list[Tensor] = []
    try:
        with randomness.seeded("preflight"), attacking(model):
            for view in model.views().values():
                found.append(view.open(0)(x.clone().requires_grad_()).detach())
    except (InputError, NonFiniteError):
        raise
    except Exception as error:  # somebody's network raises anything
        shape = tuple(x.shape)
        told = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{name} fails on {len(x)} images {shape}: {told}; is it made for images of this shape?"
        ) from error
    return found[0]


def _reason(module: nn.Module) -> str:
    """Whether its weights are to blame, and what to do."""
    broken = [
        tensor_name
        for tensor_name, value in module.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        return (
            f"its weights hold NaN or infinity in {len(broken)} tensors, {broken[0]!r} first: load "
            "a checkpoint from before its training diverged"
        )
    return "its weights are finite, so look for a division by zero, a log of zero or an overflow"


def _are_probabilities(scores: Tensor) -> bool:
    """Whether every row is positive and sums to 1, which logits hardly ever do."""
    sums = scores.sum(1)
    return bool((scores >= 0).all()) and bool(((sums - 1).abs() < TOLERANCE).all())
