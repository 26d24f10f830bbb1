"""Declares DVERGE to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

DVERGE = ComponentSpec(
    kind=Kind.DEFENSE,
    name="dverge",
    factory="phalanx_dverge.defense:DVERGE",
    config="phalanx_dverge.config:DVERGEConfig",
    summary="An ensemble whose members learn to withstand each other's weaknesses.",
    paper=Paper(
        title="DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation of Ensembles",
        arxiv="2009.14720",
        venue="NeurIPS 2020",
        year=2020,
        code="https://github.com/zjysteven/DVERGE",
    ),
    traits=Traits(ensemble=True),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's one defense."""
    return (DVERGE,)


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For an average of members: weights of members chosen anew at each step."""
    if defense != "dverge":
        return []
    return [{"attack": {"use": "mora"}, "views": ["deployed"]}]
