"""What our backbones share: timm's interface of a classifier, and the way into its registry."""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import timm
from timm.models import register_model
from torch import Tensor, nn
from torch.fx import Proxy

from phalanx.errors import InputError


class Network(nn.Module, ABC):
    """A classifier with timm's interface; weights are initialised as torch's layers do it.

    A subclass makes its layers, then calls `_finish`. Nothing is done in place, so that gradients
    of gradients and hooks on activations work.

    Attributes:
        classifier_name: the attribute that holds the last layer, part of the weights' names.
        num_features: D, the last layer's inputs.
        num_classes: K; 0 for no last layer.
    """

    classifier_name: ClassVar[str]
    num_features: int
    num_classes: int

    def _finish(self, num_features: int, num_classes: int) -> None:
        self.num_features = num_features
        self.reset_classifier(num_classes)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to the last feature maps ``(N, C', H', W')``."""

    def pool(self, x: Tensor) -> Tensor:
        """Feature maps to features ``(N, D)``: the mean over all places."""
        return x.mean((2, 3))

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits ``(N, K)``, or with `pre_logits` to features ``(N, D)``."""
        features = self.pool(x)
        if pre_logits:
            return features
        logits: Tensor = self.get_classifier()(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, K)``."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer in; 0 classes leave the features as they are.

        Args:
            num_classes: K.
            global_pool: timm's choice of pooling; these networks have only their own.
        """
        del global_pool
        self.num_classes = num_classes
        weight = next(self.parameters())
        layer = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        setattr(self, self.classifier_name, layer.to(weight.device, weight.dtype))


def check_size(x: Tensor, size: tuple[int, int], name: str) -> None:
    """Refuse images of another size; a trace of the network, by `torch.fx`, has none.

    Raises:
        InputError: if `x` ``(N, C, H, W)`` is not of `size` (H, W).
    """
    if isinstance(x, Proxy):
        return
    height, width = x.shape[2:]
    if (height, width) != size:
        raise InputError(
            f"{name} takes images of {size[0]}x{size[1]}, found {height}x{width}; small_cnn takes "
            "any size"
        )


def backbone(entry: Callable[..., Network]) -> Callable[..., Network]:
    """Register a function that builds a network in timm's registry, under the function's name.

    timm's own keywords are taken and left aside; an import repeated is not warned of.
    """

    @functools.wraps(entry)
    def create(
        *,
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **params: Any,
    ) -> Network:
        if pretrained:
            raise InputError(
                f"{entry.__name__} has no pretrained weights; leave pretrained=True out"
            )
        return entry(**params)

    with warnings.catch_warnings():
        if timm.is_model(entry.__name__):
            before = timm.models.model_entrypoint(entry.__name__)
            if before.__module__ == entry.__module__:
                warnings.simplefilter("ignore")
        register_model(create)
    return create
