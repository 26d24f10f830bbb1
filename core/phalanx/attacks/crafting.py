"""Running an attack on a module at less cost: its steps are taken on a prepared copy.

    x_adv = craft(PGD(config), network, x, y, generator=generator)

The copy (`phalanx.nn.prepare`) answers as the module does up to rounding, which may still decide
a row at the boundary between two classes. So the module itself has the last word: rows that only
the copy takes for fooled, or scores otherwise than the module, are attacked again on the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from phalanx.attack import Attack, Targeted, attacking
from phalanx.attacks.losses import goal_of
from phalanx.defense import Combined, DefendedModel
from phalanx.nn.prepare import SCORES, prepared

EXAMPLES = 8
"""Images on which a copy must agree before it is used."""


WORTHWHILE = 2**16
"""Values of a batch of images below which copying costs more than it saves in training."""


def lighter(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """What training's attacks take their steps on: a prepared copy, or the function itself.

    The copy answers as the network does up to rounding, which examples to train on may; nothing is
    judged by them.

    Args:
        function: images ``(N, C, H, W)`` to scores ``(N, K)``; frozen and in evaluation mode, as
            `phalanx.api.attacking` leaves it.
        x: the images to attack.

    Returns:
        A copy for one batch, as weights move on; the function itself where it is stochastic or no
        network, where no copy agrees with it, and for batches of less than 65,536 values.
    """
    if not isinstance(function, nn.Module) or x.numel() < WORTHWHILE:
        return function
    if isinstance(function, DefendedModel) and function.stochastic:
        return function
    return prepared(function, x[:EXAMPLES]) or function


class Rowwise(nn.Module):
    """A function of independent rows, declared so: attacks may leave out rows that are fooled.

    Args:
        module: images ``(N, C, H, W)`` to scores ``(N, K)``.
    """

    rowwise = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def members(self) -> tuple[Rowwise, ...]:
        """The module's members; () where it has none."""
        return tuple(Rowwise(one) for one in getattr(self.module, "members", ()))

    def combined(self, x: Tensor) -> Combined | None:
        """What the module averages; None where it is no average."""
        ask = getattr(self.module, "combined", None)
        return None if ask is None else ask(x)

    def forward(self, x: Tensor) -> Tensor:
        """The module's scores."""
        scores: Tensor = self.module(x)
        return scores


def craft(
    attack: Attack[Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor | Targeted,
    *,
    generator: Generator,
    rowwise: bool = True,
) -> Tensor:
    """Adversarial examples for a network, in evaluation mode and with frozen parameters.

    Weights, modes, flags and memory layout of the model are as before afterwards.

    Args:
        attack: with its threat.
        model: images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``.
        x: clean images.
        y: labels ``(N,)``, or `Targeted` labels to reach.
        generator: of the attack's draws; on x's device.
        rowwise: whether each row's scores depend on that row alone, so that a copy may be prepared
            and fooled rows left out. Never of a stochastic model, whatever is said here.

    Returns:
        Images of the same shape, in [0, 1] and within the threat.
    """
    stochastic = isinstance(model, DefendedModel) and model.stochastic
    with attacking(model):
        if stochastic or not rowwise:
            return attack(model, x, y, generator=generator)
        copy = prepared(model, x[:EXAMPLES])
        if copy is None:
            return attack(Rowwise(model), x, y, generator=generator)
        found = attack(Rowwise(copy), x, y, generator=generator)
        again = doubtful(model, copy, found, y)
        if len(again):
            labels = Targeted(y.labels[again]) if isinstance(y, Targeted) else y[again]
            more = attack(Rowwise(model), x[again], labels, generator=generator)
            found = found.index_copy(0, again, more)
        return found


@torch.no_grad()
def doubtful(module: nn.Module, copy: nn.Module, x: Tensor, y: Tensor | Targeted) -> Tensor:
    """Rows on which a copy must not decide for its module.

    Those are rows where the module does not do what the attacker wants, while the copy does, or
    while its scores are others. One pass through the module, and one of such rows through the
    copy.

    Args:
        module: what is attacked; a function of independent rows.
        copy: on which the steps were taken.
        x: adversarial examples ``(N, C, H, W)``.
        y: labels ``(N,)`` or `Targeted` labels.

    Returns:
        Their indices.
    """
    goal = goal_of(y)
    scores = module(x)
    withstood = (~goal.reached(scores)).nonzero().squeeze(1)
    if len(withstood) == 0:
        return withstood
    seen, own = copy(x[withstood]), scores[withstood]
    agrees = (seen - own).abs().amax(1) <= SCORES * scores.abs().max()  # False for NaN
    return withstood[goal[withstood].reached(seen) | ~agrees]
