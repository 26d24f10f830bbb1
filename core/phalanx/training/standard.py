"""The built-in defenses: none at all, and Madry et al.'s adversarial training.

"Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv 1706.06083:
minimise the cross-entropy of examples that maximise it within the threat (their eq. 2.1).

With several members both minimise the mean of the members' cross-entropies and serve the mean
probability; `pgd-at` attacks that mean. This is the baseline of PDD's paper.

Deviation: the paper trains for fixed numbers of iterations with a stepped learning rate; the
defaults here are 30 epochs of SGD (0.1, momentum 0.9, weight decay 5e-4) on a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from phalanx.config import OptimizerConfig, ScheduleConfig
from phalanx.defense import DefendedModel, Defense
from phalanx.nn.ensemble import MeanEnsemble
from phalanx.nn.member import build_member
from phalanx.phase import BatchTransform, Phase
from phalanx.training.config import AdversarialTrainingConfig, UndefendedConfig
from phalanx.training.phases import CrossEntropyPhase
from phalanx.training.transforms import Adversarial

ConfigT = TypeVar("ConfigT", bound=UndefendedConfig)

SGD = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)


class _Standard(Defense[ConfigT]):
    def build(self) -> DefendedModel:
        """A mean ensemble of independently initialised members."""
        config = self.config
        return MeanEnsemble(
            [
                build_member(config.backbone, self.task, normalization=config.normalization)
                for _ in range(config.members)
            ]
        )

    def transforms(self) -> tuple[BatchTransform, ...]:
        """What changes each batch."""
        return ()

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase of cross-entropy, named ``fit``."""
        return [
            CrossEntropyPhase(
                name="fit",
                module=model,
                epochs=30,
                batch_size=128,
                optimizer=SGD,
                schedule=ScheduleConfig(name="cosine").build(),
                transforms=self.transforms(),
            )
        ]


class Undefended(_Standard[UndefendedConfig]):
    """No defense: cross-entropy training."""


class AdversarialTraining(_Standard[AdversarialTrainingConfig]):
    """Madry's adversarial training: every image is replaced by an adversarial example."""

    def transforms(self) -> tuple[BatchTransform, ...]:
        """The inner maximisation."""
        return (Adversarial(self.config.attack.create()),)
