"""A foreign model is asked for the scores of two images before anything is attacked."""

from __future__ import annotations

import warnings
from typing import NamedTuple

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
AGAIN = 1e-4
"""How far scores may be from those of an equal call, relative to the largest."""
ALONE = 0.05
"""How far an image's scores may be from those in company: other batches, other kernels."""

_CALLER = 4
"""Frames from `preflight` to who called `phalanx.evaluate`."""


def preflight(model: DefendedModel, split: Split, *, limit: int | None = None) -> None:
    """Refuse a foreign model that cannot be evaluated on these images; models of ours pass.

    Of one that is random, or depends on the rest of a batch, and is not declared so, it warns: the
    evaluation goes on, and its checks make the rows unreliable.

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
    if any(part.is_meta for part in model.parameters()):
        raise InputError(f"{name} has weights without data (device meta); load them first")
    x = split.fetch(slice(0, min(IMAGES, len(split)))).x
    answers = _asked(model, x, name)
    scores = answers.scores
    if not torch.isfinite(scores).all():
        raise NonFiniteError(f"{name} answers with NaN or infinite scores; {_reason(model.module)}")
    K = scores.shape[1]
    if K < 2:
        raise InputError(
            f"{name} answers with {K} column of scores; an evaluation needs one for each class, at "
            "least 2: give a yes-or-no classifier the scores (-z, z)"
        )
    if not model.stochastic:
        _check_function(model, answers)
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
            stacklevel=_CALLER,
        )


class _Answers(NamedTuple):
    """Deployed scores ``(n, K)`` in two equal calls; ``(1, K)`` of the first image in others."""

    scores: Tensor
    again: Tensor
    beside_black: Tensor
    alone: Tensor


def _asked(model: Foreign, x: Tensor, name: str) -> _Answers:
    """The deployed scores; every other view is asked too, which may find it broken."""
    places = [part.device for part in model.parameters()][:1]
    x = x.to(places[0]) if places else x
    found: list[Tensor] = []
    try:
        with randomness.seeded("preflight"), attacking(model):
            for view in model.views().values():
                found.append(view.open(0)(x.clone().requires_grad_()).detach())
            asked = (x, torch.cat([x[:1], torch.zeros_like(x[:1])]), x[:1])
            again, beside, alone = (model.serve(0)(part.clone()).detach() for part in asked)
    except (InputError, NonFiniteError):
        raise
    except Exception as error:  # somebody's network raises anything
        shape = tuple(x.shape)
        told = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{name} fails on {len(x)} images {shape}: {told}; is it made for images of this shape?"
        ) from error
    return _Answers(found[0], again, beside[:1], alone)


def _check_function(model: Foreign, answers: _Answers) -> None:
    """Warn of what is no function of each image, and is not declared so.

    Attacks would leave out images that are fooled once, and one answer would judge the others.
    """
    types = [part.dtype for part in model.parameters() if part.is_floating_point()]
    rounding = max((100 * torch.finfo(one).eps for one in types), default=0.0)
    largest = float(answers.scores.abs().max())
    if _gap(answers.again, answers.scores) > max(AGAIN, rounding) * largest:
        warnings.warn(
            f"{model.title} answers differently from call to call; if that is meant, say "
            "phalanx.wrap(model, stochastic=True)",
            ValidityWarning,
            stacklevel=_CALLER + 1,
        )
    elif _gap(answers.alone, answers.beside_black) > max(ALONE, rounding) * largest:
        warnings.warn(
            f"{model.title} gives an image other scores alone than among others, as batch "
            "normalisation without running statistics does; mend that, or, if it is meant, say "
            "phalanx.wrap(model, stochastic=True), so that whole batches are attacked",
            ValidityWarning,
            stacklevel=_CALLER + 1,
        )


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


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
