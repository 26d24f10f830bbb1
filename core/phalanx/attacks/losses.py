"""Losses of an attack, per row and to be ascended, and the goals that use them.

All take scores ``(N, K)`` and labels ``(N,)`` and give ``(N,)``; where a larger value means
closer to (or further into) misclassification. DLR and targeted DLR: Croce and Hein, "Reliable
evaluation of adversarial robustness" (ICML 2020, arXiv 2003.01690), equations (4) and (6).

Deviation: with few classes a ratio lacks its terms, so DLR becomes the plain margin for K = 2,
and targeted DLR becomes ``z_t − z_y`` for K < 4. `substitute` says so in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from phalanx.attack import Targeted

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""Scores ``(N, K)`` and labels ``(N,)`` to a loss per row ``(N,)``."""
_TINY = 1e-12


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """``−log softmax(z)_y``."""
    return functional.cross_entropy(scores, y, reduction="none")


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """``max_{j≠y} z_j − z_y``: positive exactly where another class wins."""
    rivals = scores.scatter(1, y[:, None], -torch.inf)
    return rivals.max(1).values - of_class(scores, y)


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """``−(z_y − max_{j≠y} z_j) / (z_π1 − z_π3)``, eq. (4); for K = 2 the margin."""
    if scores.shape[1] < 3:
        return margin(scores, y)
    top = scores.topk(3, 1).values
    return margin(scores, y) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_margin(scores: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """``z_t − z_y``."""
    return of_class(scores, targets) - of_class(scores, y)


def targeted_dlr(scores: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """``−(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2)``, eq. (6); for K < 4 ``z_t − z_y``."""
    if scores.shape[1] < 4:
        return targeted_margin(scores, y, targets)
    top = scores.topk(4, 1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2.0
    return targeted_margin(scores, y, targets) / (spread + _TINY)


def of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """Each row's score of its label: ``(N,)``."""
    return scores.gather(1, labels[:, None]).squeeze(1)


LOSSES: dict[str, LabelLoss] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
"""Name in a config -> loss."""


def substitute(loss: str, classes: int) -> str:
    """What stands in for a DLR loss with so few classes, as one sentence; '' if it is itself.

    Args:
        loss: ``"dlr"``, ``"targeted dlr"`` or any other name.
        classes: number of classes K.
    """
    if loss == "dlr" and classes < 3:
        return f"With {classes} classes DLR is undefined: the margin max z_j - z_y was ascended."
    if loss == "targeted dlr" and classes < 4:
        return f"With {classes} classes targeted DLR is undefined: z_t - z_y was ascended."
    return ""


# ---------------------------------------------------------------- goals


class Goal(Protocol):
    """What an attack ascends and when a row is done; `goal[rows]` is the goal of these rows."""

    def loss(self, scores: Tensor) -> Tensor:
        """Loss to be ascended, ``(N, K)`` to ``(N,)``."""

    def reached(self, scores: Tensor) -> Tensor:
        """Whether each row's prediction is what the attacker wants, ``(N,)``."""

    def lead(self, scores: Tensor) -> Tensor:
        """By how much it is, ``(N,)``: positive where reached; comparable between losses."""

    def __getitem__(self, rows: Tensor) -> Goal:
        """The goal of some rows, given by a mask or by indices."""


@dataclass(frozen=True)
class Away:
    """Any class but the labels'."""

    labels: Tensor
    criterion: LabelLoss = cross_entropy

    def loss(self, scores: Tensor) -> Tensor:
        """The criterion at the labels."""
        return self.criterion(scores, self.labels)

    def reached(self, scores: Tensor) -> Tensor:
        """Another class is predicted."""
        return scores.argmax(1) != self.labels

    def lead(self, scores: Tensor) -> Tensor:
        """The margin of the best other class."""
        return margin(scores, self.labels)

    def __getitem__(self, rows: Tensor) -> Away:
        return Away(self.labels[rows], self.criterion)


@dataclass(frozen=True)
class Towards:
    """Exactly the labels' class: the criterion at these labels is descended."""

    labels: Tensor
    criterion: LabelLoss = cross_entropy

    def loss(self, scores: Tensor) -> Tensor:
        """Minus the criterion at the wanted labels."""
        return -self.criterion(scores, self.labels)

    def reached(self, scores: Tensor) -> Tensor:
        """The wanted class is predicted."""
        return scores.argmax(1) == self.labels

    def lead(self, scores: Tensor) -> Tensor:
        """The wanted class's margin over the best other one."""
        return -margin(scores, self.labels)

    def __getitem__(self, rows: Tensor) -> Towards:
        return Towards(self.labels[rows], self.criterion)


@dataclass(frozen=True)
class Across:
    """Any class but the labels', by way of one target class per row."""

    labels: Tensor
    targets: Tensor
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] = targeted_margin

    def loss(self, scores: Tensor) -> Tensor:
        """The criterion between target and label."""
        return self.criterion(scores, self.labels, self.targets)

    def reached(self, scores: Tensor) -> Tensor:
        """Another class is predicted, the target or not."""
        return scores.argmax(1) != self.labels

    def lead(self, scores: Tensor) -> Tensor:
        """The margin of the best other class."""
        return margin(scores, self.labels)

    def __getitem__(self, rows: Tensor) -> Across:
        return Across(self.labels[rows], self.targets[rows], self.criterion)


def goal_of(y: Tensor | Targeted, criterion: LabelLoss = cross_entropy) -> Away | Towards:
    """Away from labels ``(N,)``, or towards `Targeted` ones.

    Towards a label the margin stands in for DLR, which is constant where the wanted class comes
    third: numerator and denominator are then equal.
    """
    if isinstance(y, Targeted):
        return Towards(y.labels, margin if criterion is dlr else criterion)
    return Away(y, criterion)


def wrong_classes(scores: Tensor, y: Tensor, count: int) -> Tensor:
    """The most likely wrong classes, best first: ``(N, min(count, K − 1))``."""
    rivals = scores.scatter(1, y[:, None], -torch.inf)
    return rivals.topk(min(count, scores.shape[1] - 1), 1).indices
