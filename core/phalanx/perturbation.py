"""Natural perturbations: changes of an image that know no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Generator, Tensor

from phalanx.config import PerturbationConfig

ConfigT = TypeVar("ConfigT", bound=PerturbationConfig)


class Perturbation(ABC, Generic[ConfigT]):
    """Images to perturbed images, at random and without a model."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Perturb images ``(N, C, H, W)`` in [0, 1]; the result has that shape and range."""
