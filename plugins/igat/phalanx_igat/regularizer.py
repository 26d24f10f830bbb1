"""What iGAT adds to a phase: the second and third term of eq. (16), on a batch and its twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from phalanx.api import Adversarial, Batch, ConfigError, DefendedModel, PhaseContext, Regularizer
from phalanx_igat.config import IGATConfig
from phalanx_igat.losses import (
    distributed,
    is_wrong,
    misclassification,
    owner_right,
    owners,
    true_class,
)


@dataclass(frozen=True)
class Rows:
    """What the terms are computed on.

    Attributes:
        natural: images ``(B, C, H, W)``; none of them where the batch was replaced as a whole.
        adversarial: examples ``(A, C, H, W)`` of the ensemble.
        labels: of the natural images, then of the examples.
    """

    natural: Tensor
    adversarial: Tensor
    labels: Tensor


def rows(batch: Batch, ctx: PhaseContext) -> Rows:
    """Tell a batch's natural images from its adversarial examples.

    Raises:
        ConfigError: if the phase makes none.
    """
    if batch.adv is not None:
        return Rows(batch.x, batch.adv, torch.cat([batch.y, batch.y]))
    modes = [t.mode for t in ctx.phase.transforms if isinstance(t, Adversarial)]
    if not modes:
        raise ConfigError(
            [
                f"phase {ctx.phase.name!r} makes no adversarial examples of the ensemble for iGAT:"
                ' write training.adversarial = { attack = …, mode = "twin" }'
            ]
        )
    count = len(batch) if modes[-1] == "replace" else len(batch) // 2  # the first of them
    x, y = batch.x, batch.y
    return Rows(x[count:], x[:count], torch.cat([y[count:], y[:count]]))


class IGATRegularizer(Regularizer):
    """The distributed cross-entropy and the misclassification regulariser.

    Members answer once more for it, in training mode: natural images in one pass, adversarial
    examples in another, so that batch statistics are of one kind of image. Of the bases ADP does
    so too.

    Deviation: PDD, and with ``batch = "half"`` every base (as the code), passes both at once.

    Args:
        config: weights, rule, form and combiner.
    """

    def __init__(self, config: IGATConfig) -> None:
        super().__init__()
        self.config = config

    def terms(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The weighted terms of eq. (16) that are added to the base's.

        Args:
            batch: B images ``(B, C, H, W)`` and their twin.
            ctx: its generator "igat", "owner" draws the owners; its phase trains the ensemble.

        Returns:
            ``igat/distributed`` where α > 0, ``igat/misclassification`` where β > 0. For the log:
            ``igat/wrong/natural`` (where there are natural images) and ``…/adversarial``, the
            shares that the ensemble gets wrong. Then shares of the adversarial examples, so that
            their means over an epoch can be divided by each other: ``igat/given``, those given to
            members; ``igat/owner/1`` …, to each; ``igat/owner_right``, those given to an owner that
            is right; ``igat/member_right``, the same of a member drawn uniformly.
        """
        config, found = self.config, rows(batch, ctx)
        members = cast(DefendedModel, ctx.phase.module).members
        parts = [x for x in (found.natural, found.adversarial) if len(x)]
        z = torch.cat([torch.stack([member(x) for member in members]) for x in parts], dim=1)
        y, first = found.labels, len(found.natural)
        wrong = is_wrong(z, y, config.combiner)
        z_adv, y_adv, wrong_adv = z[:, first:], y[first:], wrong[first:]
        keep = wrong_adv if config.distribute == "misclassified" else torch.ones_like(wrong_adv)
        owner = owners(true_class(z_adv, y_adv), config.rule, ctx.generator("igat", "owner"))
        terms: dict[str, Tensor] = {}
        if config.alpha > 0:
            terms["igat/distributed"] = config.alpha * distributed(z_adv, y_adv, owner, keep)
        if config.beta > 0:
            loss = misclassification(z, y, wrong, config.regularizer)
            terms["igat/misclassification"] = config.beta * loss
        own, anybody = owner_right(z_adv, y_adv, owner, keep)
        given = _share(keep)
        if first:
            terms["log/igat/wrong/natural"] = _share(wrong[:first])
        return terms | {
            "log/igat/wrong/adversarial": _share(wrong_adv),
            "log/igat/given": given,
            **{
                f"log/igat/owner/{number}": _share((owner == number - 1) & keep)
                for number in range(1, len(members) + 1)
            },
            "log/igat/owner_right": own * given,
            "log/igat/member_right": anybody * given,
        }


def _share(mask: Tensor) -> Tensor:
    """The share of rows that a mask ``(B,)`` has; 0 of no rows."""
    return mask.float().sum() / max(1, len(mask))
