"""Settings of AVG and MAX; torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from phalanx.api import Backbone, DefenseConfig, Normalization, PerturbationType


def _pgd(name: str, threat: str, step: float) -> dict[str, Any]:
    """A type of MoL's baselines: 20 steps of PGD."""
    params = {"threat": threat, "steps": 20, "step": step}
    return {"name": name, "attack": {"use": "pgd", "params": params}}


class MultiConfig(DefenseConfig):
    """One network, and the types of perturbation that it is trained against."""

    backbone: Backbone = Field(
        default=Backbone(use="resnet18_cifar"), description="A timm classifier by its name."
    )
    normalization: Normalization = Field(
        "dataset", description="dataset: subtract its mean, divide by its deviation; none: [0, 1]."
    )
    types: tuple[PerturbationType, ...] = Field(
        default=(  # type: ignore[assignment]  # validated
            _pgd("l1", "l1:16", 2.0),
            _pgd("l2", "l2:1", 0.2),
            _pgd("linf", "linf:8/255", 0.01),
        ),
        description="Types of perturbation, each a name and an attack, a perturbation, or neither"
        " (clean images); absent: PGD-20 in L1 16, L2 1 and L-inf 8/255.",
    )

    @field_validator("types", mode="after")
    @classmethod
    def _are_several(cls, types: tuple[PerturbationType, ...]) -> tuple[PerturbationType, ...]:
        names = [one.name for one in types]
        if len(types) < 2:
            raise ValueError(
                f"{names[0] if names else 'no type'!r} alone is nothing to average or to choose"
                " from: write two types or more, or take defense 'pgd-at' for one attack"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two types are named {', '.join(twice)}: give each a name of its own, which keys"
                " its draws and stands in the log"
            )
        return types


class AVGConfig(MultiConfig):
    """Settings of AVG."""

    sequential: bool = Field(
        default=False,
        description="One update for each type in turn, attacked with the weights just updated, in"
        " place of one update on all types together.",
    )
