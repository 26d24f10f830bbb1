"""Somebody else's classifier as a defended model: what it is has to be declared, not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from phalanx import randomness
from phalanx.defense import Combined, DefendedModel, View
from phalanx.errors import InputError
from phalanx.nn.member import Normalize

_SEEDS = 2**62


def wrap(
    module: nn.Module,
    *,
    classes: int | None = None,
    stochastic: bool = False,
    members: Sequence[nn.Module] = (),
    surrogate: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DefendedModel:
    """Any classifier as a model that can be attacked, judged and made an ART estimator.

    The module is not copied and keeps its mode, device and weights. It is asked in evaluation mode
    whenever it is attacked or judged.

    Args:
        module: images ``(N, C, H, W)`` to scores ``(N, K)`` whose softmax is the probability that
            it serves. A `DefendedModel` comes back as it is.
        classes: K, if known: scores of another width are then refused.
        stochastic: its answers are random, drawn from torch's, numpy's or Python's global
            generators. Each draw then runs with these forked and keyed, so it is a function of
            (weights, images, generator), and the model has the views ``deployed``, ``one-draw``
            and ``expected``.
        members: submodules of it that are classifiers of their own; they take what it takes.
        surrogate: a differentiable stand-in that takes what it takes. It adds a view
            ``surrogate``: scores of the deployed function, gradients of the stand-in (BPDA:
            Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML
            2018, arXiv 1802.00420, section 4.1).
        mean: per channel, in units of [0, 1]: what was subtracted from its training images, so
            that it is given ``(x - mean) / std`` for images in [0, 1].
        std: per channel, likewise.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``.

    Raises:
        InputError: if it is no module, a member is no part of it, or mean and std do not fit.

    >>> from torch import nn
    >>> list(wrap(nn.Flatten(), stochastic=True).views())
    ['deployed', 'one-draw', 'expected']
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"wrap takes a torch.nn.Module, found {type(module).__module__}."
            f"{type(module).__qualname__}; an ART estimator goes through phalanx.from_art"
        )
    declared = stochastic or members or surrogate is not None or mean is not None or std is not None
    if isinstance(module, DefendedModel):
        if declared:
            raise InputError(
                f"{type(module).__name__} is a DefendedModel, which says itself whether it is "
                "stochastic and what its members and views are; wrap takes no such arguments for it"
            )
        return module
    return Foreign(
        module,
        classes=classes,
        stochastic=stochastic,
        members=members,
        surrogate=surrogate,
        normalize=_normalization(mean, std),
    )


ALIKE = 1e-4
"""How far what a module serves may be from a mean of its members."""


class Foreign(DefendedModel):
    """A classifier that Phalanx did not build; see `wrap`.

    Attributes:
        module: what answers.
        normalize: done to images first.
        surrogate: stands in for the module's gradients, or None.
        classes: K, if it was declared.
        title: what a report and messages call it: the module's class.
    """

    surrogate: nn.Module | None

    def __init__(
        self,
        module: nn.Module,
        *,
        normalize: nn.Module,
        classes: int | None = None,
        stochastic: bool = False,
        members: Sequence[nn.Module] = (),
        surrogate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        place = _place(module)
        self.normalize = normalize if place is None else normalize.to(place.device)
        self.surrogate = surrogate
        self.stochastic = stochastic
        self.classes = classes
        self.title = type(module).__name__
        self._members = _names(module, members)

    @property
    def members(self) -> Sequence[nn.Module]:
        """Its members: images ``(N, C, H, W)`` in [0, 1] to ``(N, K)``, weights shared."""
        parts = dict(self.module.named_modules())
        return tuple(_Part(self, parts[name]) for name in self._members)

    def combined(self, x: Tensor) -> Combined | None:
        """The members' logits, if the module serves a mean of their probabilities or logits.

        Which of the two is seen on the images themselves; a random module is taken for neither.
        """
        members = self.members
        if self.stochastic or len(members) < 2:
            return None
        logits = torch.stack([member(x) for member in members])
        with torch.no_grad():
            own = self.draw(x, None)
            if own.shape != logits.shape[1:]:
                return None
            if torch.allclose(own.softmax(1), logits.softmax(2).mean(0), atol=ALIKE, rtol=0.0):
                return Combined(logits, "probabilities")
            spread = float(own.abs().max())
            if torch.allclose(own, logits.mean(0), atol=ALIKE * max(1.0, spread), rtol=0.0):
                return Combined(logits, "logits")
        return None

    def extra_repr(self) -> str:
        """What was declared, for `print` and for the digest of the model."""
        return f"stochastic={self.stochastic}, members={list(self._members)}"

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """One answer of the module: images ``(N, C, H, W)`` to scores ``(N, K)``, float32 or wider.

        Raises:
            InputError: if the answer is no tensor ``(N, K)``.
            ValueError: without a generator, where the module is stochastic.
        """
        if not self.stochastic:
            return self.answer(self.module, x)
        if generator is None:
            raise ValueError("the module is declared stochastic: draw needs a generator")
        seed = torch.randint(_SEEDS, (), generator=generator, device=generator.device)
        with randomness.seeded("draw", int(seed)):
            return self.answer(self.module, x)

    def answer(self, part: nn.Module, x: Tensor) -> Tensor:
        """Scores ``(N, K)`` of the module, or of what takes the same, on x's device.

        Raises:
            InputError: if the answer is no tensor ``(N, K)``.
        """
        place = _place(part)
        if place is None:
            inputs = x if x.is_floating_point() else x.float()
        else:
            inputs = x.to(place.device, place.dtype)
        given = self.normalize(inputs).to(inputs.dtype)
        given = given.clone() if given is x else given  # some networks change their input
        scores: Tensor = part(given)
        _check(scores, part, count=len(x), classes=self.classes)
        wide = scores if scores.element_size() >= 4 else scores.float()
        return wide.to(x.device)

    def views(self) -> Mapping[str, View]:
        """Those of every model, and ``surrogate`` where there is one."""
        views = dict(super().views())
        if self.surrogate is not None:
            stand_in = self.surrogate
            views["surrogate"] = View(
                lambda seed: Surrogate(
                    self.serve(seed), lambda x: self.answer(stand_in, x), owner=self
                ),
                rowwise=not self.stochastic,
            )
        return views


class Surrogate(nn.Module):
    """Scores of one function, gradients of another (BPDA).

    Args:
        deployed: gives the scores.
        stand_in: gives the gradients; asked only where one is wanted.
        owner: holds the stand-in's weights, so that they are frozen with the rest.
    """

    def __init__(
        self, deployed: nn.Module, stand_in: Callable[[Tensor], Tensor], *, owner: nn.Module
    ) -> None:
        super().__init__()
        self.deployed = deployed
        self.owner = owner
        self._stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to the deployed scores ``(N, K)``.

        Raises:
            InputError: if the two give scores of different shapes.
        """
        with torch.no_grad():
            scores: Tensor = self.deployed(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return scores
        differentiable = self._stand_in(x)
        if differentiable.shape != scores.shape:
            raise InputError(
                f"the surrogate gives scores {tuple(differentiable.shape)}, the deployed function "
                f"{tuple(scores.shape)}; both have to tell the same classes apart"
            )
        replaced: Tensor = _Replace.apply(scores, differentiable)
        return replaced


class _Replace(torch.autograd.Function):
    """The first argument's values, the second one's gradient; exact where a sum would round."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, differentiable: Tensor) -> Tensor:
        ctx.dtype = differentiable.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


class _Part(nn.Module):
    """One member, given what the whole model is given."""

    def __init__(self, owner: Foreign, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.normalize = owner.normalize
        self._owner = (owner,)  # in a tuple: it owns this member's weights, not the reverse

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``."""
        return self._owner[0].answer(self.part, x)


def _names(module: nn.Module, members: Sequence[nn.Module]) -> tuple[str, ...]:
    """Under which names the module holds its members."""
    names = {id(part): name for name, part in module.named_modules()}
    for place, member in enumerate(members):
        if id(member) not in names:
            raise InputError(
                f"members[{place}] ({type(member).__name__}) is no submodule of "
                f"{type(module).__name__}; give parts of it, such as module.networks"
            )
    return tuple(names[id(member)] for member in members)


def _normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None or len(mean) != len(std) or not len(mean):
        raise InputError(
            f"mean and std belong together, one value each per channel; found mean={mean}, "
            f"std={std}"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise InputError(
            f"mean and std are finite and std is positive, in units of [0, 1]; found mean={mean}, "
            f"std={std}"
        )
    return Normalize([float(value) for value in mean], [float(value) for value in std])


def _place(module: nn.Module) -> Tensor | None:
    """A floating tensor of the module's, whose device and type its inputs need; None if none."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _check(scores: Any, part: nn.Module, *, count: int, classes: int | None) -> None:
    name = type(part).__name__
    if not isinstance(scores, Tensor):
        raise InputError(
            f"{name} answers with {type(scores).__name__}, not with a tensor of scores (N, K); put "
            "a module around it whose forward returns the scores alone"
        )
    if scores.ndim != 2 or len(scores) != count or not scores.is_floating_point():
        raise InputError(
            f"{name} answered {count} images with {scores.dtype} of shape {tuple(scores.shape)}; "
            "it must be floating scores (N, K), one row for each image and one column for each "
            "class"
        )
    if classes is not None and scores.shape[1] != classes:
        raise InputError(
            f"{name} tells {scores.shape[1]} classes apart, declared: classes={classes}"
        )
