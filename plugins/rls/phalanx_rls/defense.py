"""RLS: networks whose every layer is drawn from M sub-models, trained by their mean prediction.

Lee, Lee, Kim, Ro, "Robust Ensemble Model Training via Random Layer Sampling Against Adversarial
Attack", BMVC 2020, arXiv 2005.10757. Implements section 3 for the settings of Tables 1, 2 and 4 to
6; the sampling is in `sampling` and `units`, the mathematics in `losses`. No code was published.

Trained with the paper's SGD .01, momentum .9, weight decay 5e-4 and 150 epochs, the rate divided
by 10 after each third (every 50 epochs). MNIST's 50 epochs are a run file's, with a constant rate.

Deviation: batches of 128; the paper gives no size and no augmentation.
Deviation: the K networks of a step differ; the paper says so of K, and N of an answer may repeat.
Deviation: ResNet-50 and VGG-16 have the stems for small images of `phalanx.nn.backbones`; the paper
    names "publicly available networks".
Deviation: with other epochs than 150 the rate still falls at a third and two thirds.
Deviation: adversarial training, which the paper has none of, attacks the served mean of N networks
    on fresh draws; an adversarial twin adds its rows to the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phalanx.api import (
    Batch,
    ConfigError,
    DefendedModel,
    Defense,
    JointPhase,
    OptimizerConfig,
    PhalanxWarning,
    Phase,
    PhaseContext,
    ScheduleConfig,
    Task,
    build_member,
)
from phalanx_rls.config import RLSConfig
from phalanx_rls.losses import (
    ambiguity,
    group_mse,
    group_nll,
    individual_cross_entropy,
    individual_mse,
)
from phalanx_rls.sampling import RandomLayers
from phalanx_rls.units import alike_units, check_assembly, find_units

OPTIMIZER = OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
SCHEDULE = ScheduleConfig(name="multistep", milestones=(1 / 3, 2 / 3), gamma=0.1)

Loss = Literal["mse", "nll_mean", "mean_ce"]


class RLS(Defense[RLSConfig]):
    """M sub-models of one architecture, of which every answer samples layer by layer."""

    def build(self) -> RandomLayers:
        """The sub-models, each with its own draw of the initial weights.

        Raises:
            ConfigError: if there are fewer different networks than a step trains, or the backbone
                cannot be assembled from several.
        """
        config, task = self.config, self.task
        if config.normalization == "symmetric":
            task = symmetric(task)
        normalize: Literal["dataset", "none"] = (
            "none" if config.normalization == "none" else "dataset"
        )
        members = [
            build_member(config.backbone, task, normalization=normalize)
            for _ in range(config.members)
        ]
        units = find_units(members[0], task.shape)
        model = RandomLayers(members, units, samples=config.samples)
        if config.group > model.combinations:
            raise ConfigError(
                [
                    f"group: {config.group} different sampled models are trained at once, but "
                    f"{config.members} sub-models of {len(units)} layers make "
                    f"{model.combinations}: write a group of at most that, or more members"
                ]
            )
        if config.members > 1:
            check_assembly(members, units, task.shape)
        return model

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase, ``rls``.

        Raises:
            TypeError: for a model that `build` did not make.
        """
        if not isinstance(model, RandomLayers):
            raise TypeError(f"RLS trains what its build() returns, found {type(model).__name__}")
        config = self.config
        return [
            GroupPhase(
                name="rls",
                module=model,
                epochs=150,
                batch_size=128,
                optimizer=OPTIMIZER,
                schedule=SCHEDULE.build(),
                group=config.group,
                loss=config.loss,
                warmup_epochs=config.warmup_epochs,
            )
        ]


def symmetric(task: Task) -> Task:
    """The task with the mean and deviation that bring images in [0, 1] to [-1, 1]."""
    half = (0.5,) * task.shape[0]
    return task.model_copy(update={"mean": half, "std": half})


@dataclass(kw_only=True)
class GroupPhase(JointPhase):
    """Group optimisation: one update on the mean prediction of K sampled networks.

    Layers that none of the K networks has get no gradient, so neither momentum nor weight decay
    moves them.

    Attributes:
        group: K.
        loss: what is minimised; see `RLSConfig`.
        warmup_epochs: first epochs in which it is ``nll_mean``.
    """

    module: RandomLayers
    group: int
    loss: Loss = "mse"
    warmup_epochs: int = 0

    def begin(self, ctx: PhaseContext) -> None:
        """Warn where a warm start gave all sub-models the same weights.

        The head does not count: it is replaced, hence drawn, where the classes differ.
        """
        members = self.module.members
        alike = alike_units(members, self.module.units) if len(members) > 1 else []
        if len(alike) >= max(2, len(self.module.units) // 2):
            warnings.warn(
                f"all {len(members)} sub-models begin with the same weights in {len(alike)} of "
                f"{len(self.module.units)} layers ({alike[0]} first), so the networks sampled from "
                "them hardly differ: give init.from a list of different checkpoints, one for each",
                PhalanxWarning,
                stacklevel=2,
            )

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The loss of K different networks, drawn for the whole batch by ``generator("layers")``.

        Args:
            batch: B images ``(B, C, H, W)``; an adversarial twin adds its rows to them.
            ctx: position and generators.

        Returns:
            The loss under its name; ``log/individual_mse`` and ``log/ambiguity``, whose difference
            is the squared error of the mean prediction (eq. 7).
        """
        x, y = rows(batch)
        drawn = self.module.choose_different(self.group, ctx.generator("layers"))
        scores = [self.module.sampled(choice)(x) for choice in drawn]
        f = torch.stack([z.softmax(1) for z in scores])
        loss: Loss = "nll_mean" if ctx.epoch < self.warmup_epochs else self.loss
        if loss == "mse":
            value = group_mse(f, y)
        elif loss == "nll_mean":
            value = group_nll(scores, y)
        else:
            value = individual_cross_entropy(scores, y)
        f = f.detach()
        return {
            loss: value,
            "log/individual_mse": individual_mse(f, y),
            "log/ambiguity": ambiguity(f),
        }


def rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images and labels to train on: the batch, followed by its adversarial twin if it has one."""
    if batch.adv is None:
        return batch.x, batch.y
    return torch.cat([batch.x, batch.adv]), torch.cat([batch.y, batch.y])
