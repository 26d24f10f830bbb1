"""AVG and MAX: one network, trained against several types of perturbation at once.

Tramèr, Boneh, "Adversarial Training and Robustness for Multiple Perturbations", NeurIPS 2019,
arXiv 1904.13000. AVG minimises the mean loss over the types, of their concatenated batches; MAX
that of the type which is worst for each image. In "More or Less (MoL)" (Cheng et al., WACV
Workshops 2022) both are baselines, there with fog, snow and rotation among the types; facts marked
"code" are of ftramer/MultiRobustness and locuslab/robust_union.

Each type is made against the network as it is before the update, in evaluation mode; a natural
perturbation does not look at it. Each attack runs all its steps, so that examples are of high loss
and not merely wrong.

Deviation: trained as MoL's experts are: SGD 0.01, momentum 0.9, weight decay 5e-4, cosine, 200
    epochs of batches of 128. MoL says nothing of its baselines' training; Tramèr and Boneh's on
    CIFAR-10 is 80,000 steps at 0.1, a tenth after 40,000 and 60,000, with weight decay 2e-4.
Deviation: the attacks are PGD on cross-entropy from a random point of the ball; the code of Tramèr
    and Boneh ascends the margin.
Deviation: an L1 step moves 1 % of the coordinates, after leaving out those that would leave the
    box; the projection on ball and box is exact. The code's projections onto the L1 ball are off
    by one term, or move images that lie inside.
Deviation: the union's L2 radius in training is the threat's own; robust_union trains at 0.3 for a
    threat of 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.api import (
    Batch,
    DefendedModel,
    Defense,
    JointPhase,
    MeanEnsemble,
    OptimizerConfig,
    Perturbing,
    Phase,
    PhaseContext,
    RoundPhase,
    ScheduleConfig,
    attacking,
    build_member,
)
from phalanx_multi.config import AVGConfig, MultiConfig
from phalanx_multi.losses import by_type, worst_of

ConfigT = TypeVar("ConfigT", bound=MultiConfig)

OPTIMIZER = OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
SCHEDULE = ScheduleConfig(name="cosine")


@dataclass(kw_only=True)
class AVGPhase(JointPhase):
    """One update on the concatenated batches of all types.

    Attributes:
        perturbing: the types, in their order.
    """

    accepts_adversarial: ClassVar[bool] = False

    perturbing: tuple[Perturbing, ...]

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The mean over types of their cross-entropies, as ``cross_entropy``; each for the log."""
        images = made(self.module, self.perturbing, batch, ctx)
        losses = by_type(self.module(torch.cat(images)), batch.y, len(images))
        names = [one.name for one in self.perturbing]
        return {"cross_entropy": losses.mean(), **_logged("cross_entropy", names, losses)}


@dataclass(kw_only=True)
class SequentialPhase(RoundPhase):
    """An update for each type in turn, against the weights that the one before left.

    Attributes:
        perturbing: the types, in their order.
    """

    accepts_adversarial: ClassVar[bool] = False

    perturbing: tuple[Perturbing, ...]

    def rounds(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """One update a type; the cross-entropies before each, and their mean, for the log."""
        losses = []
        for one in self.perturbing:
            (images,) = made(self.module, (one,), batch, ctx)
            loss = F.cross_entropy(self.module(images), batch.y)
            ctx.minimise(loss)
            losses.append(loss.detach())
        names = [one.name for one in self.perturbing]
        mean = torch.stack(losses).mean()
        return {"cross_entropy": mean, **_logged("cross_entropy", names, losses)}


@dataclass(kw_only=True)
class MAXPhase(JointPhase):
    """One update on each image in its worst type.

    Attributes:
        perturbing: the types, in their order.
    """

    accepts_adversarial: ClassVar[bool] = False

    perturbing: tuple[Perturbing, ...]

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """``cross_entropy`` of the worst; for the log the share of images that each type got.

        The type is chosen as its examples are made, in evaluation mode: a type's loss does not
        depend on what else stands in the batch.
        """
        candidates = made(self.module, self.perturbing, batch, ctx)
        with attacking(self.module), torch.no_grad():
            losses = torch.stack(
                [F.cross_entropy(self.module(x), batch.y, reduction="none") for x in candidates]
            )
        images, chosen = worst_of(candidates, losses)
        shares = chosen.bincount(minlength=len(candidates)) / len(chosen)
        names = [one.name for one in self.perturbing]
        return {
            "cross_entropy": F.cross_entropy(self.module(images), batch.y),
            **_logged("chosen", names, shares),
            **_logged("cross_entropy", names, losses.mean(1)),
        }


def made(
    module: nn.Module, perturbing: Sequence[Perturbing], batch: Batch, ctx: PhaseContext
) -> list[Tensor]:
    """The batch's images in each type ``(N, C, H, W)``, against the module as it is now."""
    with attacking(module):
        return [
            one(module, batch.x, batch.y, generator=ctx.generator("type", one.name))
            for one in perturbing
        ]


def _logged(what: str, names: Sequence[str], values: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"log/{what}/{name}": value for name, value in zip(names, values, strict=True)}


class _Multi(Defense[ConfigT]):
    """One network and one phase, which makes its own examples."""

    def build(self) -> MeanEnsemble:
        """The untrained network."""
        config = self.config
        return MeanEnsemble(
            [build_member(config.backbone, self.task, normalization=config.normalization)]
        )

    def fit(
        self, kind: type[AVGPhase | SequentialPhase | MAXPhase], model: DefendedModel
    ) -> Sequence[Phase]:
        """The phase ``fit``, of that kind."""
        return [
            kind(
                name="fit",
                module=model,
                perturbing=tuple(Perturbing.of(one) for one in self.config.types),
                epochs=200,
                batch_size=128,
                optimizer=OPTIMIZER,
                schedule=SCHEDULE.build(),
            )
        ]


class AVG(_Multi[AVGConfig]):
    """Training on the mean loss over the types."""

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase: all types in one update, or one update each."""
        return self.fit(SequentialPhase if self.config.sequential else AVGPhase, model)


class MAX(_Multi[MultiConfig]):
    """Training on the type that is worst for each image."""

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase, of updates on the images that were chosen."""
        return self.fit(MAXPhase, model)
