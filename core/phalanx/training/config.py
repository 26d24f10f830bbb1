"""Configs of the built-in defenses; torch-free."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from phalanx.config import Backbone, DefenseConfig, Normalization, UseAttack


class UndefendedConfig(DefenseConfig):
    """Cross-entropy training of one network, or of several that are averaged."""

    members: PositiveInt = Field(1, description="Networks whose mean probability is served.")
    backbone: Backbone = Field(
        default=Backbone(use="small_cnn"), description="A timm classifier by its name."
    )
    normalization: Normalization = Field(
        "dataset", description="dataset: subtract its mean, divide by its deviation; none: [0, 1]."
    )


class AdversarialTrainingConfig(UndefendedConfig):
    """Training on adversarial examples of the served function."""

    attack: UseAttack = Field(
        default={"use": "pgd", "params": {"steps": 10}},  # type: ignore[assignment]  # validated
        description="The inner maximisation; its threat defaults to the data set's.",
    )
