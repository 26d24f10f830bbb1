"""Settings of the natural perturbations; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from phalanx.api import PerturbationConfig

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class FogConfig(PerturbationConfig):
    """A blend of the image with a constant light; nothing is drawn."""

    t: Finite = Field(
        0.4,
        description="The paper's thickness factor; 1 / (1 + e^-t) of the image is kept, so more t"
        " is less fog.",
    )
    light: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        1.2, description="Atmospheric light, in units of [0, 1] images; above 1 bright pixels clip."
    )


class SnowConfig(PerturbationConfig):
    """A factor on the lightness of the pixels on one side of a drawn threshold."""

    darkness: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = Field(
        8.0, description="Factor on the lightness; above 1 it makes pixels brighter."
    )
    alpha: tuple[Share, Share] = Field(
        (0.0, 0.5), description="Least and largest threshold α, in lightness in [0, 1]."
    )
    select: Literal["above", "below"] = Field(
        "above",
        description="Pixels that are changed: from α upwards, as the paper prints it, or below α,"
        " as road-image augmentation does.",
    )
    per: Literal["image", "pixel"] = Field(
        "image", description="What has a threshold of its own: each image, or each of its pixels."
    )

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        low, high = self.alpha
        if low > high:
            raise ValueError(f"alpha = [{low:g}, {high:g}]: write the smaller one first")
        return self


class RotationConfig(PerturbationConfig):
    """A turn about the centre, the angle drawn for each image."""

    max_angle: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        180.0, description="Degrees; the angle is uniform between minus and plus this."
    )
    interpolation: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="Between pixels; what comes from outside the image is 0."
    )
