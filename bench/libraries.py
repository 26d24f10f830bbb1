"""The attacks of the benchmark, by library, as a user of each would call them.

Each takes the network itself, whose parameters need gradients as those of any module do. Ours
takes its steps on a private copy that it prepares anew in each call; that time is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers import PLANS, Plan, ours, torchattacks_run
from phalanx import randomness
from phalanx.attacks.crafting import craft
from phalanx.specs import Linf

Run = Callable[[nn.Module, Tensor, Tensor, Linf, int], Tensor]
"""Network, images ``(N, C, H, W)``, labels ``(N,)``, threat and seed to examples."""

PGD_20 = Plan("pgd", 20, stride=2.5 / 20)
ATTACKS = {
    "PGD-20": PGD_20,
    "APGD-CE": PLANS["APGD-CE"],
    "Square": PLANS["Square"],
    "APGD-T": PLANS["APGD-T"],
    "FAB-T": PLANS["FAB-T"],
}
"""100 steps (APGD-T and FAB-T: towards each of 9 classes), or 1,000 queries; one run."""


@dataclass(frozen=True)
class Shared:
    """A tally that copies of a counting module go on sharing."""

    counts: dict[str, int]

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


class Counting(nn.Module):
    """A network whose passes are counted in images, in the copies made of it too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.tally = Shared({"forward": 0, "backward": 0})

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = self.network(x)
        self.tally.counts["forward"] += len(x)
        if scores.requires_grad:
            scores.register_hook(self._back)
        return scores

    def _back(self, gradient: Tensor) -> None:
        self.tally.counts["backward"] += len(gradient)


def bare_loop(network: nn.Module, x: Tensor, y: Tensor, threat: Linf, seed: int) -> Tensor:
    """PGD-20 with nothing around it: 20 forwards, 20 gradients of the images, all rows."""
    flags = [(p, p.requires_grad) for p in network.parameters()]
    network.requires_grad_(False)  # noqa: FBT003  # torch's way
    generator = randomness.generator("bare", seed)
    low, high = (x - threat.eps).clamp_min(0.0), (x + threat.eps).clamp_max(1.0)
    size = PGD_20.stride * threat.eps
    current = x + threat.eps * (2.0 * torch.rand(x.shape, generator=generator) - 1.0)
    current = current.clamp(0.0, 1.0)
    for _ in range(PGD_20.steps):
        current.requires_grad_()
        loss = nn.functional.cross_entropy(network(current), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, current)
        current = (current.detach() + size * slope.sign()).clamp(low, high)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return current


def phalanx(plan: Plan) -> Run:
    """Ours."""

    def run(network: nn.Module, x: Tensor, y: Tensor, threat: Linf, seed: int) -> Tensor:
        generator = randomness.generator("benchmark", seed)
        return craft(ours(plan, threat), network, x, y, generator=generator)

    return run


def torchattacks(plan: Plan) -> Run:
    """The class of that name in torchattacks."""

    def run(network: nn.Module, x: Tensor, y: Tensor, threat: Linf, seed: int) -> Tensor:
        return torchattacks_run(plan, threat, network, seed)(x, y)

    return run


def foolbox(network: nn.Module, x: Tensor, y: Tensor, threat: Linf, seed: int) -> Tensor:
    """Foolbox's LinfPGD."""
    import foolbox as fb  # its environment is one of its own

    attack = fb.attacks.LinfPGD(
        steps=PGD_20.steps, abs_stepsize=PGD_20.stride * threat.eps, random_start=True
    )
    with randomness.seeded("foolbox", seed):
        model = fb.PyTorchModel(network, bounds=(0, 1), device="cpu")
        found: Tensor = attack(model, x, fb.criteria.Misclassification(y), epsilons=threat.eps)[1]
    return found


def art(plan: Plan, form: str = "") -> Run:
    """ART's attack around a `PyTorchClassifier`; its PGD has a numpy and a PyTorch form."""

    def run(network: nn.Module, x: Tensor, y: Tensor, threat: Linf, seed: int) -> Tensor:
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        with randomness.seeded("art", seed):
            attack = _art_attack(plan, form, estimator, threat, len(x))
            found = attack.generate(x.numpy(), nn.functional.one_hot(y, 10).float().numpy())
        return torch.from_numpy(found)

    return run


def _art_attack(plan: Plan, form: str, estimator: Any, threat: Linf, batch: int) -> Any:
    import numpy as np
    from art.attacks import evasion
    from art.attacks.evasion.projected_gradient_descent import (
        projected_gradient_descent_numpy as in_numpy,
        projected_gradient_descent_pytorch as in_torch,
    )

    common = {"norm": np.inf, "eps": threat.eps, "batch_size": batch, "verbose": False}
    match plan.kind:
        case "pgd":
            kind = (
                in_numpy.ProjectedGradientDescentNumpy
                if form == "numpy"
                else in_torch.ProjectedGradientDescentPyTorch
            )
            size = plan.stride * threat.eps
            return kind(estimator, eps_step=size, max_iter=plan.steps, num_random_init=1, **common)
        case "apgd-ce":
            return evasion.AutoProjectedGradientDescent(
                estimator,
                eps_step=2.0 * threat.eps,
                max_iter=plan.steps,
                nb_random_init=1,
                loss_type="cross_entropy",
                **common,
            )
        case "square":
            del common["batch_size"]
            return evasion.SquareAttack(
                estimator, max_iter=plan.steps, p_init=0.8, batch_size=batch, **common
            )
    raise ValueError(f"ART has no {plan.kind}")


def libraries(attack: str) -> dict[str, Run]:
    """Who has this attack, the one that the others are divided by first."""
    plan = ATTACKS[attack]
    if attack == "PGD-20":
        return {
            "bare loop": bare_loop,
            "Phalanx": phalanx(plan),
            "torchattacks": torchattacks(plan),
            "Foolbox": foolbox,
            "ART numpy": art(plan, "numpy"),
            "ART PyTorch": art(plan, "PyTorch"),
        }
    found = {"torchattacks": torchattacks(plan), "Phalanx": phalanx(plan)}
    if attack in ("APGD-CE", "Square"):
        found["ART"] = art(plan)
    return found
