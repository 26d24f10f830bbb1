"""CLM's own hyper-parameters; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from phalanx.api import Backbone, DefenseConfig, Normalization


class CLMConfig(DefenseConfig):
    """A population of (counter-)linked models, arXiv 2111.10272; the defaults are its LeNet-5's.

    The paper's values of (α, δ): LeNet-5 (0.1, 0.1), ResNet-18 (0.5, 0.1), and with adversarial
    training LeNet-5 (0.01, 0.005), ResNet-18 (0.1, 0.05).
    """

    variant: Literal["ulm", "clm"] = Field(
        "clm",
        description="ulm: sub-models trained independently; clm: those, retrained counter-linked.",
    )
    members: PositiveInt = Field(10, description="n, the number of sub-models.")
    backbone: Backbone = Field(
        default=Backbone(use="lenet5"),
        description="The architecture that all sub-models m_1 … m_n share.",
    )
    alpha: NonNegativeFloat = Field(
        0.1, description="α of eq. (5): how far one PRSE moves a linked weight."
    )
    delta: NonNegativeFloat = Field(
        0.1, description="δ of eq. (4): linked weights nearer than this are moved."
    )
    prse_period: PositiveInt = Field(
        10, description="n = 10 of Alg. 1: steps of a sub-model between two PRSE."
    )
    prse_unit: Literal["batch", "submodel_epoch"] = Field(
        "batch",
        description="What a step of prse_period is: a mini-batch of the sub-model in training "
        "(the prose), or an epoch of any sub-model (Alg. 1 without its reset of c).",
    )
    granularity: Literal["sample", "batch"] = Field(
        "sample", description="Random(M) is drawn for each image, or once for each batch."
    )
    normalization: Normalization = Field(
        "dataset", description="Normalisation of the images inside each sub-model."
    )
    ulm_epochs: PositiveInt = Field(
        20, description="Epochs of each sub-model in ulm/1 … ulm/n (not published)."
    )
    retrain_epochs: PositiveInt = Field(
        5,
        description="Epochs of each sub-model in phase clm, whose passes over the data are "
        "n times as many; the paper: 5 for LeNet-5, 150 for ResNet-18.",
    )

    @model_validator(mode="after")
    def _has_partners(self) -> Self:
        if self.variant == "clm" and self.members < 2:
            raise ValueError(
                "variant 'clm' links each sub-model to another one: set members to 2 or more, "
                "or variant to 'ulm'"
            )
        return self
