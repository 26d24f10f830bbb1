"""Declares iGAT to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

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


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For members combined: weights chosen anew for a mean, a margin loss for a maximum."""
    if defense != "igat":
        return []
    return [
        {"attack": {"use": "mora"}, "views": ["deployed"]},
        {"attack": {"use": "apgd-dlr", "params": {"steps": 100}}, "views": ["deployed"]},
    ]
