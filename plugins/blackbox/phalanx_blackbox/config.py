"""Settings of RayS and SignHunter; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from phalanx.api import AttackConfig

Loss = Literal["ce", "margin"]
"""Cross-entropy, or the largest wrong score minus the true one."""
Stop = Literal["success", "budget"]


class RaySConfig(AttackConfig):
    """RayS (Chen and Gu, KDD 2020)."""

    queries: PositiveInt = Field(
        10_000, description="Forward passes an image may take, the clean one included."
    )
    tolerance: float = Field(
        1e-3,
        ge=1e-4,  # below, float32 no longer separates the lengths of large images' rays
        allow_inf_nan=False,
        description="Width at which a bisection ends, in Euclidean length along the ray.",
    )
    votes: PositiveInt = Field(
        1,
        description="Passes whose most frequent label decides; 1 where answers are repeatable and"
        " rows independent, whatever is set.",
    )
    stop: Stop = Field(
        "success",
        description="End an image's search at its first example within the threat, or go on until"
        " the budget is spent, which finds the distance to the boundary.",
    )

    @model_validator(mode="after")
    def _can_ask_twice(self) -> Self:
        if 2 * self.votes > self.queries:
            raise ValueError(
                f"votes = {self.votes} and queries = {self.queries} leave no decision beside that"
                f" on the clean image: write queries = {2 * self.votes} or more, or fewer votes"
            )
        return self


class SignHunterConfig(AttackConfig):
    """SignHunter (Al-Dujaili and O'Reilly, ICLR 2020)."""

    queries: PositiveInt = Field(
        10_000, description="Forward passes an image may take, the clean one included."
    )
    loss: Loss = Field("ce", description="What is raised.")
    draws: PositiveInt = Field(
        1,
        description="Passes whose losses are averaged; 1 where answers are repeatable and rows"
        " independent, whatever is set.",
    )

    @model_validator(mode="after")
    def _can_ask_twice(self) -> Self:
        if 2 * self.draws > self.queries:
            raise ValueError(
                f"draws = {self.draws} and queries = {self.queries} leave no loss beside that of"
                f" the clean image: write queries = {2 * self.draws} or more, or fewer draws"
            )
        return self
