"""How adversarial examples carry over between the members of an ensemble.

The diagonal of the matrix is each member under its own attack, what is off it is transfer. A low
transfer is what ensembles that diversify their members promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack, attacking
from phalanx.attacks.balls import per_row, within
from phalanx.attacks.crafting import craft
from phalanx.defense import cast_like
from phalanx.evaluation.findings import Transfer

BATCH = 256
"""Images that are attacked at once, at most."""


def transfer_matrix(
    members: Sequence[nn.Module],
    attack: Attack[Any],
    x: Tensor,
    y: Tensor,
    *,
    generator: Generator,
    batch: int = BATCH,
) -> Tensor:
    """Accuracy of each member on the examples made for each.

    Every example counts as the target answers it, also where it is wrong without an attack. An
    example that breaks budget or box, or is not finite, is replaced by its clean image, as in a
    cell of an evaluation. All members are frozen and in evaluation mode meanwhile.

    Args:
        members: n networks, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, each row by
            itself.
        attack: with its threat.
        x: clean images; anywhere, they are moved to the members' device batch by batch.
        y: labels ``(N,)``.
        generator: of the attack's draws, on the members' device; the sources of a batch draw from
            it one after the other.
        batch: images that are attacked at once, at most 256.

    Returns:
        ``(n, n)`` in [0, 1], float64 on the CPU: row i is the target, column j the source.

    Raises:
        ValueError: without members, or if images and labels do not go together.
    """
    if not members or len(x) == 0 or y.shape != (len(x),):
        raise ValueError(
            "a transfer matrix is of one member or more on N >= 1 images with a label each, found "
            f"{len(members)} members, images {tuple(x.shape)} and labels {tuple(y.shape)}"
        )
    together = nn.ModuleList(members)
    device = next(chain(together.parameters(), together.buffers()), x).device
    step = max(1, min(batch, BATCH))
    right = torch.zeros(len(members), len(members), dtype=torch.float64)
    with attacking(together):
        for first in range(0, len(x), step):
            images, labels = (part[first : first + step].to(device) for part in (x, y))
            for source, member in enumerate(members):
                with randomness.seeded("transfer", generator.initial_seed(), first, source):
                    made = craft(attack, member, images, labels, generator=generator)
                    made = made.detach().to(images)
                    kept = within(made, images, attack.threat)
                    made = torch.where(per_row(kept, images), made, images)
                    right[:, source] += _right(members, made, labels).cpu()
    return right / len(x)


@torch.no_grad()
def _right(members: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """How many images each member classifies rightly, ``(n,)``."""
    answers = [member(cast_like(x, member)).argmax(1) for member in members]
    return torch.stack([(answer == y).sum() for answer in answers])


def own_and_transferred(matrix: Tensor) -> tuple[float, float]:
    """Mean accuracy under the own attack, and on the examples of another member.

    Where each image is attacked through one of n members at random, as Jasser and Garibay do
    (arXiv 2111.10272, eq. 6), their model robustness average is expected to be ``own / n +
    (1 − 1/n) transferred``, the mean of the whole matrix.

    Args:
        matrix: ``(n, n)``, of `transfer_matrix`.

    Returns:
        Two accuracies in [0, 1]; the second is NaN for n = 1.
    """
    own = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return float(matrix[own].mean()), float(matrix[~own].mean())


def members_transfer(matrix: Tensor, *, defense: str, attack: str, threat: str, n: int) -> Transfer:
    """A matrix as a report's finding; members are named ``member 1``, ``member 2``, ….

    Args:
        matrix: ``(n, n)``, of `transfer_matrix`.
        defense: whose members they are.
        attack: the attack's label.
        threat: its threat, as text.
        n: images.
    """
    names = tuple(f"member {number}" for number in range(1, len(matrix) + 1))
    return Transfer(
        kind="members",
        threat=threat,
        attack=attack,
        defense=defense,
        targets=names,
        sources=names,
        accuracy=tuple(tuple(row) for row in matrix.tolist()),
        n=n,
    )
