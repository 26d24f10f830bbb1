"""Settings of DVERGE; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from phalanx.api import Backbone, DefenseConfig, Epsilon, Normalization, UseAttack


class DVERGEConfig(DefenseConfig):
    """The ensemble, how images are distilled, and what the members learn from them."""

    members: PositiveInt = Field(3, description="K, networks in the ensemble; the paper: 3, 5, 8.")
    backbone: Backbone = Field(
        default=Backbone(use="resnet20_cifar", params={"shortcut": "conv-bn"}),
        description="Network of every member; the members differ by their initial weights only.",
    )
    normalization: Normalization = Field(
        "dataset", description="Inside each member: the data set's mean and deviation, or nothing."
    )
    start: Literal["baseline", "scratch"] = Field(
        "baseline",
        description="baseline: members trained independently first, as the paper; scratch: not.",
    )
    layers: tuple[str, ...] = Field(
        (),
        description="Layers among which l is drawn, by name; 'a+b' is the sum of two layers'"
        " outputs, a residual block's before its activation. One name: always that layer;"
        " absent: every layer before its activation.",
    )
    draw: Literal["epoch", "batch"] = Field(
        "epoch", description="How often l is drawn, for all members together."
    )
    eps: Epsilon = Field(
        0.07,
        description="ε of the distillation, L-inf; the paper: 0.07 for 3 and 5 members.",
    )
    step: Epsilon | None = Field(
        None, description="Length of one of its steps; absent: eps / steps, as the paper."
    )
    steps: PositiveInt = Field(10, description="Its steps, with momentum 1, from the image itself.")
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="Of the cross-entropies on the other members' images: sum as the paper;"
        " mean keeps the size of a step when members are many.",
    )
    attack: UseAttack | None = Field(
        None,
        description="The adversarial form: each member also learns examples of this attack on"
        " itself; absent: none.",
    )
    coefficient: NonNegativeFloat = Field(
        1.0,
        description="c, weight of the distilled images beside the adversarial examples.",
    )
    batchnorm: Literal["train", "eval"] = Field(
        "train",
        description="Mode of the members while images are made: train as the paper, which lets"
        " running statistics see clean images; eval is cheaper and leaves them alone.",
    )

    @field_validator("members", mode="after")
    @classmethod
    def _is_an_ensemble(cls, members: int) -> int:
        if members < 2:
            raise ValueError(
                f"members = {members} has no other member to learn from: write members = 2 or"
                " more, or take defense 'pgd-at' for a single network"
            )
        return members

    @field_validator("layers", mode="after")
    @classmethod
    def _are_distinct(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({layer for layer in layers if layers.count(layer) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands more than once; name each layer once")
        return layers

    @property
    def step_size(self) -> float:
        """The length of a step."""
        return self.eps / self.steps if self.step is None else self.step
