"""PDD and DEG: an ensemble trained simultaneously for diverse features and dispersed gradients.

Huang, Ke, et al., "Adversarial Defence by Diversified Simultaneous Training of Deep Ensembles",
AAAI 2021. Implements Algorithm 1 (PDD), Algorithm 2 (DEG) and eq. (4), for the settings of
Tables 1 to 4 and, with an adversarial transform, of Table 6. The mathematics is in
`phalanx_pdd.losses`, with its own deviations. Facts marked "code" are of the authors' repository.

Trained with: SGD .02, momentum .9, weight decay 5e-4, batches of 64, cosine down to 1e-4. The
40 epochs are Fashion-MNIST's; a run file sets CIFAR-100's 150 with crop and flip.

Deviation: the loss is the mean of the members' cross-entropies, as in the code; eq. (1) has their
    sum, to be had by ``ece = "sum"``.
Deviation: the paper says "in a training period"; bins are counted per image and step, as in the
    code.
Deviation: the learning rate follows the cosine batch by batch; the code steps it at the start of
    each epoch, so epoch e trains at the value of e + 1 and the last one at 1e-4.
Deviation: the last epoch is kept; the code keeps the epoch of best accuracy on the test set.
Deviation: with M = 20 and five members the mask is what the paper describes; the code fails there.
Deviation: Fashion-MNIST enters through a stem of one channel; the code's three do not fit.
Deviation: mixed precision, if asked for, leaves bins and cosines in float32.
Deviation: Table 6 "augments the training data with adversarial examples in each mini-batch" and
    leaves the rest open. Here an adversarial transform attacks the served (unmasked) ensemble;
    ``twin`` adds the adversarial rows to the batch, as many as the clean ones, ``replace`` and
    ``half`` put them in the place of clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import torch
from torch import Tensor

from phalanx.api import (
    Batch,
    DefendedModel,
    Defense,
    JointPhase,
    MeanEnsemble,
    Member,
    OptimizerConfig,
    Phase,
    PhaseContext,
    ScheduleConfig,
    build_member,
)
from phalanx_pdd.config import PDDConfig
from phalanx_pdd.losses import (
    cross_entropies,
    diversified_mask,
    ensemble_cross_entropy,
    keep_probabilities,
    pairwise_cosines,
)

OPTIMIZER = OptimizerConfig(name="sgd", lr=0.02, momentum=0.9, weight_decay=5e-4)
SCHEDULE = ScheduleConfig(name="cosine", floor=0.005)  # 1e-4 / .02


class PDD(Defense[PDDConfig]):
    """K networks of one architecture that serve the mean of their probabilities."""

    def build(self) -> MeanEnsemble:
        """The untrained ensemble; it never masks, so evaluation mode is the identity of PDD."""
        config = self.config
        return MeanEnsemble(
            [
                build_member(config.backbone, self.task, normalization=config.normalization)
                for _ in range(config.members)
            ]
        )

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase, in which all members are trained together."""
        return [
            PDDPhase(
                name="pdd",
                module=model,
                config=self.config,
                epochs=40,
                batch_size=64,
                optimizer=OPTIMIZER,
                schedule=SCHEDULE.build(),
            )
        ]


@dataclass(kw_only=True)
class PDDPhase(JointPhase):
    """Simultaneous training with the diversified mask, the dispersion penalty, or both.

    Attributes:
        config: which parts, and their constants.
    """

    config: PDDConfig

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The terms of eq. (4).

        Args:
            batch: B images ``(B, C, H, W)``; an adversarial twin adds its rows to them.
            ctx: its generator "mask" draws the mask.

        Returns:
            ``cross_entropy``; with DEG ``dispersion``, times λ, and ``log/cosine/i-j`` for each
            pair; with PDD ``log/kept/k``, the share of member k's features that was kept.
        """
        x, y = rows(batch)
        if self.config.disperses:
            x = x.detach().requires_grad_()
        members = cast(Sequence[Member], cast(DefendedModel, self.module).members)
        # The mask couples the members: all features first, then the heads.
        features = [member.features(x) for member in members]
        terms: dict[str, Tensor] = {}
        if self.config.drops:
            mask = self.mask(features, ctx)
            terms |= {
                f"log/kept/{k}": kept for k, kept in enumerate((mask != 0).float().mean((0, 2)))
            }
            features = [f * m.to(f.dtype) for f, m in zip(features, mask.unbind(1), strict=True)]
        logits = [member.head(f) for member, f in zip(members, features, strict=True)]
        losses = cross_entropies(logits, y)
        terms["cross_entropy"] = ensemble_cross_entropy(losses, self.config.ece)  # eq. (1)
        if self.config.disperses:
            cosines = pairwise_cosines([input_gradient(loss * len(y), x) for loss in losses])
            terms["dispersion"] = self.config.dispersion_weight * cosines.sum()  # eq. (3), (4)
            pairs = combinations(range(len(losses)), 2)
            terms |= {f"log/cosine/{i}-{j}": c for (i, j), c in zip(pairs, cosines, strict=True)}
        return terms

    def mask(self, features: Sequence[Tensor], ctx: PhaseContext) -> Tensor:
        """The factors ``(B, K, D)`` of the K members' features ``(B, D)``: Algorithm 1."""
        config = self.config
        together = torch.stack([f.detach() for f in features], dim=1)
        keep = keep_probabilities(together, config.m, config.alpha, config.beta)
        return diversified_mask(keep, ctx.generator("mask"), config.rescale)


def rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images and labels to train on: the batch, followed by its adversarial twin if it has one."""
    if batch.adv is None:
        return batch.x, batch.y
    return torch.cat([batch.x, batch.adv]), torch.cat([batch.y, batch.y])


def input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """The gradient of a loss to the images, itself differentiable to the weights.

    Args:
        loss: a sum over the batch, so that no row shrinks with the batch size.
        x: ``(B, C, H, W)``, requiring gradients.

    Returns:
        ``(B, C, H, W)``.
    """
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return gradient
