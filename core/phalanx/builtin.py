"""The components that come with the core, declared as a plugin declares its own."""

from __future__ import annotations

from phalanx.hookspecs import hookimpl
from phalanx.specs import ComponentSpec, Kind, Paper, Traits

_MADRY = Paper(
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    arxiv="1706.06083",
    venue="ICLR 2018",
    year=2018,
)


def _attack(name: str, factory: str, config: str, summary: str) -> ComponentSpec:
    return ComponentSpec(
        kind=Kind.ATTACK,
        name=name,
        factory=f"phalanx.attacks.{factory}",
        config=f"phalanx.attacks.config:{config}",
        summary=summary,
        traits=Traits(needs_training=False),
    )


COMPONENTS = (
    ComponentSpec(
        kind=Kind.DEFENSE,
        name="none",
        factory="phalanx.training.standard:Undefended",
        config="phalanx.training.config:UndefendedConfig",
        summary="No defense: cross-entropy training of one network, or of several averaged.",
    ),
    ComponentSpec(
        kind=Kind.DEFENSE,
        name="pgd-at",
        factory="phalanx.training.standard:AdversarialTraining",
        config="phalanx.training.config:AdversarialTrainingConfig",
        summary="Madry's adversarial training, of one network or of several averaged.",
        paper=_MADRY,
    ),
    _attack("fgsm", "gradient:FGSM", "FGSMConfig", "One step along the gradient's sign."),
    _attack("bim", "gradient:BIM", "BIMConfig", "Iterated steps from the clean image."),
    _attack("pgd", "gradient:PGD", "PGDConfig", "Projected gradient descent from a random start."),
    _attack("mi-fgsm", "gradient:MIFGSM", "MIFGSMConfig", "Iterated steps with momentum."),
    _attack("apgd-ce", "apgd:APGDCE", "APGDConfig", "Auto-PGD on cross-entropy."),
    _attack("apgd-dlr", "apgd:APGDDLR", "APGDConfig", "Auto-PGD on the DLR loss."),
    _attack("apgd-t", "apgd:APGDT", "APGDTConfig", "Auto-PGD on the targeted DLR loss."),
    _attack("fab-t", "fab:FABT", "FABTConfig", "Targeted fast adaptive boundary attack."),
    _attack("square", "square:Square", "SquareConfig", "Random search over squares; scores only."),
    _attack(
        "natural",
        "natural:NaturalAttack",
        "NaturalConfig",
        "A natural perturbation, or the worst of several draws of it; no ball.",
    ),
    ComponentSpec(
        kind=Kind.ATTACK,
        name="art/*",
        factory="phalanx.art.attack:ArtAttack",
        config="phalanx.art.config:ArtAttackConfig",
        summary="Any evasion attack of the Adversarial Robustness Toolbox: art/DeepFool.",
        traits=Traits(needs_training=False),
    ),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The core's components."""
    return COMPONENTS
