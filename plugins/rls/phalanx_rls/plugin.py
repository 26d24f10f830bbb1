"""Declares RLS to Phalanx; imports nothing heavy."""

from __future__ import annotations

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
