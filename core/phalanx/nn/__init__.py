"""Networks: members, ensembles and populations of them, and backbones in timm's registry.

Importing this package registers Phalanx's backbones in timm's own registry, so that
``timm.create_model("resnet18_cifar", num_classes=10)`` works.
"""

from phalanx.combine import log_max, log_mean
from phalanx.nn import backbones  # noqa: F401  # importing it registers the backbones
from phalanx.nn.capture import capture
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.nn.member import Member, Normalize, build_member

__all__ = [
    "MeanEnsemble",
    "Member",
    "Normalize",
    "Population",
    "build_member",
    "capture",
    "log_max",
    "log_mean",
]
