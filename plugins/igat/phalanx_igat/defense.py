"""iGAT: an ensemble is fine-tuned on its own adversarial examples, given to the members it suits.

Deng, Mu, "Understanding and Improving Ensemble Adversarial Defense", NeurIPS 2023, arXiv
2310.18477, Section 5. Adds to the loss of another ensemble defense, the base (eq. 16),
``α Σ_i CE(h^i, y)`` on the adversarial examples that a rule gives to member i (eq. 13, 14), and
``β L_R`` (eq. 15), which presses down the likeliest wrong answer where the ensemble is wrong
(`phalanx_igat.losses`). Facts marked "code" are of the authors' repository.

The two terms ride as a regularizer on the base's last phase: a simultaneous base adds them to its
own loss, a round-robin base takes them as one more update of all members after its own. With
α = β = 0 nothing is added and nothing is attacked, so the phase is the base's, bit for bit.

Without ``pretrain`` that phase keeps its name, so it draws what the base would draw.

Deviation: optimizer, epochs and batch are the base phase's; the paper's own (SGD, 512 images,
    rates of .01 and .002, or .1, .02 and .004; epochs are not given) stand in the recipes.
Deviation: the base's loss is kept whole; one of the code's two scripts for ADP drops its
    cross-entropies.
Deviation: where the base's phase makes adversarial examples of the ensemble itself, they are
    shared; the code has its own PGD of 20 steps. Where it makes none, iGAT's twin is in the batch
    for the base too: one whose loss knows twins learns them, a round-robin one does not.
Deviation: by default only examples that the ensemble gets wrong are distributed, as in the code,
    for which α was tuned; the paper distributes all (``distribute = "all"``).
Deviation: with ``batch = "half"`` natural rows that the ensemble gets wrong are not distributed;
    the code's script for ADP that mixes its batches gives them to members too.
Deviation: the regulariser sees natural and adversarial rows, as in eq. (16), and is their mean:
    with a twin over 2B rows. Two of the code's scripts apply it to adversarial ones alone and
    divide by B, so that the same β presses each of them down twice as hard.
Deviation: over DVERGE both are given the whole batch; the code gives one half to DVERGE and one to
    the attack on the ensemble, and lets each member see the latter right after its own update.
Deviation: an attack in training mode leaves batch normalisation's running statistics alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor, nn

from phalanx.api import (
    Adversarial,
    ConfigError,
    DefendedModel,
    Defense,
    MeanEnsemble,
    Phase,
    Task,
    log_max,
)
from phalanx_igat.config import FITTING, IGATConfig
from phalanx_igat.regularizer import IGATRegularizer


class MaxEnsemble(DefendedModel):
    """Serves the largest of the members' probabilities of each class; deterministic.

    Its scores are the logarithms of these, so their softmax is what it serves, normalised. Weights
    are named as `MeanEnsemble`'s.

    Args:
        members: N >= 1 networks, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)

    @property
    def members(self) -> Sequence[nn.Module]:
        """The members, in the order in which they were given."""
        return tuple(self.networks)

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """``max_m log softmax(member_m(x))``: images ``(N, C, H, W)`` to ``(N, K)``."""
        return log_max([network(x) for network in self.networks])


class IGAT(Defense[IGATConfig]):
    """Another defense's ensemble, fine-tuned.

    Raises:
        ConfigError: if the base refuses its settings.
    """

    def __init__(self, config: IGATConfig, task: Task) -> None:
        super().__init__(config, task)
        with _of_base("defense.params.base.params"):
            self.base: Defense[Any] = config.base.create(task)

    @property
    def warm_start_reason(self) -> str:
        """What to write where there is nothing to fine-tune; with ``pretrain``, the base's own."""
        if self.config.pretrain:
            return self.base.warm_start_reason
        return (
            "iGAT fine-tunes a trained ensemble: add [init] with from = the folder of a run of"
            f" {self.config.base.use!r}, or set defense.params.pretrain = true"
        )

    def build(self) -> DefendedModel:
        """The base's untrained model, or its members under the maximum.

        Raises:
            ConfigError: if the base's model is no ensemble that serves a mean of its members.
        """
        with _of_base("base.params"):
            model = self.base.build()
        name = self.config.base.use
        if model.stochastic:
            raise ConfigError(
                [
                    f"base.use: {name!r} answers at random, so no adversarial example is wrong for"
                    f" good: take {FITTING}"
                ]
            )
        if not isinstance(model, MeanEnsemble) or len(model.members) < 2:
            raise ConfigError(
                [
                    f"base.use: {name!r} does not serve the mean of two or more members, which"
                    f" iGAT attacks and distributes to: take {FITTING}"
                ]
            )
        return model if self.config.combiner == "average" else MaxEnsemble(model.members)

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """The base's last phase with iGAT's terms; after all of the base's with ``pretrain``."""
        config = self.config
        phases = list(self.base.phases(model))
        last = phases[-1]
        if last.module is not model:
            raise ConfigError(
                [
                    f"defense.params.base.use: the last phase of {config.base.use!r}, "
                    f"{last.name!r}, does not train all members together: take {FITTING}"
                ]
            )
        tuned = self.with_terms(last) if config.alpha > 0 or config.beta > 0 else last
        if not config.pretrain:
            return [replace(tuned, depends_on=())]
        if tuned is last:  # nothing to add: the base, and nothing after it
            return phases
        before = tuple(phase.name for phase in phases)
        return [*phases, replace(tuned, name="igat", depends_on=before)]

    def with_terms(self, phase: Phase) -> Phase:
        """The phase with iGAT's regularizer, and with adversarial examples if it makes none."""
        config = self.config
        transforms = phase.transforms
        if not any(isinstance(transform, Adversarial) for transform in transforms):
            if config.batch == "half" and not phase.accepts_adversarial:
                raise ConfigError(
                    [
                        f"defense.params.batch: phase {phase.name!r} of {config.base.use!r} makes"
                        " its own examples of whole batches, so half of one cannot be replaced:"
                        ' write batch = "twin"'
                    ]
                )
            made = Adversarial(config.attack.create(), config.batch, "train")
            transforms = (*transforms, made)
        rider = IGATRegularizer(config)
        return replace(phase, transforms=transforms, regularizers=(*phase.regularizers, rider))


@contextmanager
def _of_base(place: str) -> Iterator[None]:
    """A refusal by the base names its keys where they stand in iGAT's."""
    try:
        yield
    except ConfigError as error:
        keys = [problem.removeprefix("defense.params.") for problem in error.problems]
        raise ConfigError([f"{place}.{key}" for key in keys]) from error
