"""Settings of the pruners and of the defense `pruned`; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from phalanx.api import DefenseConfig, PrunerConfig, UseDefense, UsePruner

Rate = Annotated[float, Field(ge=1.0, allow_inf_nan=False)]


class ADMMConfig(PrunerConfig):
    """How much of each layer is pruned, and how hard ADMM pulls."""

    rate: Rate = Field(
        4.0, description="Of n weights, filters or blocks of a layer n / rate stay; 1: all do."
    )
    rates: dict[str, Rate] = Field(
        default={},
        description="Rates of layers whose name within the backbone (conv1) fits the pattern"
        " (fnmatch), the later over the earlier; the same in every member.",
    )
    skip: tuple[str, ...] = Field((), description="Layers that are not pruned; patterns as above.")
    rho: PositiveFloat | None = Field(
        None,
        description="ρ, weight of the penalty; the paper: 0.001. Absent: 78.2 divided by the"
        " phase's steps, which is that over the paper's 200 epochs.",
    )
    rho_growth: float = Field(
        1.0, ge=1.0, allow_inf_nan=False, description="Factor of ρ at each update of Z and U."
    )
    updates: PositiveInt | None = Field(
        None, description="Updates of Z and U, spread evenly over the phase's steps; absent: 9."
    )
    update_every: PositiveInt | None = Field(
        None, description="Epochs from one update to the next, in place of a number of them."
    )

    @field_validator("rates", "skip", mode="after")
    @classmethod
    def _are_patterns(cls, value: object) -> object:
        if isinstance(value, dict | tuple) and not all(value):
            raise ValueError("'' fits no layer: write a layer's name, such as 'conv1'")
        return value

    @model_validator(mode="after")
    def _has_one_clock(self) -> Self:
        if self.updates is not None and self.update_every is not None:
            raise ValueError(
                f"updates = {self.updates} and update_every = {self.update_every} both say when Z"
                " and U are updated: leave one of them out"
            )
        return self


class IrregularConfig(ADMMConfig):
    """Single weights."""

    include_heads: bool = Field(
        default=False, description="Prune the members' classifiers (linear layers) as well."
    )


class FilterConfig(ADMMConfig):
    """Whole filters; a classifier's are its classes, so it is never pruned."""


class BlockConfig(IrregularConfig):
    """Blocks of filters and input channels."""

    block: tuple[PositiveInt, PositiveInt] = Field(
        (4, 4), description="Filters and input channels of a block; no more than the layer has."
    )
    scheme: Literal["kgs", "vanilla"] = Field(
        "kgs",
        description="kgs: a block is at one kernel position; vanilla: it has all of them.",
    )


class PrunedConfig(DefenseConfig):
    """Any defense, which is pruned while it trains and retrained masked."""

    base: UseDefense = Field(
        default={"use": "pgd-at"},  # type: ignore[assignment]  # validated
        description="The defense that is pruned, with its own parameters.",
    )
    pruner: UsePruner = Field(
        default={"use": "block"},  # type: ignore[assignment]  # validated
        description="What stays of each layer: irregular, filter, block, or another pruner.",
    )
    phases: str = Field(
        "*",
        description="Pattern (fnmatch) for the base's phases that are pruned, and retrained after.",
    )

    @field_validator("base", mode="after")
    @classmethod
    def _is_another(cls, base: UseDefense) -> UseDefense:
        if base.use == "pruned":
            raise ValueError(
                "'pruned' in itself would prune what is pruned: write the inner base as base, and"
                " one pruner"
            )
        return base
