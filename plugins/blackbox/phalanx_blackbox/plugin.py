"""Declares the black-box attacks to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

RAYS = Paper(
    title="RayS: A Ray Searching Method for Hard-label Adversarial Attack",
    arxiv="2006.12792",
    venue="KDD 2020",
    year=2020,
    code="https://github.com/uclaml/RayS",
)
SIGNHUNTER = Paper(
    title="Sign Bits Are All You Need for Black-Box Attacks",
    arxiv="1902.06894",
    venue="ICLR 2020",
    year=2020,
    code="https://github.com/ash-aldujaili/blackbox-adv-examples-signhunter",
)

COMPONENTS = (
    ComponentSpec(
        kind=Kind.ATTACK,
        name="rays",
        factory="phalanx_blackbox.rays:RayS",
        config="phalanx_blackbox.config:RaySConfig",
        summary="Ray search: the nearest boundary along sign vectors; labels only.",
        paper=RAYS,
        traits=Traits(needs_training=False),
    ),
    ComponentSpec(
        kind=Kind.ATTACK,
        name="signhunter",
        factory="phalanx_blackbox.signhunter:SignHunter",
        config="phalanx_blackbox.config:SignHunterConfig",
        summary="Flips blocks of the gradient's signs that raise the loss; scores only.",
        paper=SIGNHUNTER,
        traits=Traits(needs_training=False),
    ),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return COMPONENTS
