"""ADP: an ensemble trained simultaneously, its members diverse in what they say of wrong classes.

Pang, Xu, Du, Chen, Zhu, "Improving Adversarial Robustness via Promoting Ensemble Diversity", ICML
2019, arXiv 1901.08846. Minimises ``Σ_k CE_k − α·H − β·log ED`` (`phalanx_adp.losses`); with an
adversarial twin of the batch, the same loss of the twin is added. Facts marked "code" are of the
authors' repository, in Keras.

Trained with: Adam 1e-3, weight decay 1e-4, batches of 64, 200 epochs, a tenth of the learning rate
after 100 and again after 150: CIFAR's. The code's adversarial training has 180 epochs and steps
after 80, 120 and 160; a run file says so.

Deviation: weight decay 1e-4 is Adam's, on all parameters, as in PyTorch ports; the code adds
    1e-4·‖w‖² of the convolutions' kernels to the loss. Adam's ε is 1e-8; the code's 1e-7.
Deviation: inputs are normalised by the channels' mean and deviation; the code subtracts the mean
    image. Augmentation is the run file's; the code's is shifts of up to 10 % and flips.
Deviation: the default network's convolutions have no biases; the code's have.
Deviation: the last epoch is kept; the code keeps the epoch of best accuracy on the test set.
Deviation: with batch normalisation in training mode, as in the code, an attack leaves the running
    statistics alone.
Deviation: a random radius leaves the length of a step to the attack (PGD: 2.5 ε / steps); the code
    takes ε / 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from phalanx.api import (
    Adversarial,
    Batch,
    BatchTransform,
    ConfigError,
    DefendedModel,
    Defense,
    JointPhase,
    Linf,
    MeanEnsemble,
    OptimizerConfig,
    Phase,
    PhaseContext,
    ScheduleConfig,
    Task,
    View,
    build_member,
    generator,
    log_mean,
)
from phalanx_adp.config import ADPConfig
from phalanx_adp.losses import (
    cross_entropies,
    ensemble_entropy,
    gram,
    log_determinant,
    mean_cosine,
)

OPTIMIZER = OptimizerConfig(name="adam", lr=1e-3, weight_decay=1e-4)
SCHEDULE = ScheduleConfig(name="multistep", milestones=(0.5, 0.75), gamma=0.1)


class ADPEnsemble(MeanEnsemble):
    """Serves the mean of the members' probabilities; an attacker may hold a single member."""

    def views(self) -> Mapping[str, View]:
        """``deployed``, and ``one-member``: one member, chosen at opening and fixed.

        Examples of a member are judged on the ensemble, so the latter measures how they transfer.
        """
        one = View(self.one_member, rowwise=True, fixed_draw=True)
        return {**super().views(), "one-member": one}

    def one_member(self, seed: int) -> nn.Module:
        """The member that a seed chooses."""
        stream = generator(seed, "one-member")
        return self.members[int(torch.randint(len(self.members), (), generator=stream))]


class ADP(Defense[ADPConfig]):
    """K networks of one architecture that serve the mean of their probabilities.

    Raises:
        ConfigError: if there are more members than wrong classes, and β > 0.
    """

    def __init__(self, config: ADPConfig, task: Task) -> None:
        super().__init__(config, task)
        most = task.classes - 1
        if config.beta > 0 and config.members > most:
            fix = f"write members = {most} or fewer, or beta = 0"
            if most < 2:
                fix = "write beta = 0"
            raise ConfigError(
                [
                    f"defense.params.members: {config.members} members cannot differ in all of"
                    f" {most} wrong classes ({task.name} has {task.classes} classes), so the"
                    f" log-determinant is that of a singular matrix: {fix}"
                ]
            )

    def build(self) -> ADPEnsemble:
        """The untrained ensemble."""
        config = self.config
        return ADPEnsemble(
            [
                build_member(config.backbone, self.task, normalization=config.normalization)
                for _ in range(config.members)
            ]
        )

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """One phase, in which all members are trained together."""
        return [
            ADPPhase(
                name="adp",
                module=model,
                config=self.config,
                epochs=200,
                batch_size=64,
                optimizer=OPTIMIZER,
                schedule=SCHEDULE.build(),
                transforms=self.transforms(),
            )
        ]

    def transforms(self) -> tuple[BatchTransform, ...]:
        """What makes the twin, in the adversarial form."""
        config = self.config
        if config.attack is None:
            return ()
        attack = config.attack.create()
        if config.radii is None:
            return (Adversarial(attack, "twin", "train"),)
        return (AtRandomRadius(attack, "twin", "train", radii=config.radii),)


@dataclass(frozen=True, kw_only=True)
class AtRandomRadius(Adversarial):
    """Adversarial examples at an L-inf radius that is drawn for each batch.

    Attributes:
        radii: the least and the largest; uniform between them.
    """

    radii: tuple[float, float]

    def __call__(self, batch: Batch, ctx: PhaseContext) -> Batch:
        """The batch with adversarial examples of one radius."""
        low, high = self.radii
        share = float(torch.rand((), generator=ctx.generator("radius"), device=ctx.device))
        attack = self.attack.at(Linf(low + (high - low) * share))
        return Adversarial(attack, self.mode, self.batchnorm)(batch, ctx)


@dataclass(kw_only=True)
class ADPPhase(JointPhase):
    """Simultaneous training with the entropy and the log-determinant.

    Attributes:
        config: their weights, and what is asked of a twin.
    """

    config: ADPConfig

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The terms of the loss, those of a twin as ``adversarial/…``.

        Args:
            batch: B images ``(B, C, H, W)`` and, where a transform made one, their twin.
            ctx: not asked.

        Returns:
            ``cross_entropy``, the sum over members; ``entropy`` = −α·H where α > 0; ``diversity``
            = −β·log ED where β > 0; and for the log the members' own cross-entropies, H, log ED,
            the mean cosine between members and the ensemble's accuracy.
        """
        config = self.config
        terms = self.terms(batch.x, batch.y, alpha=config.alpha, beta=config.beta)
        if batch.adv is None:
            return terms
        share = 1.0 if config.adversarial_term == "full" else 0.0
        twin = self.terms(batch.adv, batch.y, alpha=share * config.alpha, beta=share * config.beta)
        return terms | {_adversarial(name): value for name, value in twin.items()}

    def terms(self, x: Tensor, y: Tensor, *, alpha: float, beta: float) -> dict[str, Tensor]:
        """The loss of images ``(B, C, H, W)`` with labels ``(B,)``, in named parts."""
        members = cast(DefendedModel, self.module).members
        scores = torch.stack([member(x) for member in members])
        losses = cross_entropies(scores, y)
        entropy, cosines = ensemble_entropy(scores), gram(scores, y)
        led = log_determinant(cosines).to(entropy.dtype)
        terms = {"cross_entropy": losses.sum()}
        if alpha > 0:
            terms["entropy"] = -alpha * entropy
        if beta > 0:
            terms["diversity"] = -beta * led
        right = log_mean(list(scores.detach())).argmax(1) == y
        return terms | {
            **{f"log/cross_entropy/{k}": loss for k, loss in enumerate(losses)},
            "log/entropy": entropy,
            "log/led": led,
            "log/cosine": mean_cosine(cosines),
            "log/accuracy": right.float().mean(),
        }


def _adversarial(name: str) -> str:
    """The name of a twin's term; what is only logged stays so."""
    if name.startswith("log/"):
        return f"log/adversarial/{name.removeprefix('log/')}"
    return f"adversarial/{name}"
