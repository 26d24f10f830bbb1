"""DVERGE: members that learn, in turn, to classify what is distilled from the others' weaknesses.

Yang, Zhang, Dong, Inkawhich, Gardner, Touchet, Wilkes, Berry, Li, "DVERGE: Diversifying
Vulnerabilities for Enhanced Robust Generation of Ensembles", NeurIPS 2020, arXiv 2009.14720.
Member i minimises ``Σ_{j≠i} CE(f_i(x'_j), y_s)``: the other members' distilled images
(`phalanx_dverge.distillation`) under the labels of their sources. There is no term on clean images.
In the adversarial form its own examples are added: ``c·Σ_{j≠i} CE(f_i(x'_j), y_s) +
CE(f_i(x_adv,i), y_s)``. Facts marked "code" are of the authors' repository.

Phases: ``baseline/1`` … ``baseline/K``, cross-entropy of each member alone, then ``dverge``. Both:
200 epochs of SGD .1 (momentum .9, weight decay 1e-4) in batches of 128, a tenth of the learning
rate after half and again after three quarters: the paper's, for CIFAR-10.

All images of a batch are made before any member changes, so the order of the members' updates
changes nothing.

Deviation: layers are named, or found by rule (`phalanx_dverge.layers`), for any backbone; the code
    counts those of ResNet-20. For ResNet-20 they are the same 20.
Deviation: target images come as they are stored; the code augments them as it does the sources.
Deviation: with ``batchnorm = "eval"``, targets' features are computed once; the code computes them
    at each step, which is only in training mode something else (running statistics).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.api import (
    Attack,
    Batch,
    CrossEntropyPhase,
    DefendedModel,
    Defense,
    MeanEnsemble,
    Member,
    OptimizerConfig,
    Phase,
    PhaseContext,
    RoundPhase,
    ScheduleConfig,
    attacking,
    build_member,
)
from phalanx_dverge.config import DVERGEConfig
from phalanx_dverge.distillation import FeatureDistance, distil
from phalanx_dverge.layers import check_layers, feature_layers

EPOCHS = 200
BATCH_SIZE = 128
OPTIMIZER = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
SCHEDULE = ScheduleConfig(name="multistep", milestones=(0.5, 0.75), gamma=0.1)


class DVERGE(Defense[DVERGEConfig]):
    """K networks of one architecture that serve the mean of their probabilities."""

    def build(self) -> MeanEnsemble:
        """The untrained ensemble.

        Raises:
            InputError: if the members lack one of the layers, or it cannot be read.
        """
        config = self.config
        model = MeanEnsemble(
            [
                build_member(config.backbone, self.task, normalization=config.normalization)
                for _ in range(config.members)
            ]
        )
        check_layers(model.members[0], self.layers(model), self.task)
        return model

    def layers(self, model: DefendedModel) -> tuple[str, ...]:
        """The layers that l is drawn from."""
        return self.config.layers or feature_layers(cast(Member, model.members[0]))

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """``baseline/1`` … ``baseline/K`` unless it starts from scratch, then ``dverge``."""
        config = self.config
        baseline: list[Phase] = []
        if config.start == "baseline":
            baseline = [
                CrossEntropyPhase(
                    name=f"baseline/{number}",
                    module=member,
                    epochs=EPOCHS,
                    batch_size=BATCH_SIZE,
                    optimizer=OPTIMIZER,
                    schedule=SCHEDULE.build(),
                )
                for number, member in enumerate(model.members, start=1)
            ]
        return [
            *baseline,
            DVERGEPhase(
                name="dverge",
                module=model,
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                depends_on=tuple(phase.name for phase in baseline),
                optimizer=OPTIMIZER,
                schedule=SCHEDULE.build(),
                config=config,
                layers=self.layers(model),
                attack=None if config.attack is None else config.attack.create(),
            ),
        ]


@dataclass(kw_only=True)
class DVERGEPhase(RoundPhase):
    """One update of each member a batch, on images made by all of them beforehand.

    Its updates take the batch's images and labels; a twin that a transform made is left to the
    regularizers.

    Attributes:
        config: the constants.
        layers: what l is drawn from.
        attack: makes each member's own adversarial examples; None: there are none.
        layer: l, the one in use.
    """

    accepts_adversarial: ClassVar[bool] = False

    config: DVERGEConfig
    layers: tuple[str, ...]
    attack: Attack[Any] | None = None
    layer: str = field(init=False, default="")

    @property
    def members(self) -> Sequence[Member]:
        """The ensemble's members."""
        return cast(Sequence[Member], cast(DefendedModel, self.module).members)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One group a member, ``member/1`` …, each with an optimizer of its own."""
        return {
            f"member/{number}": [p for p in member.parameters() if p.requires_grad]
            for number, member in enumerate(self.members, start=1)
        }

    def before_epoch(self, ctx: PhaseContext) -> None:
        """Draw the epoch's layer, one for all members."""
        self.layer = self.drawn(ctx)

    def drawn(self, ctx: PhaseContext) -> str:
        """A layer, each equally likely."""
        stream = ctx.generator("layer")
        return self.layers[
            int(torch.randint(len(self.layers), (), generator=stream, device=ctx.device))
        ]

    def rounds(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """Make the images of all members, then update each member on the others'.

        Args:
            batch: the sources, ``(B, C, H, W)``, and their labels.
            ctx: its stream "target" gives the targets.

        Returns:
            ``loss/i`` of each member, its cross-entropies ``cross_entropy/i-j`` on the images of
            member j, ``adversarial/i`` on its own examples; ``distance/first`` and
            ``distance/last``, the mean distance of features at the first and at the last step;
            ``layer``, counted from 1.
        """
        if self.config.draw == "batch":
            self.layer = self.drawn(ctx)
        with self.crafting():
            distilled, distances = self.distilled(batch.x, ctx.batch("target").x)
            own = self.own_examples(batch, ctx)
        values = {
            "layer": torch.tensor(float(self.layers.index(self.layer) + 1)),
            "distance/first": torch.stack([d.first for d in distances]).mean(),
            "distance/last": torch.stack([d.last for d in distances]).mean(),
        }
        for i, member in enumerate(self.members):
            losses = {
                f"cross_entropy/{i + 1}-{j + 1}": F.cross_entropy(member(x), batch.y)
                for j, x in enumerate(distilled)
                if j != i
            }
            loss = torch.stack(list(losses.values())).sum()
            if self.config.reduction == "mean":
                loss = loss / len(losses)
            if own:
                losses[f"adversarial/{i + 1}"] = F.cross_entropy(member(own[i]), batch.y)
                loss = self.config.coefficient * loss + losses[f"adversarial/{i + 1}"]
            ctx.minimise(loss, f"member/{i + 1}")
            values |= {f"loss/{i + 1}": loss, **losses}
        return values

    def crafting(self) -> AbstractContextManager[None]:
        """The mode in which images are made."""
        return attacking(self.module, "eval") if self.config.batchnorm == "eval" else nullcontext()

    def distilled(
        self, source: Tensor, target: Tensor
    ) -> tuple[list[Tensor], list[FeatureDistance]]:
        """Each member's distilled images ``(B, C, H, W)``, and how near their features came."""
        config = self.config
        every_call = config.batchnorm == "train"
        distances = [
            FeatureDistance(member, self.layer, target, every_call=every_call)
            for member in self.members
        ]
        images = [
            distil(d, source, eps=config.eps, step=config.step_size, steps=config.steps)
            for d in distances
        ]
        return images, distances

    def own_examples(self, batch: Batch, ctx: PhaseContext) -> list[Tensor]:
        """Each member's own adversarial examples ``(B, C, H, W)``; [] where there is no attack."""
        if self.attack is None:
            return []
        return [
            self.attack(
                member, batch.x, batch.y, generator=ctx.generator("adversarial", number)
            ).detach()
            for number, member in enumerate(self.members, start=1)
        ]
