"""Types of input by name: what a multi-perturbation defense trains on and is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from phalanx.attack import Attack
from phalanx.attacks.crafting import lighter
from phalanx.config import PerturbationType
from phalanx.perturbation import Perturbation
from phalanx.phase import BatchTransform
from phalanx.training.transforms import Adversarial, Natural


@dataclass(frozen=True)
class Perturbing:
    """Makes the inputs of one type.

    Attributes:
        name: of the type.
        attack: makes adversarial examples; None: the type is no attack.
        perturbation: changes images without a model; with neither, images stay as they are.
    """

    name: str
    attack: Attack[Any] | None = None
    perturbation: Perturbation[Any] | None = None

    @classmethod
    def of(cls, config: PerturbationType) -> Perturbing:
        """What a config describes."""
        return cls(
            config.name,
            None if config.attack is None else config.attack.create(),
            None if config.perturbation is None else config.perturbation.create(),
        )

    def __call__(
        self, target: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, generator: Generator
    ) -> Tensor:
        """Inputs of this type, detached.

        The caller freezes what `target` consists of, and restores it: see `phalanx.api.attacking`.

        Args:
            target: images to scores ``(N, K)``; asked by an attack only.
            x: clean images ``(N, C, H, W)`` in [0, 1].
            y: labels ``(N,)``.
            generator: of the attack's or the perturbation's draws.
        """
        if self.attack is not None:
            return self.attack(lighter(target, x), x, y, generator=generator).detach()
        if self.perturbation is not None:
            return self.perturbation(x, generator=generator)
        return x

    def transforms(self) -> tuple[BatchTransform, ...]:
        """Transforms that put this type in the place of a batch's images."""
        if self.attack is not None:
            return (Adversarial(self.attack),)
        return () if self.perturbation is None else (Natural(self.perturbation),)
