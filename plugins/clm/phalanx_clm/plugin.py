"""Declares CLM to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

CLM = ComponentSpec(
    kind=Kind.DEFENSE,
    name="clm",
    factory="phalanx_clm.defense:CLM",
    config="phalanx_clm.config:CLMConfig",
    summary="A population of counter-linked sub-models, one of which answers each query.",
    paper=Paper(
        title="Resilience from Diversity: Population-based approach to harden models against "
        "adversarial attacks",
        arxiv="2111.10272",
        year=2021,
    ),
    traits=Traits(ensemble=True, stochastic=True),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's one defense."""
    return (CLM,)


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For a population: gradients of the mean over all sub-models, on CE and on DLR."""
    if defense != "clm":
        return []
    views = ["expected"]
    return [
        {"attack": {"use": "apgd-ce", "params": {"steps": 100}}, "views": views},
        {"attack": {"use": "apgd-dlr", "params": {"steps": 100}}, "views": views},
    ]
