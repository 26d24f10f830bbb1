"""Settings of the attacks on ensembles; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from phalanx.api import AttackConfig, Threat, ThreatModelError, UseAttack

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class MORAConfig(AttackConfig):
    """MORA (Yu, Gao and Xu, NeurIPS 2022)."""

    steps: PositiveInt = Field(
        100, description="Steps of a run; one forward and one backward pass each."
    )
    betas: tuple[Share, ...] = Field(
        (0.5, 0.0, 0.25, 0.75, 1.0),
        min_length=1,
        description="Share β of the reweighed members in the loss, a run each, in this order; 0 is"
        " the ensemble's own loss.",
    )
    temperature: NonNegativeFloat | None = Field(
        None,
        allow_inf_nan=False,
        description="Factor τ on the logits that members' weights are computed from; 0: equal"
        " weights; absent: 0.2, or 0.8 where votes are averaged.",
    )
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="How a run's step falls from 2 eps to 0."
    )
    restarts: PositiveInt = Field(
        1, description="Times that all runs are made, each from its own random start."
    )


class MemberTransferConfig(AttackConfig):
    """Examples of each member, at the threat of the whole."""

    attack: UseAttack = Field(
        default={"use": "apgd-ce", "params": {"steps": 50}},  # type: ignore[assignment]  # validated
        description="What is run on a member; its threat is the one beside it.",
    )
    member: NonNegativeInt | None = Field(
        None, description="The one member to attack, counted from 0; absent: all in turn."
    )

    @field_validator("attack", mode="after")
    @classmethod
    def _shares_the_threat(cls, use: UseAttack, info: ValidationInfo) -> UseAttack:
        if "threat" not in info.data:  # it is wrong itself, and told
            return use
        threat: Threat | None = info.data["threat"]
        params = use.params
        own = params.threat if isinstance(params, AttackConfig) else None
        if own is not None and "threat" in params.model_fields_set and own != threat:
            raise ValueError(
                f"params.threat = '{own}' is not the threat that the whole is attacked at"
                f" ({threat or 'none given'}): leave it out, and write threat = '{own}' beside"
                " attack if it is meant"
            )
        return use if threat is None else _at(use, threat)

    def at(self, threat: Threat) -> Self:
        """The same settings at another threat, which is the members' too."""
        return self.model_copy(update={"threat": threat, "attack": _at(self.attack, threat)})


def _at(use: UseAttack, threat: Threat) -> UseAttack:
    """An attack at this threat.

    Raises:
        ThreatModelError: if it keeps another one, as attacks without a ball do.
    """
    params = use.params
    moved = params.at(threat) if isinstance(params, AttackConfig) else params
    if not isinstance(moved, AttackConfig) or moved.threat != threat:
        raise ThreatModelError(
            f"attack '{use.use}' cannot be made at {threat}: name one that attacks a model within"
            " a ball, such as 'apgd-ce'"
        )
    return use.model_copy(update={"params": moved})
