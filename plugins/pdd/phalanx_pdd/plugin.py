"""Declares PDD to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

PDD = ComponentSpec(
    kind=Kind.DEFENSE,
    name="pdd",
    factory="phalanx_pdd.defense:PDD",
    config="phalanx_pdd.config:PDDConfig",
    summary="An ensemble diversified by structured dropout of features and dispersed gradients.",
    paper=Paper(
        title="Adversarial Defence by Diversified Simultaneous Training of Deep Ensembles",
        venue="AAAI 2021",
        year=2021,
        code="https://github.com/ALIS-Lab/AAAI2021-PDD",
    ),
    traits=Traits(ensemble=True),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's one defense."""
    return (PDD,)


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For an average of members: weights of members chosen anew at each step."""
    if defense != "pdd":
        return []
    return [{"attack": {"use": "mora"}, "views": ["deployed"]}]
