"""One plan of an attack, carried out by Phalanx or by torchattacks with the same settings.

torchattacks is imported only when it is asked for. What its adapters take care of: it never
normalises (`get_logits` is the model's own forward); its default of 10 steps is always overridden;
attacks with a `seed` argument reseed torch's global generator with it, and PGD draws from that
generator, so all run inside `randomness.seeded`; FAB is targeted only with `multi_targeted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack
from phalanx.attacks.apgd import APGDCE, APGDDLR, APGDT
from phalanx.attacks.config import (
    APGDConfig,
    APGDTConfig,
    FABTConfig,
    PGDConfig,
    SquareConfig,
)
from phalanx.attacks.fab import FABT
from phalanx.attacks.gradient import PGD
from phalanx.attacks.square import Square
from phalanx.specs import L2, Linf, Threat

Kind = Literal["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
Run = Callable[[Tensor, Tensor], Tensor]
"""Images ``(N, C, H, W)`` and labels ``(N,)`` to examples of the same shape."""


@dataclass(frozen=True)
class Plan:
    """An attack and all its settings.

    Attributes:
        kind: which attack.
        steps: steps of a run (towards each target class), or queries of Square.
        stride: length of a PGD step, in units of eps.
        targets: target classes of APGD-T and FAB-T.
    """

    kind: Kind
    steps: int
    stride: float = 0.0
    targets: int = 9


PLANS = {
    "PGD-40": Plan("pgd", 40, stride=2.5 / 40),
    "APGD-CE": Plan("apgd-ce", 100),
    "APGD-DLR": Plan("apgd-dlr", 100),
    "APGD-T": Plan("apgd-t", 100),
    "FAB-T": Plan("fab-t", 100),
    "Square": Plan("square", 1000),
}


def ours(plan: Plan, threat: Threat) -> Attack[Any]:
    """The plan as an attack of Phalanx."""
    match plan.kind:
        case "pgd":
            step = plan.stride * _eps(threat)
            return PGD(PGDConfig(threat=threat, steps=plan.steps, step=step))
        case "apgd-ce":
            return APGDCE(APGDConfig(threat=threat, steps=plan.steps))
        case "apgd-dlr":
            return APGDDLR(APGDConfig(threat=threat, steps=plan.steps))
        case "apgd-t":
            return APGDT(APGDTConfig(threat=threat, steps=plan.steps, targets=plan.targets))
        case "fab-t":
            return FABT(FABTConfig(threat=threat, steps=plan.steps, targets=plan.targets))
        case "square":
            return Square(SquareConfig(threat=threat, queries=plan.steps))


def phalanx_run(plan: Plan, threat: Threat, model: nn.Module, *seed: int) -> Run:
    """Our attack on a model; one generator, from which successive calls go on drawing."""
    attack, generator = ours(plan, threat), randomness.generator("bench", *seed)
    return lambda x, y: attack(model, x, y, generator=generator)


def torchattacks_run(plan: Plan, threat: Threat, model: nn.Module, *seed: int) -> Run:
    """The same with torchattacks; each call runs inside global generators seeded anew."""
    key = randomness.key("bench", *seed)

    def run(x: Tensor, y: Tensor) -> Tensor:
        with randomness.seeded("bench", *seed):
            examples: Tensor = _torchattacks(plan, threat, model, key)(x, y)
        return examples.detach()

    return run


def _torchattacks(plan: Plan, threat: Threat, model: nn.Module, seed: int) -> Any:
    """Its attack object."""
    # Its environment is one of its own, see requirements.txt.
    import torchattacks  # type: ignore[import-not-found,unused-ignore]

    eps, norm = _eps(threat), "Linf" if isinstance(threat, Linf) else "L2"
    common = {"norm": norm, "eps": eps, "seed": seed, "n_restarts": 1, "verbose": False}
    match plan.kind:
        case "pgd":
            kind = torchattacks.PGD if isinstance(threat, Linf) else torchattacks.PGDL2
            return kind(
                model, eps=eps, alpha=plan.stride * eps, steps=plan.steps, random_start=True
            )
        case "apgd-ce" | "apgd-dlr":
            loss = plan.kind.removeprefix("apgd-")
            return torchattacks.APGD(model, steps=plan.steps, loss=loss, rho=0.75, **common)
        case "apgd-t":
            return torchattacks.APGDT(
                model, steps=plan.steps, rho=0.75, n_classes=plan.targets + 1, **common
            )
        case "fab-t":
            return torchattacks.FAB(
                model,
                steps=plan.steps,
                alpha_max=0.1,
                eta=1.05,
                beta=0.9,
                multi_targeted=True,
                n_classes=plan.targets + 1,
                **common,
            )
        case "square":
            return torchattacks.Square(
                model,
                n_queries=plan.steps,
                p_init=0.8,
                loss="margin",
                resc_schedule=True,
                **common,
            )


def _eps(threat: Threat) -> float:
    assert isinstance(threat, Linf | L2)
    return threat.eps


class Counted(nn.Module):
    """A model that counts its passes, in images.

    Attributes:
        forward_rows: images that went through forward.
        backward_rows: images whose scores a gradient came back to.
    """

    rowwise = True
    """A row's scores depend on that row alone, so our attacks may leave fooled rows out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_rows = self.backward_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.model(x)
        self.forward_rows += len(x)
        if scores.requires_grad:
            scores.register_hook(self._back)
        return scores

    def _back(self, gradient: Tensor) -> None:
        self.backward_rows += len(gradient)
