"""Settings of iGAT; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from phalanx.api import DefenseConfig, UseAttack, UseDefense

FITTING = "adp, dverge, pdd, or none and pgd-at with members = 2 or more"
"""Bases that iGAT rides on."""


class IGATConfig(DefenseConfig):
    """The ensemble that is fine-tuned, and what is added to its loss."""

    base: UseDefense = Field(
        description="The ensemble's own defense and its settings, which are those that the"
        " weights were trained with.",
    )
    alpha: NonNegativeFloat = Field(
        5.0,
        description="α of eq. (16), weight of the distributed adversarial examples; the base's own"
        " alpha stands in base.params.",
    )
    beta: NonNegativeFloat = Field(
        10.0,
        description="β of eq. (16), weight of the misclassification regulariser; α = β = 0 is the"
        " base itself. The paper: 5 and 10 over ADP, CLDL and DVERGE, 0.25 and 0.5 over SoE.",
    )
    rule: Literal["soft", "hard", "random", "opposite"] = Field(
        "soft",
        description="Who gets an adversarial example. hard: the member that is surest of its true"
        " class; soft: drawn, the surest one likeliest; random: drawn uniformly; opposite: the"
        " member that is least sure.",
    )
    distribute: Literal["misclassified", "all"] = Field(
        "misclassified",
        description="Which adversarial examples are given to members: those that the ensemble gets"
        " wrong, as the authors' code, or all, as the paper.",
    )
    regularizer: Literal["sum", "max", "paper"] = Field(
        "sum",
        description="sum: over the members, of each one's likeliest wrong class, as the authors'"
        " code; max: of the likeliest wrong class of all members; paper: eq. (15) to the letter,"
        " whose likeliest class of all members may be the true one.",
    )
    combiner: Literal["average", "max"] = Field(
        "average", description="Of the members' probabilities: what is attacked and served."
    )
    attack: UseAttack = Field(
        default={"use": "pgd", "params": {"steps": 20, "step": "2/255"}},  # type: ignore[assignment]  # validated
        description="Makes the adversarial examples of the ensemble, where the base's last phase"
        " makes none; where it does, those are shared and this is not asked.",
    )
    batch: Literal["twin", "half"] = Field(
        "twin",
        description="Where `attack` puts them: beside the batch, or in the place of its first"
        " half, as one of the authors' two scripts for ADP.",
    )
    pretrain: bool = Field(
        default=False,
        description="Train the base first, then fine-tune it in a phase 'igat'; otherwise the"
        " base's last phase alone is run, on weights from [init].",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_base(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("base") is None:
            raise ValueError(
                'no base: write base = { use = "adp", params = { … } }, the defense of the'
                f" ensemble that is fine-tuned ({FITTING}); pip install ./plugins/adp installs adp"
            )
        return data

    @model_validator(mode="after")
    def _base_is_an_ensemble(self) -> Self:
        for use in bases_of(self.base):
            if use.rpartition("/")[2] == "igat":
                place = "base is" if use is self.base.use else f"base {self.base.use!r} is over"
                raise ValueError(
                    f"{place} 'igat' itself: write the ensemble's own defense as base ({FITTING})"
                )
        count = members_of(self.base.params)
        if count is None:
            raise ValueError(
                f"base {self.base.use!r} has no members to distribute examples to: take {FITTING}"
            )
        if count < 2:
            raise ValueError(
                f"base {self.base.use!r} has members = {count}, so nobody shares the examples:"
                " write base.params.members = 2 or more"
            )
        return self


def bases_of(base: UseDefense) -> Iterator[str]:
    """The names of a base, of its own base if it has one, and so on."""
    yield base.use
    inner = getattr(base.params, "base", None)
    if isinstance(inner, UseDefense):
        yield from bases_of(inner)


def members_of(params: Any) -> int | None:
    """How many members a defense's settings ask for, its own base's if it has one; None: unsaid."""
    count = getattr(params, "members", None)
    if isinstance(count, int):
        return count
    inner = getattr(params, "base", None)
    return None if inner is None else members_of(inner.params)
