"""Declares attacks on ensembles to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, Traits, hookimpl

MORA = ComponentSpec(
    kind=Kind.ATTACK,
    name="mora",
    factory="phalanx_ensemble_attacks.mora:MORA",
    config="phalanx_ensemble_attacks.config:MORAConfig",
    summary="Projected gradients of an ensemble whose members are weighed anew at each step.",
    paper=Paper(
        title="MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing Attack",
        arxiv="2211.08008",
        venue="NeurIPS 2022",
        year=2022,
        code="https://github.com/lafeat/mora",
    ),
    traits=Traits(needs_training=False),
)
MEMBER_TRANSFER = ComponentSpec(
    kind=Kind.ATTACK,
    name="member-transfer",
    factory="phalanx_ensemble_attacks.transfer:MemberTransfer",
    config="phalanx_ensemble_attacks.config:MemberTransferConfig",
    summary="Examples made on each member in turn, tried on the whole.",
    paper=Paper(
        title=(
            "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
            "Adversarial Samples"
        ),
        arxiv="1605.07277",
        year=2016,
    ),
    traits=Traits(needs_training=False),
)
COMPONENTS = (MORA, MEMBER_TRANSFER)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return COMPONENTS
