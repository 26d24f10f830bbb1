"""Pruners: regularizers that make a network really smaller."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from phalanx.config import PrunerConfig
from phalanx.regularizer import Regularizer

ConfigT = TypeVar("ConfigT", bound=PrunerConfig)


class Pruner(Regularizer, Generic[ConfigT]):
    """Constrains weights while a phase trains them, and compacts them afterwards."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def project(self, name: str, weight: Tensor) -> Tensor:
        """Euclidean projection of a layer's weight on the set that the pruner allows it."""

    @abstractmethod
    def compact(self, model: nn.Module) -> nn.Module:
        """A copy that is smaller where the structure allows it, with equal outputs."""
