"""Settings of MoL; torch-free."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from phalanx.api import (
    Backbone,
    DefenseConfig,
    Normalization,
    PerturbationType,
    UsePruner,
)

Weighting = Literal["softmax", "linear", "sigmoid"]
Objective = Literal["literal", "per-sample", "ensemble"]

_LP = (
    {"name": "clean"},
    {"name": "l1", "attack": {"use": "pgd", "params": {"threat": "l1:16", "steps": 20}}},
    {
        "name": "l2",
        "attack": {"use": "pgd", "params": {"threat": "l2:1", "steps": 20, "step": 0.2}},
    },
    {
        "name": "linf",
        "attack": {"use": "pgd", "params": {"threat": "linf:8/255", "steps": 20, "step": 0.01}},
    },
)
SCENARIOS: dict[str, tuple[dict[str, Any], ...]] = {
    "mixing-lp": _LP,
    "comprehensive": (
        *_LP,
        {"name": "fog", "perturbation": "fog"},
        {"name": "snow", "perturbation": "snow"},
        {"name": "rotation", "perturbation": "rotation"},
    ),
}
"""The paper's two sets of experts, with its attacks on CIFAR-10 (section 5.1.1)."""


def _named(experts: Any) -> Any:
    """The experts of a scenario's name; anything else as it is.

    Raises:
        ValueError: if there is no such scenario.
    """
    if not isinstance(experts, str):
        return experts
    if experts not in SCENARIOS:
        raise ValueError(
            f"{experts!r} is no set of experts: write 'mixing-lp', 'comprehensive', or a list"
            ' such as [{ name = "clean" }, { name = "linf", attack = { use = "pgd",'
            ' params = { threat = "linf:8/255" } } }]'
        )
    return SCENARIOS[experts]


class MoLConfig(DefenseConfig):
    """The experts, the network that weighs them, and how the two are brought together."""

    experts: Annotated[tuple[PerturbationType, ...], BeforeValidator(_named)] = Field(
        default="mixing-lp",  # type: ignore[assignment]  # a name, until it is validated
        description="One for each type of input: a list of { name, attack } or { name,"
        " perturbation } (with neither: the clean image), or one of the paper's two:"
        " 'mixing-lp' (clean, l1, l2, linf) or 'comprehensive' (with fog, snow, rotation).",
    )
    backbone: Backbone = Field(
        default=Backbone(use="resnet18_cifar", params={"width": 64}),
        description="Network of every expert.",
    )
    normalization: Normalization = Field(
        "dataset",
        description="Inside each network: the data set's mean and deviation, or nothing.",
    )
    aggregator: Backbone | None = Field(
        None, description="Network that weighs the experts; absent: their backbone, narrowed."
    )
    aggregator_width: PositiveInt | None = Field(
        None,
        description="Its width; absent: the backbone's, with a pruner over the root of its rate."
        " Of width 64 that is about that share of the parameters: 32 at rate 4, 22 at rate 8."
        " Asked for where the pruner has rates of single layers, or no rate.",
    )
    weighting: Weighting = Field(
        "softmax", description="What is made of the aggregator's scores; the paper does not say."
    )
    objective: Objective = Field(
        "literal",
        description="Reading of eq. (13): 'literal', the expert whose weighted loss is largest"
        " on the batch, as algorithm 1; 'per-sample', on each image; 'ensemble', the"
        " cross-entropy of the system.",
    )
    attack_target: Literal["system", "expert"] = Field(
        "system",
        description="What is attacked while the aggregator is trained: the whole system, or the"
        " type's own expert.",
    )
    pruner: UsePruner | None = Field(
        None, description="Rides on every expert's training, which is then repeated masked."
    )

    @field_validator("experts", mode="after")
    @classmethod
    def _can_be_weighed(cls, experts: tuple[PerturbationType, ...]) -> tuple[PerturbationType, ...]:
        names = [expert.name for expert in experts]
        if len(names) < 2:
            found = names[0] if names else "none"
            raise ValueError(
                f"an aggregator weighs two experts or more, found {found}: add one, such as"
                " { name = \"clean\" }, or take defense 'pgd-at' for a single network"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands more than once; give each expert a name")
        return experts

    @model_validator(mode="after")
    def _one_aggregator(self) -> Self:
        if self.aggregator is not None and self.aggregator_width is not None:
            raise ValueError(
                "aggregator_width narrows the experts' backbone, and aggregator replaces it:"
                " keep one of the two"
            )
        self.aggregator_backbone  # noqa: B018  # raises where the width cannot be told
        return self

    @property
    def aggregator_backbone(self) -> Backbone:
        """The aggregator's network.

        Parameters grow with about the square of the width, so 1/K of them has the width over √K.

        Raises:
            ValueError: if the backbone must be narrowed, and its width is not written down, or the
                pruner has not one rate for all layers.
        """
        if self.aggregator is not None:
            return self.aggregator
        width = self.aggregator_width
        if width is None and self.pruner is not None:
            rate = getattr(self.pruner.params, "rate", None)
            if rate is None or getattr(self.pruner.params, "rates", None):
                found = "has no rate" if rate is None else "has rates of single layers"
                raise ValueError(
                    "the aggregator is narrowed with the one rate of the experts' pruner, and"
                    f" {self.pruner.use!r} {found}: write aggregator_width, such as"
                    " aggregator_width = 22"
                )
            full = self.backbone.params.get("width")
            if not isinstance(full, int):
                raise ValueError(
                    f"the aggregator is narrowed with the experts' rate {rate:g}, and"
                    f" {self.backbone.use!r} is given no width: write backbone = {{ use ="
                    f' "{self.backbone.use}", params = {{ width = 64 }} }}, or aggregator_width'
                )
            width = max(1, math.floor(full / math.sqrt(rate)))
        if width is None:
            return self.backbone
        return Backbone(use=self.backbone.use, params={**self.backbone.params, "width": width})
