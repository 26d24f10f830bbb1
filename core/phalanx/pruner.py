"""Pruners: regularizers that make a network really smaller."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from phalanx.config import PrunerConfig
from phalanx.errors import ConfigError
from phalanx.regularizer import Regularizer

ConfigT = TypeVar("ConfigT", bound=PrunerConfig)


class Pruner(Regularizer, Generic[ConfigT]):
    """Constrains weights while a phase trains them, and compacts them afterwards."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def project(self, name: str, weight: Tensor) -> Tensor:
        """Euclidean projection of a layer's weight on the set that the pruner allows it.

        Args:
            name: of the layer, as `layers` gives it.
            weight: ``(O, I, …)``; left as it is.
        """

    @abstractmethod
    def compact(self, model: nn.Module) -> nn.Module:
        """A copy that is smaller where the structure allows it, with equal outputs."""

    def layers(self, module: nn.Module) -> dict[str, nn.Module]:
        """The layers of `module` whose weight is pruned, by their names in it; all convolutions."""
        return convolutions(module)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that has nothing to prune; a defense asks when it builds its model.

        Raises:
            ConfigError: with what to write instead.
        """
        if self.layers(model):
            return
        name, found = type(model).__name__, convolutions(model)
        if found:
            first = next(iter(found)).rpartition("backbone.")[2]  # as patterns name it
            raise ConfigError(
                [
                    f"pruner: all {len(found)} convolutions of {name} are left out: let it prune "
                    f"one, such as {first!r}, with fewer or narrower patterns in its "
                    "skip"
                ]
            )
        raise ConfigError(
            [
                f"pruner: {name} has no convolution that is left to prune: choose a backbone with "
                "convolutions, such as resnet18_cifar"
            ]
        )


def convolutions(module: nn.Module) -> dict[str, nn.Module]:
    """The convolutions of `module` that own a weight ``(O, I, …)``, by their names in it.

    A weight that several of them share counts once, by the first. A convolution whose weight is
    computed from other tensors (`torch.nn.utils.parametrize`) has none of its own.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and weight is not None:
            found.setdefault(id(weight), (name, part))
    return dict(found.values())
