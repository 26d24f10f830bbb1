"""The stages of a training: batches, transforms of batches, phases, and what a phase is told.

A defense returns its phases from `Defense.phases`; the trainer (`phalanx.training`) runs them.
All that a phase knows stands in its dataclass fields; all that varies comes in `PhaseContext`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from phalanx.config import OptimizerConfig
from phalanx.regularizer import Regularizer


@dataclass(frozen=True)
class Batch:
    """Images ``(N, C, H, W)`` in [0, 1], labels ``(N,)`` and, where a transform made one, a twin.

    `adv` is the adversarial twin of `x`, row by row.
    """

    x: Tensor
    y: Tensor
    adv: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        twin = None if self.adv is None else self.adv[rows]
        return Batch(self.x[rows], self.y[rows], twin)


class PhaseContext(ABC):
    """Where a phase stands: everything that varies, nothing that is global.

    Attributes:
        phase: the phase that runs.
        epoch: passes over the data so far, from 0.
        index: batch within the epoch, from 0.
        batches: batches in an epoch.
        device: where the tensors are.
    """

    phase: Phase
    epoch: int
    index: int
    batches: int
    device: torch.device

    @property
    def progress(self) -> float:
        """Share of the phase that is done, in [0, 1); 0 where it has no epochs."""
        return (self.epoch * self.batches + self.index) / max(1, self.phase.epochs * self.batches)

    @abstractmethod
    def generator(self, *purpose: str | int) -> Generator:
        """A generator keyed by (run seed, phase, epoch, index, purpose), on the device."""

    @abstractmethod
    def batch(self, stream: str) -> Batch:
        """The same position of another pass over the data, shuffled independently."""

    @abstractmethod
    def minimise(self, loss: Tensor, *groups: str) -> None:
        """One update of the named groups (none named: all): backward, clip, step.

        Gradients are set to None first, so parameters that the loss does not reach stay as they
        are, momentum and weight decay included.
        """


BatchTransform = Callable[[Batch, PhaseContext], Batch]
"""Changes a batch before the step: augmentation, natural perturbation, adversarial examples."""


@dataclass(kw_only=True)
class Phase(ABC):
    """A stage of a training; subclasses are dataclasses.

    Attributes:
        name: unique within the defense; part of every key, so renaming changes all draws.
        module: all that this phase may change, a submodule of the model or the model itself.
        epochs: passes over the data; with 0 it begins and ends, and takes no step.
        batch_size: images a step.
        depends_on: phases whose results must be in the model first.
        optimizer: one is built for each group.
        schedule: progress in [0, 1] to the learning rate's factor; pure, so it has no state.
        transforms: change the batch, in this order.
        regularizers: ride on this phase; the trainer works on deep copies.
        ema: decay of an average of the module's parameters, in [0, 1), that is validated and kept
            in their place; 0: none.
        select: the epoch whose weights are kept: the last, or the best on held-out images; where a
            pruner is among the regularizers always the last.
    """

    accepts_adversarial: ClassVar[bool] = True
    """False where the phase crafts its own examples, so that transforms have no target."""

    name: str
    module: nn.Module
    epochs: int
    batch_size: int = 128
    depends_on: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Callable[[float], float] = lambda progress: 1.0
    transforms: tuple[BatchTransform, ...] = ()
    regularizers: tuple[Regularizer, ...] = ()
    ema: float = 0.0
    select: Literal["last", "best-validation"] = "last"

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group name; one optimizer each."""
        return {"all": [p for p in self.module.parameters() if p.requires_grad]}

    def target(self, ctx: PhaseContext) -> Callable[[Tensor], Tensor]:
        """What transforms attack: images to scores."""
        return self.module

    def progress(self, ctx: PhaseContext) -> float:
        """What `schedule` is asked with; a population's sub-models each have their own."""
        return ctx.progress

    def begin(self, ctx: PhaseContext) -> None:
        """Prepare; idempotent, also run before a resume, whose tensors are loaded over it."""

    def before_epoch(self, ctx: PhaseContext) -> None:
        """Prepare an epoch; idempotent, as `begin`."""

    @abstractmethod
    def step(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """Update the module on one batch; named values for the log."""


@dataclass(kw_only=True)
class JointPhase(Phase):
    """One update a batch: the sum of named terms, the regularizers' among them."""

    @abstractmethod
    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """Weighted terms, each a scalar; their sum is minimised.

        A name that starts with ``log/`` is logged and not minimised.
        """

    def step(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """One update on the sum of the objective's and the regularizers' terms."""
        terms = dict(self.objective(batch, ctx))
        for regularizer in self.regularizers:
            terms.update(regularizer.terms(batch, ctx))
        loss = torch.stack([term for name, term in terms.items() if not is_log(name)]).sum()
        ctx.minimise(loss)
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}


@dataclass(kw_only=True)
class RoundPhase(Phase):
    """Several updates a batch, then one on the regularizers' terms, if there are any."""

    @abstractmethod
    def rounds(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """Update the module by calling `ctx.minimise`; named values for the log."""

    def step(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The rounds, then a joint update on the regularizers' terms."""
        values = {name: value.detach() for name, value in self.rounds(batch, ctx).items()}
        terms: dict[str, Tensor] = {}
        for regularizer in self.regularizers:
            terms.update(regularizer.terms(batch, ctx))
        minimised = [term for name, term in terms.items() if not is_log(name)]
        if minimised:
            ctx.minimise(torch.stack(minimised).sum())
        return {**values, **{name: term.detach() for name, term in terms.items()}}


def is_log(name: str) -> bool:
    """Whether a term of that name is logged only."""
    return name.startswith("log/")
