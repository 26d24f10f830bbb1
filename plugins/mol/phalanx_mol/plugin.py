"""Declares MoL to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

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
        kind=Kind.DEFENSE,
        name="mol",
        factory="phalanx_mol.defense:MoL",
        config="phalanx_mol.config:MoLConfig",
        summary="An expert for each type of perturbation, and a network that weighs them.",
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
    """For weighed experts: their weighed logits, weights chosen anew at each step."""
    if defense != "mol":
        return []
    return [{"attack": {"use": "mora"}, "views": ["deployed"]}]
