"""RLS's own hyper-parameters; torch-free."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from phalanx.api import Backbone, DefenseConfig


class RLSConfig(DefenseConfig):
    """Random layer sampling, arXiv 2005.10757; the defaults are its ResNet-50's."""

    members: PositiveInt = Field(
        2, description="M, sub-models of one architecture; 1 is that network without a defense."
    )
    group: PositiveInt = Field(
        3, description="K, different sampled models whose mean prediction one step trains."
    )
    samples: PositiveInt = Field(
        10, description="N, sampled models drawn for each call, whose mean prediction is served."
    )
    backbone: Backbone = Field(
        default=Backbone(use="resnet50_cifar"),
        description="The architecture that all sub-models share.",
    )
    loss: Literal["mse", "nll_mean", "mean_ce"] = Field(
        "mse",
        description="mse: squared error of the mean prediction, the paper's; nll_mean: its "
        "cross-entropy; mean_ce: mean of the sampled models' own cross-entropies, without "
        "group optimisation.",
    )
    warmup_epochs: NonNegativeInt = Field(
        0, description="First epochs that are trained by nll_mean, where mse does not get going."
    )
    normalization: Literal["symmetric", "dataset", "none"] = Field(
        "symmetric",
        description="Of images in [0, 1], inside each sub-model; symmetric: to [-1, 1], the "
        "paper's; dataset: its mean and standard deviation.",
    )

    @field_validator("backbone", mode="before")
    @classmethod
    def _is_one(cls, value: Any) -> Any:
        """Layers of unlike sub-models cannot stand in for one another."""
        if isinstance(value, list | tuple):
            raise ValueError(
                f"found {len(value)} backbones, but each layer is drawn from sub-models of one "
                "architecture: write one backbone, and the number of sub-models as members"
            )
        return value

    @model_validator(mode="after")
    def _has_a_group(self) -> Self:
        if self.members == 1 and self.group > 1:
            raise ValueError(
                f"members = 1 has a single sampled model, and group = {self.group} asks for as "
                "many different ones: write group = 1, or members = 2 or more"
            )
        return self
