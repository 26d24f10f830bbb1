"""Declares iGAT to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

PAPER = Paper(
    title="Understanding and Improving Ensemble Adversarial Defense",
    arxiv="2310.18477",
    venue="NeurIPS 2023",
    year=2023,
    code="https://github.com/xqsi/iGAT",
)

COMPONENTS = (
    ComponentSpec(
        kind=Kind.DEFENSE,
        name="igat",
        factory="phalanx_igat.defense:IGAT",
        config="phalanx_igat.config:IGATConfig",
        summary="Fine-tunes an ensemble; its adversarial examples go to members that know them.",
        paper=PAPER,
        traits=Traits(ensemble=True),
    ),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return COMPONENTS
