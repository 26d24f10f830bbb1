"""An ART classifier as a defended model: its network, clip values, preprocessing, postprocessing.

What ART does to arrays outside the network happens here inside a module on images in [0, 1]:
clip values (lo, hi) become ``lo + (hi - lo) x``, standardisation becomes arithmetic, PyTorch
preprocessors run with their own forward (and ART's own estimate of their gradient, where they have
one). What only knows numpy arrays is called as it is; gradients go around it by ART's
``estimate_gradient``, for postprocessing unchanged, and a warning names it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import EnsembleClassifier, PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.art.estimator import Estimator
from phalanx.attack import attacking
from phalanx.defense import DefendedModel
from phalanx.errors import InputError, ValidityWarning
from phalanx.nn.foreign import Foreign, wrap
from phalanx.specs import Task

_STANDARD = (StandardisationMeanStd, StandardisationMeanStdPyTorch)
_GAP = 1e-3
"""How far our scores may be from ART's, relative to the largest."""
_SHOWN = 16
"""Numbers of an array that are shown; of a longer one its hash."""


def from_art(classifier: Any, *, stochastic: bool = False) -> DefendedModel:
    """The model of an ART ``PyTorchClassifier``, on images in [0, 1].

    A radius is in units of [0, 1] too: ART's eps over (hi - lo) of its clip values.

    Args:
        classifier: an ART estimator around a PyTorch classifier of images. One that Phalanx made
            (``model.as_art()``) gives back its model.
        stochastic: its answers are random; see `phalanx.wrap`.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to what the classifier predicts, ``(N, K)``.

    Raises:
        InputError: if it is another kind of estimator, its clip values do not say where images
            lie, or it does not predict what it says.

    Warns:
        ValidityWarning: with the names of what gradients do not pass.
    """
    _check_kind(classifier)
    operations = [one for one in classifier.preprocessing_operations if one.apply_predict]
    operations = [one for one in operations if not _is_identity(one)]
    after = [one for one in classifier.postprocessing_defences or () if one.apply_predict]
    lo, hi = _clip_values(classifier)
    module = classifier.model
    plain = not operations and not after and bool((lo == 0).all() and (hi == 1).all())
    if plain and isinstance(classifier, Estimator):
        module = module.model
    if plain and classifier.channels_first and isinstance(module, DefendedModel):
        return module
    network = ArtNetwork(
        module, lo, hi, operations, after, channels_first=bool(classifier.channels_first)
    )
    as_it_is = plain and classifier.channels_first
    model = wrap(
        module if as_it_is else network, classes=int(classifier.nb_classes), stochastic=stochastic
    )
    if isinstance(model, Foreign):
        model.title = type(module).__name__
    model.task = _task(classifier)
    _compare(classifier, model, lo, hi, compared=not after and not stochastic)
    _warn(operations, after)
    return model


class ArtNetwork(nn.Module):
    """What an ART classifier predicts, as one differentiable module.

    Args:
        model: its network.
        lo: lowest value of a pixel, broadcast to an image.
        hi: highest value, likewise.
        operations: preprocessors, in order.
        after: postprocessors, in order.
        channels_first: whether the network takes ``(N, C, H, W)``, not ``(N, H, W, C)``.
    """

    lo: Tensor
    span: Tensor

    def __init__(
        self,
        model: nn.Module,
        lo: np.ndarray,
        hi: np.ndarray,
        operations: Sequence[Any] = (),
        after: Sequence[Any] = (),
        *,
        channels_first: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        for name, value in (("lo", lo), ("span", hi - lo)):
            held = torch.as_tensor(np.asarray(value, dtype=np.float32))
            self.register_buffer(name, held.to(_device(model)), persistent=False)
        self.operations = tuple(operations)
        self.after = tuple(after)
        self.channels_first = channels_first

    def extra_repr(self) -> str:
        """The preprocessing, for `print` and for the digest of the model."""
        parts = [_settings(one) for one in (*self.operations, *self.after)]
        return f"channels_first={self.channels_first}, {', '.join(parts)}"

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``."""
        x = x if self.channels_first else x.permute(0, 2, 3, 1)
        z = self.lo + self.span * x
        for one in self.operations:
            z = _apply(one, z)
        scores: Tensor = self.model(z.to(x.dtype))
        for one in self.after:
            scores = _Around.apply(scores, one, None)
        return scores


class _Around(torch.autograd.Function):
    """A function of numpy arrays; its gradient is `estimate`'s, or goes through unchanged."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        function: Callable[[np.ndarray], Any],
        estimate: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
    ) -> Tensor:
        ctx.estimate = estimate
        ctx.save_for_backward(z)
        found = function(_array(z))
        found = found[0] if isinstance(found, tuple) else found  # preprocessors return (x, y)
        return torch.as_tensor(np.asarray(found)).to(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.estimate is None:
            return gradient, None, None
        (z,) = ctx.saved_tensors
        found = ctx.estimate(_array(z), _array(gradient))
        return torch.as_tensor(np.asarray(found)).to(gradient), None, None


def _apply(one: Any, z: Tensor) -> Tensor:
    """One preprocessor, on images in ART's units."""
    if isinstance(one, _STANDARD):
        mean, std = (_aligned(value, z) for value in (one.mean, one.std))
        return (z - mean) / std
    if not isinstance(one, PreprocessorPyTorch):
        return _Around.apply(z, one, one.estimate_gradient)  # type: ignore[no-any-return]
    out: Tensor = one.forward(z)[0]
    if _estimates(one) and torch.is_grad_enabled() and z.requires_grad:
        estimate: Tensor = one.estimate_forward(z)
        return estimate + (out - estimate).detach()
    return out


def _estimates(one: Any) -> bool:
    """Whether a PyTorch preprocessor brings a gradient of its own."""
    own = type(one).estimate_forward
    return own is not PreprocessorPyTorch.estimate_forward


def _aligned(value: np.ndarray, z: Tensor) -> Tensor:
    """Mean or standard deviation as ART broadcasts it: one value, one a channel, or one a pixel."""
    held = torch.as_tensor(np.asarray(value, dtype=np.float32)).to(z.device)
    if held.ndim == 1 and len(held) > 1:
        place = next((axis for axis in (1, z.ndim - 1) if z.shape[axis] == len(held)), 1)
        held = held.view(-1, *(1,) * (z.ndim - 1 - place))
    return held


def _settings(one: Any) -> str:
    """A preprocessor with its plain settings: nothing that changes with use or with the process."""
    kinds = (bool, int, float, str, tuple, list, np.ndarray)
    plain = {
        name: _summary(value) if isinstance(value, np.ndarray) else value
        for name, value in sorted(vars(one).items())
        if isinstance(value, kinds) and not name.startswith("_")
    }
    return f"{type(one).__name__}({plain})"


def _summary(value: np.ndarray) -> str:
    """An array, told apart from every other one: numpy leaves out the middle of long ones."""
    if value.size <= _SHOWN:
        return str(value.tolist())
    return f"{value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"


def _array(z: Tensor) -> np.ndarray:
    found: np.ndarray = z.detach().float().cpu().numpy()
    return found


def _is_identity(one: Any) -> bool:
    """Whether it is the standardisation by (0, 1) that ART puts in by default."""
    if not isinstance(one, _STANDARD):
        return False
    return not np.any(one.mean) and bool(np.all(np.asarray(one.std) == 1))


def _check_kind(classifier: Any) -> None:
    kind = type(classifier).__name__
    if isinstance(classifier, PyTorchClassifier):
        shape = classifier.input_shape
        if len(shape) != 3:
            raise InputError(
                f"from_art takes classifiers of images, input_shape (C, H, W); found {shape}"
            )
        return
    if isinstance(classifier, EnsembleClassifier):
        raise InputError(
            "from_art cannot read ART's EnsembleClassifier, which mixes predictions as arrays and "
            "has no network of its own; read its members and mix them in one module: "
            "phalanx.nn.MeanEnsemble([phalanx.from_art(one) for one in ensemble.classifiers]), "
            "the mean of their probabilities"
        )
    raise InputError(
        f"from_art takes an ART PyTorchClassifier, found {type(classifier).__module__}.{kind}; "
        "its network has to be a torch.nn.Module, so that gradients can be taken of it"
    )


def _clip_values(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    given = classifier.clip_values
    if given is None:
        raise InputError(
            "the classifier has no clip_values, so nobody knows where its images lie; say so: "
            "classifier.set_params(clip_values=(0, 1)), or (0, 255)"
        )
    lo, hi = (np.asarray(value, dtype=np.float64) for value in given)
    try:
        for value in (lo, hi):
            np.broadcast_to(value, classifier.input_shape)
    except ValueError:
        raise InputError(
            f"the classifier's clip_values have shape {lo.shape}, its images "
            f"{classifier.input_shape}; give two numbers, or arrays of the images' shape"
        ) from None
    if not (np.isfinite(lo).all() and np.isfinite(hi).all() and (lo < hi).all()):
        raise InputError(
            f"the classifier's clip_values are {given}; they must be finite, the first below the "
            "second"
        )
    return lo, hi


def _task(classifier: Any) -> Task:
    """What is known of the data: shape and classes. Images are as they are: mean 0, std 1."""
    C, H, W = classifier.input_shape
    if not classifier.channels_first:
        C, H, W = W, C, H
    return Task(
        name=f"ART's {type(classifier).__name__}",
        shape=(C, H, W),
        classes=int(classifier.nb_classes),
        train_size=0,
        mean=(0.0,) * C,
        std=(1.0,) * C,
    )


@torch.no_grad()
def _compare(
    classifier: Any, model: DefendedModel, lo: np.ndarray, hi: np.ndarray, *, compared: bool
) -> None:
    """Refuse a reading that does not predict what ART predicts.

    `compared` is off where the answers are random or postprocessed, which may round.
    """
    x = torch.rand(2, *_task(classifier).shape, generator=randomness.generator("from_art"))
    with randomness.seeded("from_art"), attacking(model):
        ours = model.serve(0)(x.to(_device(model))).cpu().numpy()
        if not compared:
            return
        images = x.numpy() if classifier.channels_first else x.permute(0, 2, 3, 1).numpy()
        try:
            theirs = [classifier.predict((lo + (hi - lo) * images).astype(np.float32))]
            theirs.append(classifier.predict((lo + (hi - lo) * images).astype(np.float32)))
        except Exception:  # ART fails on float64 that numpy preprocessors make; ours casts it
            return
    if not np.allclose(theirs[0], theirs[1], atol=_scale(theirs[0])):
        raise InputError(
            "the classifier answers differently from call to call; say "
            "from_art(classifier, stochastic=True)"
        )
    if ours.shape != theirs[0].shape or not np.allclose(ours, theirs[0], atol=_scale(theirs[0])):
        raise InputError(
            "read from the classifier's network and preprocessing, the scores are not those that "
            "its predict gives: is its predict overridden, or its network an nn.Sequential with a "
            "forward of its own, which ART goes around? Give the whole function as a module to "
            "phalanx.wrap"
        )


def _scale(scores: np.ndarray) -> float:
    return _GAP * max(1.0, float(np.abs(scores).max()))


def _warn(operations: Sequence[Any], after: Sequence[Any]) -> None:
    names = [
        type(one).__name__
        for one in operations
        if not isinstance(one, _STANDARD)
        and (not isinstance(one, PreprocessorPyTorch) or _estimates(one))
    ]
    names += [type(one).__name__ for one in after]
    if names:
        warnings.warn(
            f"gradients do not pass {', '.join(names)}: it stays part of what is judged, but a "
            "gradient attack sees ART's estimate of it, which may hide a weakness; add an attack "
            "that needs no gradient (square)",
            ValidityWarning,
            stacklevel=3,
        )


def _device(module: nn.Module) -> torch.device:
    tensor = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device
