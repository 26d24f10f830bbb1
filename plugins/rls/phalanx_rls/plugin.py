"""Declares RLS to Phalanx; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

RLS = ComponentSpec(
    kind=Kind.DEFENSE,
    name="rls",
    factory="phalanx_rls.defense:RLS",
    config="phalanx_rls.config:RLSConfig",
    summary="Networks whose every layer is drawn at random from M sub-models; N of them answer.",
    paper=Paper(
        title="Robust Ensemble Model Training via Random Layer Sampling Against Adversarial Attack",
        arxiv="2005.10757",
        venue="BMVC 2020",
        year=2020,
    ),
    traits=Traits(ensemble=True, stochastic=True),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's one defense."""
    return (RLS,)


@hookimpl
def phalanx_adaptive_attacks(defense: str, threat: str) -> list[dict[str, Any]]:
    """For random layers: the mean over fresh draws, and gradients averaged over draws."""
    if defense != "rls":
        return []
    return [
        {"attack": {"use": "apgd-dlr", "params": {"steps": 50}}, "views": ["expected"]},
        {"attack": {"use": "pgd", "params": {"steps": 50, "eot": 10}}, "views": ["deployed"]},
    ]
