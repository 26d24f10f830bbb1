"""Declares PDD to Phalanx; imports nothing heavy."""

from __future__ import annotations

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
