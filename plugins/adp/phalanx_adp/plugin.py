"""Declares ADP to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

ADP = ComponentSpec(
    kind=Kind.DEFENSE,
    name="adp",
    factory="phalanx_adp.defense:ADP",
    config="phalanx_adp.config:ADPConfig",
    summary="An ensemble whose members are kept apart in what they say of the wrong classes.",
    paper=Paper(
        title="Improving Adversarial Robustness via Promoting Ensemble Diversity",
        arxiv="1901.08846",
        venue="ICML 2019",
        year=2019,
        code="https://github.com/P2333/Adaptive-Diversity-Promoting",
    ),
    traits=Traits(ensemble=True),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's one defense."""
    return (ADP,)


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For an average of members: weights of members chosen anew at each step."""
    if defense != "adp":
        return []
    return [{"attack": {"use": "mora"}, "views": ["deployed"]}]
