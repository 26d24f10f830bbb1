"""Declares natural perturbations to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

PAPER = Paper(
    title=(
        "More or Less (MoL): Defending against Multiple Perturbation Attacks on Deep Neural "
        "Networks through Model Ensemble and Compression"
    ),
    venue="WACV Workshops 2022",
    year=2022,
)

COMPONENTS = (
    ComponentSpec(
        kind=Kind.PERTURBATION,
        name="fog",
        factory="phalanx_natural.perturbations:Fog",
        config="phalanx_natural.config:FogConfig",
        summary="Blends each image with a constant light.",
        paper=PAPER,
        traits=Traits(needs_training=False),
    ),
    ComponentSpec(
        kind=Kind.PERTURBATION,
        name="snow",
        factory="phalanx_natural.perturbations:Snow",
        config="phalanx_natural.config:SnowConfig",
        summary="Whitens what is brighter than a threshold that is drawn for each image.",
        paper=PAPER,
        traits=Traits(needs_training=False),
    ),
    ComponentSpec(
        kind=Kind.PERTURBATION,
        name="rotation",
        factory="phalanx_natural.perturbations:Rotation",
        config="phalanx_natural.config:RotationConfig",
        summary="Turns each image about its centre by a random angle.",
        paper=PAPER,
        traits=Traits(needs_training=False),
    ),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return COMPONENTS
