"""Configs of the core's attacks; torch-free.

The threat is common to all (`AttackConfig`). Step sizes are in pixel units of [0, 1], in the
threat's norm, and take ``"2/255"`` as well as ``0.0078``.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator

from phalanx.config import AttackConfig, UsePerturbation
from phalanx.specs import AnyThreat, NoBall, Radius, Threat

Loss = Literal["ce", "dlr", "margin"]
"""Cross-entropy, difference of logits ratio, or largest wrong score minus the true one."""


class FGSMConfig(AttackConfig):
    """One step of length eps from the clean image (Goodfellow et al., ICLR 2015)."""


class BIMConfig(AttackConfig):
    """Iterated steps from the clean image (Kurakin et al., 2016)."""

    steps: PositiveInt = Field(40, description="Steps; one forward and one backward pass each.")
    step: Radius | None = Field(
        None, description="Length of a step in the threat's norm; absent: 2.5 eps / steps."
    )


class PGDConfig(BIMConfig):
    """Projected gradient descent (Madry et al., ICLR 2018)."""

    start: Literal["random", "clean"] = Field(
        "random", description="Begin at a random point of the ball, or at the clean image."
    )
    restarts: PositiveInt = Field(1, description="Runs; the best example of each row is kept.")
    loss: Loss = Field("ce", description="What is ascended.")
    eot: PositiveInt = Field(1, description="Draws whose loss gradients are averaged a step.")


class MIFGSMConfig(AttackConfig):
    """Iterated steps with momentum (Dong et al., CVPR 2018)."""

    steps: PositiveInt = Field(10, description="Steps; one forward and one backward pass each.")
    step: Radius | None = Field(
        None, description="Length of a step in the threat's norm; absent: eps / steps."
    )
    decay: float = Field(1.0, ge=0.0, description="Decay factor μ of the accumulated gradient.")


class APGDConfig(AttackConfig):
    """Auto-PGD (Croce and Hein, ICML 2020)."""

    steps: PositiveInt = Field(100, description="Steps of a run.")
    restarts: PositiveInt = Field(1, description="Runs, each from its own random start.")
    eot: PositiveInt = Field(1, description="Draws whose loss gradients are averaged a step.")
    rho: float = Field(
        0.75, gt=0.0, lt=1.0, description="Share of rising steps below which the step is halved."
    )


class APGDTConfig(AttackConfig):
    """Auto-PGD towards the most likely wrong classes in turn."""

    steps: PositiveInt = Field(100, description="Steps towards each target class.")
    targets: PositiveInt = Field(9, description="Target classes; at most the classes minus one.")
    eot: PositiveInt = Field(1, description="Draws whose loss gradients are averaged a step.")
    rho: float = Field(
        0.75, gt=0.0, lt=1.0, description="Share of rising steps below which the step is halved."
    )


class FABTConfig(AttackConfig):
    """Targeted fast adaptive boundary attack (Croce and Hein, ICML 2020)."""

    steps: PositiveInt = Field(100, description="Steps towards each target class.")
    targets: PositiveInt = Field(9, description="Target classes; at most the classes minus one.")
    restarts: PositiveInt = Field(1, description="Runs per class; the first from the clean image.")
    alpha_max: float = Field(
        0.1, ge=0.0, le=1.0, description="Largest weight of the step taken from the clean image."
    )
    eta: float = Field(1.05, ge=1.0, description="How far to step over the linearised boundary.")
    beta: float = Field(
        0.9, gt=0.0, lt=1.0, description="Where between clean image (0) and example (1) to go on."
    )
    search: int = Field(3, ge=0, description="Forward passes of the final search; 0: none.")


class SquareConfig(AttackConfig):
    """Square attack (Andriushchenko et al., ECCV 2020)."""

    queries: PositiveInt = Field(5000, description="Forward passes of a run, the start included.")
    p_init: float = Field(
        0.8, gt=0.0, le=1.0, description="Share of pixels that the first squares cover."
    )
    restarts: PositiveInt = Field(1, description="Runs, each from its own start.")


class NaturalConfig(AttackConfig):
    """A natural perturbation, as an attack without a ball."""

    threat: AnyThreat | None = Field(
        default=NoBall(), description="None: examples are only asked to lie in [0, 1]."
    )
    perturbation: UsePerturbation = Field(description="Changes the images and knows no model.")
    draws: PositiveInt = Field(
        1, description="Perturbed images tried for each image; of several the worst is kept."
    )

    @field_validator("threat", mode="before")
    @classmethod
    def _has_no_ball(cls, value: Any) -> Any:
        if value is None or value == "none" or isinstance(value, NoBall):
            return NoBall()
        raise ValueError(
            f"a natural perturbation has no ball, found {value}: leave threat out, and set its"
            " strength in perturbation.params"
        )

    @property
    def asks_model(self) -> bool:
        """With several draws only."""
        return self.draws > 1

    @property
    def holds_clean(self) -> bool:
        """No: every image is changed."""
        return False

    def at(self, threat: Threat) -> Self:
        """Itself: it has no ball to be made larger or smaller."""
        del threat
        return self
