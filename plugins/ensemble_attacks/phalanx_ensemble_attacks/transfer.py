"""Transfer from members: examples that are made on one member, tried on the whole or on others.

An attacker who differentiates a single member avoids what averaging, voting or drawing does to the
gradient of the whole. If that breaks images which attacks through the whole do not, its gradient
hides something. The matrix between members is that of Papernot, McDaniel and Goodfellow,
"Transferability in Machine Learning" (2016, arXiv 1605.07277): sources by targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from phalanx.api import (
    Attack,
    AttackInapplicable,
    Observer,
    Scores,
    Targeted,
    goal_of,
    may_drop_rows,
)
from phalanx_ensemble_attacks.config import MemberTransferConfig
from phalanx_ensemble_attacks.found import Found


class MemberTransfer(Attack[MemberTransferConfig]):
    """The nested attack on each member, and one forward pass of the whole after each.

    Takes any threat that the nested attack takes.
    """

    def __init__(self, config: MemberTransferConfig) -> None:
        super().__init__(config)
        self.inner: Attack[Any] = config.at(self.threat).attack.create()

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; an observer sees the nested attack's path on each member, and all rows.

        Where rows are independent, a row is decided by the first member whose example fools the
        function itself. Otherwise, and for rows that nothing fools, the example that leads by most
        on the function is kept.

        Raises:
            AttackInapplicable: if the function has no members, or not the one asked for.
        """
        goal, decides, found = goal_of(y), may_drop_rows(model), Found(x)
        for member in self._sources(model):
            rows = found.undecided if observe is None else found.all
            if len(rows) == 0:
                break
            labels = Targeted(y.labels[rows]) if isinstance(y, Targeted) else y[rows]
            made = self.inner(member, x[rows], labels, generator=generator, observe=observe)
            with torch.no_grad():
                scores = model(made)
            lead = goal[rows].lead(scores)
            if decides:
                lead = torch.where(goal[rows].reached(scores), torch.inf, lead)
            found.take(rows, made.detach(), lead)
        return found.x

    def _sources(self, model: Scores) -> Sequence[Scores]:
        """The members to attack."""
        members: Sequence[Scores] = getattr(model, "members", ())
        if not members:
            raise AttackInapplicable(
                "attack 'member-transfer' makes its examples on members, and this function names "
                "none: attack it itself, with 'apgd-ce' or 'square', or say what its members are, "
                "phalanx.wrap(module, members=[...])"
            )
        chosen = self.config.member
        if chosen is None:
            return members
        if chosen >= len(members):
            raise AttackInapplicable(
                f"attack 'member-transfer' was asked for member {chosen}, and this function has "
                f"{len(members)}: write member = 0 to {len(members) - 1}, or leave it out for all"
            )
        return members[chosen : chosen + 1]


def transfer_matrix(
    members: Sequence[Scores], attack: Attack[Any], x: Tensor, y: Tensor, *, generator: Generator
) -> Tensor:
    """Accuracy of target member i on the examples of source member j, ``(n, n)`` in [0, 1].

    The diagonal is white-box. Each source's examples are made once. An attack that lets fooled rows
    leave (a member with a true attribute ``rowwise``) makes examples that barely fool their source
    and transfer less than those of all its steps.

    Args:
        members: n functions, images to scores ``(N, K)``; frozen and in evaluation mode, as
            `phalanx.api.attacking` leaves them.
        attack: with its threat.
        x: clean images ``(N, C, H, W)`` in [0, 1], at least one.
        y: labels ``(N,)``.
        generator: of the attack's draws, source after source; on x's device.

    Raises:
        ValueError: without members or images.
    """
    if not members or len(x) == 0:
        raise ValueError(
            f"a transfer matrix needs a member and an image at least, found {len(members)} members "
            f"and {len(x)} images"
        )
    made = [attack(source, x, y, generator=generator) for source in members]
    with torch.no_grad():
        right = [[(target(images).argmax(1) == y) for images in made] for target in members]
    return torch.stack([torch.stack(row) for row in right]).to(x.dtype).mean(-1)
