"""ULM and CLM: populations of sub-models of which one, chosen at random, answers each query.

Jasser & Garibay, "Resilience from Diversity: Population-based approach to harden models against
adversarial attacks", arXiv 2111.10272. Implements Alg. 1 and the training of section 4; the
equations are in `linking`, the paper's measures in `metrics`. The authors' code is not public.

Training: ULM trains n sub-models independently (phases ``ulm/1`` … ``ulm/n``). CLM retrains them
together (phase ``clm``): each sub-model does an epoch in turn, and its first weight layer W¹ is
pushed away from that of a random other one every 10 steps. The -Adv forms are the same with
adversarial training of the run file (``[training].adversarial``); the attacked function is the
sub-model in training.

Choices where the paper says nothing:
    * ULM: Adam 1e-3, batch 128, 20 epochs. The retraining: Adam, constant learning rate 1e-4 (the
      rate is the paper's, the optimizer is not); fresh optimizers.
    * PRSE comes before the training step. With adversarial training, that batch's examples were
      crafted just before the push.
    * ℓ is drawn after the members, in both variants, so a seed gives one ULM for both.
    * The schedule is asked with each sub-model's own progress.

Deviation: PRSE counts mini-batches of the sub-model in training (`linking` says why: Alg. 1 as
printed never calls it).
Deviation: with a backbone other than the paper's, W¹ is the first convolution or linear layer in
the order of its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.api import (
    Batch,
    CrossEntropyPhase,
    DefendedModel,
    Defense,
    JointPhase,
    OptimizerConfig,
    Phase,
    PhaseContext,
    Population,
    build_member,
)
from phalanx_clm.config import CLMConfig
from phalanx_clm.linking import PRSEUnit, is_prse_due, link_mask, other_weight, prse

BATCH_SIZE = 128
ULM_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-3)
RETRAIN_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-4)


class CounterLinked(Population):
    """A population that carries its mask ℓ, so that it is saved and resumed with the weights.

    Attributes:
        link_mask: ℓ, booleans ``(1, C, k, k)``, shared by all sub-models and filters.
    """

    link_mask: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        link_mask: Tensor,
        *,
        granularity: Literal["sample", "batch"] = "sample",
    ) -> None:
        super().__init__(members, granularity=granularity)
        self.register_buffer("link_mask", link_mask)


def first_weight(member: nn.Module) -> nn.Parameter:
    """W¹: the weight of the first convolution or linear layer, in the order of the modules.

    Raises:
        ValueError: if the sub-model has no such layer.
    """
    body = getattr(member, "backbone", member)
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(module.weight, nn.Parameter):
            return module.weight
    raise ValueError(
        f"CLM links the first Conv2d or Linear layer, and backbone {type(body).__name__} has "
        "none: choose another backbone"
    )


@dataclass(kw_only=True)
class CounterLinkedPhase(JointPhase):
    """Alg. 1: epoch e trains sub-model ``e mod n``, examined before every `prse_period`-th step.

    Attributes:
        alpha: α of eq. (5).
        delta: δ of eq. (4).
        prse_period: steps between two PRSE.
        prse_unit: what a step is; see `linking.is_prse_due`.
    """

    module: CounterLinked
    alpha: float
    delta: float
    prse_period: int = 10
    prse_unit: PRSEUnit = "batch"

    def turn(self, ctx: PhaseContext) -> int:
        """Index from 0 of the sub-model that this epoch trains."""
        return ctx.epoch % len(self.module.members)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One group a sub-model, ``member/1`` …, each with an optimizer of its own."""
        return {
            f"member/{number}": [p for p in member.parameters() if p.requires_grad]
            for number, member in enumerate(self.module.members, start=1)
        }

    def target(self, ctx: PhaseContext) -> Callable[[Tensor], Tensor]:
        """The sub-model in training."""
        return self.module.members[self.turn(ctx)]

    def progress(self, ctx: PhaseContext) -> float:
        """Share of its own epochs that the sub-model in training has done, in [0, 1)."""
        n = len(self.module.members)
        its_epochs = -((self.turn(ctx) - self.epochs) // n)  # ceil: the first may get one more
        return (ctx.epoch // n * ctx.batches + ctx.index) / (its_epochs * ctx.batches)

    def objective(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """PRSE where it is due, then the sub-model's cross-entropy (mean of both with a twin).

        ``log/max_weight`` is the largest |W¹|, ``log/linked`` the share of W¹ that PRSE moved at
        this step (0 where none was due).
        """
        linked = self.examine(ctx)
        member = self.module.members[self.turn(ctx)]
        loss = F.cross_entropy(member(batch.x), batch.y)
        if batch.adv is not None:
            loss = (loss + F.cross_entropy(member(batch.adv), batch.y)) / 2
        max_weight = first_weight(member).detach().abs().amax()
        return {"cross_entropy": loss, "log/max_weight": max_weight, "log/linked": linked}

    @torch.no_grad()
    def examine(self, ctx: PhaseContext) -> Tensor:
        """PRSE(m_i, m_j) in place on W¹ of the sub-model in training, if this batch is due.

        Returns:
            The share of W¹ that was moved, a scalar in [0, 1].
        """
        weights = [first_weight(member) for member in self.module.members]
        i = self.turn(ctx)
        w_i = weights[i]
        if not is_prse_due(ctx.epoch, ctx.index, period=self.prse_period, unit=self.prse_unit):
            return w_i.new_zeros(())
        w_j = other_weight(weights, i, ctx.generator("partner"))
        pushed = prse(
            w_i, w_j, self.module.link_mask, alpha=self.alpha, delta=self.delta, index=i
        )  # eq. (5)
        linked = (pushed != w_i).to(w_i.dtype).mean()
        w_i.copy_(pushed)  # in place: the optimizer holds this tensor
        return linked


class CLM(Defense[CLMConfig]):
    """A population of counter-linked sub-models, or of unlinked ones (``variant = "ulm"``)."""

    def build(self) -> CounterLinked:
        """The n sub-models, each with its own draw of the initial weights, and the mask ℓ."""
        config = self.config
        members = [
            build_member(config.backbone, self.task, normalization=config.normalization)
            for _ in range(config.members)
        ]
        seed = int(torch.randint(2**31 - 1, ()))
        mask = link_mask(first_weight(members[0]).shape, torch.Generator().manual_seed(seed))
        return CounterLinked(members, mask, granularity=config.granularity)

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """``ulm/1`` … ``ulm/n``, then for variant "clm" the phase ``clm``."""
        if not isinstance(model, CounterLinked):
            raise TypeError(f"CLM trains what its build() returns, found {type(model).__name__}")
        config = self.config
        phases: list[Phase] = [
            CrossEntropyPhase(
                name=f"ulm/{number}",
                module=member,
                epochs=config.ulm_epochs,
                batch_size=BATCH_SIZE,
                optimizer=ULM_OPTIMIZER,
            )
            for number, member in enumerate(model.members, start=1)
        ]
        if config.variant == "clm":
            phases.append(
                CounterLinkedPhase(
                    name="clm",
                    module=model,
                    epochs=config.members * config.retrain_epochs,
                    batch_size=BATCH_SIZE,
                    depends_on=tuple(phase.name for phase in phases),
                    optimizer=RETRAIN_OPTIMIZER,
                    alpha=config.alpha,
                    delta=config.delta,
                    prse_period=config.prse_period,
                    prse_unit=config.prse_unit,
                )
            )
        return phases
