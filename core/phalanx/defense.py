"""The defense interface: what is built, what is served, and what an attacker may differentiate.

A `DefendedModel` takes images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)`` whose softmax is the
probability that it serves. Its one abstract method is `draw`: one draw of the served function,
pure in (weights, images, generator).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn

from phalanx import randomness, registry
from phalanx.combine import log_mean
from phalanx.config import DefenseConfig
from phalanx.specs import Task

if TYPE_CHECKING:
    from phalanx.art.estimator import Estimator
    from phalanx.phase import Phase

ConfigT = TypeVar("ConfigT", bound=DefenseConfig)


class Defense(ABC, Generic[ConfigT]):
    """A published method: builds the model and says in which phases it is trained."""

    def __init__(self, config: ConfigT, task: Task) -> None:
        self.config = config
        self.task = task

    @property
    def warm_start_reason(self) -> str:
        """Why training must begin with trained weights, by ``[init]``, and what to write; else ''.

        A wrapper of another defense passes on what that one says.
        """
        return ""

    @abstractmethod
    def build(self) -> DefendedModel:
        """The untrained model; the trainer calls this with torch's global generator seeded."""

    @abstractmethod
    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """The stages of training; cheap and pure: called again at each resume."""


@dataclass(frozen=True)
class View:
    """One differentiable function that an attacker may attack to break the model.

    Attributes:
        open: seed to a module with a random stream of its own, sharing the model's weights.
        rowwise: deterministic and row by row: batch-mates and earlier calls do not matter.
        fixed_draw: one draw is chosen at opening and kept, so an evaluation opens it afresh for
            each chunk of images.
    """

    open: Callable[[int], nn.Module]
    rowwise: bool = True
    fixed_draw: bool = False


@dataclass(frozen=True)
class Combined:
    """What an ensemble's function averages.

    Attributes:
        logits: of its n parts, ``(n, N, K)``.
        rule: whether the parts' probabilities, logits or votes are averaged.
    """

    logits: Tensor
    rule: Literal["probabilities", "logits", "votes"]


class DefendedModel(nn.Module, ABC):
    """What is trained, attacked and served.

    Attributes:
        stochastic: whether two calls may differ.
        aux: modules that are trained and resumed with the model but are not part of what is
            shipped; an empty module by default.
        task: what it was built for; set by the trainer and the loader, None before.
        component: the registered name of its defense, set likewise; '' before.
    """

    stochastic: bool = False
    aux: nn.Module
    task: Task | None
    component: str

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Module()
        self.task: Task | None = None
        self.component = ""
        self._stream = Stream(0)

    @property
    def members(self) -> Sequence[nn.Module]:
        """The ensemble's or population's members; () when there are none."""
        return ()

    @abstractmethod
    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """One draw of the served function: images ``(N, C, H, W)`` to scores ``(N, K)``.

        Pure in (weights, x, generator); a deterministic model takes None.
        """

    def support(self) -> Sequence[nn.Module]:
        """The equally likely functions of a stochastic model when they are few, else ()."""
        return ()

    def combined(self, x: Tensor) -> Combined | None:
        """What the served function, or the view ``expected`` of a stochastic model, averages.

        Attacks on ensembles weigh the parts anew. None, the default, where it is no average of
        members' probabilities, logits or votes.

        Args:
            x: images ``(N, C, H, W)``.
        """
        return None

    def serve(self, seed: int) -> nn.Module:
        """The deployed function on a random stream of its own, weights shared."""
        return Served(self, seed)

    def views(self) -> Mapping[str, View]:
        """The functions an attacker may differentiate, by name.

        ``deployed`` always; for a stochastic model also ``one-draw`` (one basic function, chosen
        at opening and fixed) and ``expected`` (the log of the mean probability, over `support` in
        closed form or over 20 fresh draws a call).
        """
        views = {"deployed": View(self.serve, rowwise=not self.stochastic)}
        if self.stochastic:
            closed = bool(self.support())
            views["one-draw"] = View(
                lambda seed: one_draw(self, seed), rowwise=closed, fixed_draw=True
            )
            views["expected"] = View(lambda seed: Expected(self, seed), rowwise=closed)
        return views

    def reseed(self, *parts: str | int) -> None:
        """Re-key the stream behind `forward`."""
        self._stream = Stream(randomness.key(*parts))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, K)`` on the model's own stream: what ART and strangers call.

        Input of another floating type, or of integers, is cast to the weights' type.
        """
        x = cast_like(x, self)
        return self.draw(x, self._stream.next(x.device) if self.stochastic else None)

    def as_art(
        self,
        view: str = "deployed",
        *,
        seed: int = 0,
        input_shape: tuple[int, int, int] | None = None,
        nb_classes: int | None = None,
    ) -> Estimator:
        """This model as an estimator of the Adversarial Robustness Toolbox.

        Args:
            view: which of `views` the estimator predicts and differentiates.
            seed: opens the view.
            input_shape: ``(C, H, W)``; absent: that of the model's task.
            nb_classes: K; absent: that of the model's task.

        Raises:
            ConfigError: for an unknown view, or a model without a task where the two lack.
        """
        from phalanx.art.estimator import as_art

        return as_art(self, view, seed=seed, input_shape=input_shape, nb_classes=nb_classes)


def cast_like(x: Tensor, module: nn.Module) -> Tensor:
    """`x` in the type of the module's first floating parameter (unchanged if it has none)."""
    floating = (parameter for parameter in module.parameters() if parameter.is_floating_point())
    parameter = next(floating, None)  # integers, of a quantised network, would empty the images
    return x if parameter is None else x.to(parameter.dtype)


@dataclass
class Stream:
    """A sequence of generators, keyed by (seed, call); plain data, so it pickles and copies."""

    seed: int
    calls: int = 0

    def next(self, device: torch.device) -> Generator:
        """The generator of the next call."""
        self.calls += 1
        return randomness.generator(self.seed, "call", self.calls, device=device)


class Served(nn.Module):
    """A model on a stream of its own, keyed by `seed`."""

    def __init__(self, model: DefendedModel, seed: int) -> None:
        super().__init__()
        self.model = model
        self.stream = Stream(randomness.key(seed, "serve"))

    @property
    def members(self) -> Sequence[nn.Module]:
        """The model's members."""
        return self.model.members

    def combined(self, x: Tensor) -> Combined | None:
        """What a deterministic model averages; one draw of a stochastic one is no average."""
        return None if self.model.stochastic else self.model.combined(cast_like(x, self.model))

    def forward(self, x: Tensor) -> Tensor:
        """One draw: images ``(N, C, H, W)`` to scores ``(N, K)``."""
        x = cast_like(x, self.model)
        return self.model.draw(x, self.stream.next(x.device) if self.model.stochastic else None)


class FixedDraw(nn.Module):
    """One draw of a model, repeated at every call.

    Not row by row: the same generator meets another batch shape and gives other draws.
    """

    def __init__(self, model: DefendedModel, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """The fixed draw: images ``(N, C, H, W)`` to scores ``(N, K)``."""
        x = cast_like(x, self.model)
        return self.model.draw(x, randomness.generator(self.seed, "fixed", device=x.device))


def one_draw(model: DefendedModel, seed: int) -> nn.Module:
    """One basic function of a stochastic model, chosen by `seed`: a sub-model or a fixed draw."""
    support = model.support()
    if not support:
        return FixedDraw(model, seed)
    chosen = torch.randint(len(support), (), generator=randomness.generator(seed, "one-draw"))
    return support[int(chosen)]


class Expected(nn.Module):
    """The log of the mean probability: over the support, or over `draws` fresh draws a call."""

    def __init__(self, model: DefendedModel, seed: int, *, draws: int = 20) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.stream = Stream(randomness.key(seed, "expected"))

    @property
    def members(self) -> Sequence[nn.Module]:
        """The model's members."""
        return self.model.members

    def combined(self, x: Tensor) -> Combined | None:
        """What the model averages in expectation."""
        return self.model.combined(cast_like(x, self.model))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to log mean probabilities ``(N, K)``."""
        x = cast_like(x, self.model)
        support = self.model.support()
        if support:
            return log_mean([part(x) for part in support])
        return log_mean([self.model.draw(x, self.stream.next(x.device)) for _ in range(self.draws)])


class _CallableModule(ModuleType):
    """Importing this module makes it `phalanx.defense`, which is also the registering decorator."""

    def __call__(self, name: str, **declared: Any) -> Any:
        return registry.defense(name, **declared)


sys.modules[__name__].__class__ = _CallableModule
