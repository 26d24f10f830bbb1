"""The attack interface, and the mode in which a model is attacked.

An attack is tensors in, tensors out. It never touches a model's mode, its flags or any global
random state: who calls it enters `attacking` first, and gives it a generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from phalanx.config import AttackConfig
from phalanx.errors import ThreatModelError
from phalanx.specs import Threat

ConfigT = TypeVar("ConfigT", bound=AttackConfig)
Scores = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``."""


@dataclass(frozen=True)
class Targeted:
    """Attack towards these labels ``(N,)`` instead of away from the true ones."""

    labels: Tensor


class Observer(Protocol):
    """Sees the path of an attack."""

    def __call__(self, step: int, x: Tensor, loss: Tensor) -> None:
        """Take iterate `x` ``(N, C, H, W)`` of this step and its per-row loss ``(N,)``."""


class Attack(ABC, Generic[ConfigT]):
    """Images and labels to adversarial examples within a threat.

    Attributes:
        config: the attack's frozen config.
        threat: what it may change.
        supports: the threat types it can take.
    """

    supports: ClassVar[tuple[type[Threat], ...]] = (Threat,)

    def __init__(self, config: ConfigT) -> None:
        if config.threat is None:
            raise ThreatModelError(
                f"attack {type(self).__name__} has no threat, and the data set has no default one: "
                "write threat = 'linf:8/255' (or --norm and --eps)"
            )
        if not isinstance(config.threat, self.supports):
            known = ", ".join(kind.__name__.lower() for kind in self.supports)
            raise ThreatModelError(
                f"attack {type(self).__name__} cannot take threat {config.threat}; "
                f"it takes: {known}"
            )
        self.config = config
        self.threat: Threat = config.threat

    def at(self, threat: Threat) -> Self:
        """The same attack at another threat."""
        return type(self)(self.config.at(threat))

    @abstractmethod
    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """Adversarial examples for images `x` ``(N, C, H, W)`` in [0, 1].

        Args:
            model: images to scores ``(N, K)``; differentiable unless the attack needs no gradient.
                If it has a true attribute `rowwise`, a row's scores depend on that row alone,
                and the attack may drop rows that it has already fooled.
            x: clean images.
            y: labels ``(N,)``, or `Targeted` labels to reach.
            generator: every random draw of the attack comes from it; on x's device.
            observe: called with each iterate, where the attack offers its path.

        Returns:
            Images of the same shape, in [0, 1] and within the threat.
        """


def may_drop_rows(model: Any) -> bool:
    """Whether each row's scores depend on that row alone, so that fooled rows may be left out."""
    return bool(getattr(model, "rowwise", False))


@contextmanager
def answering(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode comes back, no flag is touched."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def attacking(module: nn.Module, batchnorm: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """Freeze the parameters and choose the mode of a module that is attacked; restore all after.

    Every submodule's own mode and every parameter's own flag come back, so frozen experts stay
    asleep and trainable heads trainable.

    Args:
        module: what is attacked.
        batchnorm: mode of the batch normalisation layers; their running statistics are restored
            where it is "train". All other layers are in evaluation mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    moving = norms if batchnorm == "train" else []
    kept = [(b, b.detach().clone()) for n in moving for b in n.buffers()]
    try:
        module.eval()
        for norm in norms:
            norm.training = batchnorm == "train"
        for parameter, _ in flags:
            parameter.requires_grad_(False)  # noqa: FBT003  # torch has no keyword for it
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for buffer, value in kept:
            buffer.copy_(value)
