"""Settings of PDD and DEG; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from phalanx.api import Backbone, DefenseConfig, Normalization


class PDDConfig(DefenseConfig):
    """Which of the two parts is on, and the paper's constants."""

    variant: Literal["pdd", "deg", "pdd+deg"] = Field(
        "pdd+deg",
        description="pdd: priority diversified dropout; deg: dispersed ensemble gradients; or both."
        " The paper finds no gain from deg alone.",
    )
    members: int = Field(3, ge=2, description="K, networks in the ensemble; the paper: 3 or 5.")
    backbone: Backbone = Field(
        default=Backbone(use="resnet18_cifar"),
        description="Network of every member; the members differ by their initial weights only.",
    )
    normalization: Normalization = Field(
        "none", description="Inside each member; the paper feeds it images in [0, 1] as they are."
    )
    alpha: float = Field(
        0.9, ge=0.0, le=1.0, description="α, keep probability in a member's priority bin."
    )
    beta: float = Field(
        0.1, ge=0.0, le=1.0, description="β, the most that a unit of another bin is kept with."
    )
    bins: int | None = Field(
        None,
        ge=1,
        description="M, bins of activation strength, at least as many as members;"
        " absent: 10 for up to 3 members, else 20, or the number of members if that is more.",
    )
    rescale: Literal["none", "inverted"] = Field(
        "none",
        description="Divide kept features by their keep probability; the authors' code does not.",
    )
    dispersion_weight: NonNegativeFloat = Field(
        0.01, description="λ, weight of the sum of pairwise gradient cosines."
    )
    ece: Literal["mean", "sum"] = Field(
        "mean",
        description="Of the members' cross-entropies: mean as the authors' code, sum as eq. (1).",
    )

    @model_validator(mode="after")
    def _a_bin_for_each_member(self) -> Self:
        if self.bins is not None and self.bins < self.members:
            raise ValueError(
                f"bins = {self.bins} is fewer than members = {self.members}, but every member"
                f" needs a bin of its own; write bins = {self.members} or more"
            )
        return self

    @property
    def drops(self) -> bool:
        """Whether PDD's mask is on."""
        return self.variant != "deg"

    @property
    def disperses(self) -> bool:
        """Whether DEG's penalty is on."""
        return self.variant != "pdd"

    @property
    def m(self) -> int:
        """M: `bins`, or the paper's value for so many members."""
        return self.bins or max(10 if self.members <= 3 else 20, self.members)
