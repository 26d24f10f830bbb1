"""What is known of attacks by their names: whether they follow gradients, and of which loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from phalanx.attacks.losses import (
    LabelLoss,
    cross_entropy,
    dlr,
    margin,
    targeted_dlr,
    wrong_classes,
)
from phalanx.config import UseAttack
from phalanx.evaluation.checks import AttackFacts

GRADIENT = ("fgsm", "bim", "pgd", "mim", "msd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "mora")
"""Attacks that follow gradients of the function they attack."""
BLACK_BOX = ("square", "rays", "signhunter")
"""Attacks that ask for scores or labels alone."""
MEMBERS = "member-transfer"
"""Transfer from members, made by gradients of these."""
_OF_NAME = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "targeted-dlr", "fab-t": "margin"}
_ART_BLACK_BOX = ("square", "hopskip", "boundary", "simba", "zoo", "geoda", "signopt", "pixel")


def facts_of(use: UseAttack) -> AttackFacts:
    """Whether an attack follows the model's gradient, and which loss it ascends.

    An attack of a third party counts as one of gradients, ART's known black-box ones excepted.
    """
    name = use.use
    if name in BLACK_BOX or name in ("natural", MEMBERS):
        return AttackFacts(gradient=False)
    if name.startswith("art/"):
        given = name.removeprefix("art/").lower()
        return AttackFacts(gradient=not any(part in given for part in _ART_BLACK_BOX))
    if name in _OF_NAME:
        return AttackFacts(gradient=True, loss=_OF_NAME[name])
    if name == "mora":
        return AttackFacts(gradient=True)
    return AttackFacts(gradient=True, loss=str(getattr(use.params, "loss", "ce")))


def is_black_box(use: UseAttack) -> bool:
    """Whether an attack asks the model for scores or labels alone: ours, and ART's known ones."""
    return not facts_of(use).gradient and use.use not in ("natural", MEMBERS)


def is_base(use: UseAttack) -> bool:
    """Whether an attack belongs to the base: white-box, by gradients, on the model itself."""
    return use.use in GRADIENT and use.use != "mora"


def has_base(uses: list[UseAttack]) -> bool:
    """Whether the base is complete: APGD-CE of 100 steps, and an attack on a margin loss."""
    long = any(one.use == "apgd-ce" and getattr(one.params, "steps", 0) >= 100 for one in uses)
    return long and any(facts_of(one).loss in ("dlr", "targeted-dlr", "margin") for one in uses)


def _towards_the_second(scores: Tensor, y: Tensor) -> Tensor:
    """Targeted DLR towards the most likely wrong class."""
    return targeted_dlr(scores, y, wrong_classes(scores.detach(), y, 1)[:, 0])


LOSSES: Mapping[str, LabelLoss] = {
    "margin": margin,
    "ce": cross_entropy,
    "dlr": dlr,
    "targeted-dlr": _towards_the_second,
}
"""Name of a loss in `AttackFacts` -> the loss."""


def steps_of(params: Any) -> int:
    """How many steps an attack takes."""
    return int(getattr(params, "steps", 1))
