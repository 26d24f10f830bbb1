"""Settings of ADP; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from phalanx.api import Backbone, DefenseConfig, Epsilon, Linf, Normalization, UseAttack


class ADPConfig(DefenseConfig):
    """The ensemble, the two weights of the regularizer, and its adversarial form."""

    members: PositiveInt = Field(3, description="K, networks in the ensemble; the paper: 3.")
    backbone: Backbone = Field(
        default=Backbone(use="resnet20_cifar", params={"shortcut": "conv"}),
        description="Network of every member; the members differ by their initial weights only.",
    )
    normalization: Normalization = Field(
        "dataset", description="Inside each member: the data set's mean and deviation, or nothing."
    )
    alpha: NonNegativeFloat = Field(
        2.0, description="α, weight of the entropy of the mean prediction."
    )
    beta: NonNegativeFloat = Field(
        0.5,
        description="β, weight of the log-determinant of the wrong classes' predictions;"
        " α = β = 0 is a plain ensemble, its members trained independently.",
    )
    attack: UseAttack | None = Field(
        None,
        description="The adversarial form: makes a twin of each batch, against the ensemble;"
        " absent: none. [training].adversarial goes before it.",
    )
    radii: tuple[Epsilon, Epsilon] | None = Field(
        None,
        description="Least and largest L-inf radius of `attack`, drawn for each batch;"
        " the paper: 0.01 and 0.05. Absent: the attack's own.",
    )
    adversarial_term: Literal["full", "ce"] = Field(
        "full",
        description="What is asked of the twin: the whole loss as in the authors' code, or its"
        " cross-entropy alone as in later ones (iGAT, DVERGE).",
    )

    @field_validator("members", mode="after")
    @classmethod
    def _is_an_ensemble(cls, members: int) -> int:
        if members < 2:
            raise ValueError(
                f"members = {members} leaves nobody to differ from: write members = 2 or more,"
                " or take defense 'none' for a single network"
            )
        return members

    @model_validator(mode="after")
    def _radii_have_an_attack(self) -> Self:
        if self.radii is None:
            return self
        if self.attack is None:
            raise ValueError(
                "radii are those of 'attack', which is absent: write"
                ' attack = { use = "pgd", params = { steps = 10 } } too'
            )
        low, high = self.radii
        if low > high:
            raise ValueError(f"radii = [{low:g}, {high:g}]: write the smaller one first")
        threat = getattr(self.attack.params, "threat", None)
        if not isinstance(threat, Linf):
            raise ValueError(
                f"radii are L-inf radii, and the attack's threat is {threat or 'absent'}:"
                ' write attack.params.threat = "linf:0.05", or leave radii out'
            )
        if getattr(self.attack.params, "step", None) is not None:
            raise ValueError(
                "a fixed attack.params.step does not follow the radii: leave it out, and each"
                " attack's own share of the radius is taken"
            )
        return self
