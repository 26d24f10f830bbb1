"""ADMM on the weights of a phase, whatever loss it minimises.

Ye, Xu, Liu, Cheng, Lambrechts, Zhang, Zhou, Ma, Wang, Lin, "Adversarial Robustness vs Model
Compression, or Both?", ICCV 2019, arXiv 1903.12561; and section 3.3 of Cheng et al., "More or Less
(MoL): Defending against Multiple Perturbation Attacks on Deep Neural Networks through Model
Ensemble and Compression", WACV Workshops 2022, which adds blocks (eq. 9). "Code" is that of the
former. Whatever loss the phase minimises gets ``Σ_l ρ/2 · ‖W_l − Z_l + U_l‖²`` added, where Z_l
lies in the set S_l (`phalanx_admm.projections`) and U_l is the scaled dual variable; at nine
moments of the phase ``Z ← Π_S(W + U)``, then ``U ← U + W − Z``. At the end W itself is projected.
The masked retraining that follows is the core's (`phalanx.api.with_retraining`).

As the code: all convolutions are pruned, the stem and the shortcuts among them; classifiers,
normalisations and biases are not; U keeps its scale where ρ grows. Paper's setting: ρ = 0.001, 200
epochs of 391 steps, Z and U updated every 20 epochs. Short phases keep ρ times steps at that: at
0.001 ten epochs leave most of what is to be pruned where it was.

Deviation: U is detached. The code's keeps a graph to W, so that after k updates the penalty's
    gradient is k + 1 times too large.
Deviation: exactly the asked share is kept, of equal ones the first; the code compares with a
    percentile and leaves ties unpruned and frozen. At least one group of a layer is kept.
Deviation: blocks are ranked by their norm, which is the Euclidean projection; code of the same
    group divides by the root of a block's non-zero entries, which differs at a layer's edge.
Deviation: MoL's size of a block is not known; 4 filters by 4 channels at one kernel position.
Deviation: a pruned filter's own bias, and the scale and shift of the batch normalisation after it,
    are set to zero too; in the code it goes on saying its shift.
Deviation: the learning rate is the phase's; the code's ADMM restarts a stepped one every 20 epochs.
Deviation: not offered: the code's ``column`` and ``bn_filter``, and rows or columns within blocks,
    as other code of the same group has them.
Deviation: the retraining's masks are put on weights (`phalanx.training.masked` says what differs).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from phalanx.api import Batch, ConfigError, PhalanxWarning, PhaseContext, Pruner
from phalanx_admm.config import ADMMConfig, IrregularConfig
from phalanx_admm.layers import fits, listed, prunable

PULL = 1e-3 * 200 * 391
"""The paper's ρ times its optimizer steps."""
UPDATES = 9
"""The paper's updates of Z and U in a phase."""
FAR = 0.1
"""``‖W − Z‖ / ‖W‖`` above which the final projection, not the training, made the zeros."""

ConfigT = TypeVar("ConfigT", bound=ADMMConfig)


def penalty(weight: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """``‖W − Z + U‖² / 2``, a scalar; a sum of squares, whose gradient is defined at 0 as well."""
    return (weight - z + u).square().sum() / 2


def updates_by(step: int, *, steps: int, updates: int) -> int:
    """How many of `updates` moments, evenly spaced within `steps` steps, are not after `step`.

    >>> [updates_by(step, steps=200, updates=9) for step in (0, 19, 20, 180, 199)]
    [0, 0, 1, 9, 9]
    """
    return (updates + 1) * step // steps


class ADMM(Pruner[ConfigT]):
    """What the three pruners share; they differ in `project`.

    Its buffers are Z and U of each layer that the phase trains. `log/admm/gap` is
    ``‖W − Z‖ / ‖W‖`` over all of them.

    Attributes:
        pruned_layers: those layers by their names in the phase's module, from `begin` on.
    """

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self.pruned_layers: dict[str, nn.Module] = {}

    # ------------------------------------------------------------ which layers

    def layers(self, module: nn.Module) -> dict[str, nn.Module]:
        """Convolutions and, if asked for, members' classifiers, without those to be skipped."""
        found = prunable(module, heads=self._includes_heads)
        return {name: part for name, part in found.items() if not fits(name, self.config.skip)}

    @property
    def _includes_heads(self) -> bool:
        return isinstance(self.config, IrregularConfig) and self.config.include_heads

    def check(self, model: nn.Module) -> None:
        """Refuse a model with nothing to prune, and patterns that fit none of its layers."""
        known = prunable(model, heads=self._includes_heads)
        if known:
            problems = [
                f"pruner.params.{key}: {pattern!r} fits no layer; the layers are {listed(known)}"
                for key, patterns in (("rates", self.config.rates), ("skip", self.config.skip))
                for pattern in patterns
                if not any(fits(name, (pattern,)) for name in known)
            ]
            if problems:
                raise ConfigError(problems)
        super().check(model)

    def rate(self, name: str) -> float:
        """The rate of a layer."""
        fitting = [rate for key, rate in self.config.rates.items() if fits(name, (key,))]
        return fitting[-1] if fitting else self.config.rate

    # ------------------------------------------------------------ ADMM

    def begin(self, ctx: PhaseContext) -> None:
        """Z ← Π_S(W) and U ← 0 for the layers that the phase trains."""
        own = trained(ctx)
        found = self.layers(ctx.phase.module).items()
        self.pruned_layers = {name: layer for name, layer in found if id(weight_of(layer)) in own}
        for name, layer in self.pruned_layers.items():
            weight = weight_of(layer).detach()
            self.register_buffer(_key("Z", name), self.project(name, weight))
            self.register_buffer(_key("U", name), torch.zeros_like(weight))

    def terms(self, batch: Batch, ctx: PhaseContext) -> dict[str, Tensor]:
        """The penalty as ``admm/penalty``; Z and U are updated before it where that is due."""
        if not self.pruned_layers:
            return {}
        done = self.updates_done(ctx)
        if done > self.updates_done(ctx, ago=1):
            self._update()
        pulls = [penalty(*self._variables(name)) for name in self._in_turn(ctx)]
        rho = self.rho(ctx) * self.config.rho_growth**done
        with torch.no_grad():
            gap = self._gap(self.pruned_layers)
        return {"admm/penalty": rho * torch.stack(pulls).sum(), "log/admm/gap": gap}

    def end(self, ctx: PhaseContext) -> None:
        """W ← Π_S(W); warn where that, and not the training, made the zeros."""
        with torch.no_grad():
            if ctx.phase.epochs and self.pruned_layers:
                self._tell(ctx)
            for name, layer in self.pruned_layers.items():
                weight = weight_of(layer)
                weight.copy_(self.project(name, weight))

    def updates_done(self, ctx: PhaseContext, *, ago: int = 0) -> int:
        """How many updates of Z and U were due up to this step of the phase, or `ago` before it."""
        step = ctx.epoch * ctx.batches + ctx.index - ago
        every = self.config.update_every
        if step < 0:
            return 0
        if every is not None:
            return step // (every * ctx.batches)
        return updates_by(step, steps=_steps(ctx), updates=self.config.updates or UPDATES)

    def rho(self, ctx: PhaseContext) -> float:
        """ρ as the phase begins."""
        return PULL / _steps(ctx) if self.config.rho is None else self.config.rho

    @torch.no_grad()
    def _update(self) -> None:
        for name in self.pruned_layers:
            weight, z, u = self._variables(name)
            z.copy_(self.project(name, weight + u))
            u += weight - z

    def _variables(self, name: str) -> tuple[nn.Parameter, Tensor, Tensor]:
        """W, Z and U of a layer."""
        z, u = (self.get_buffer(_key(kind, name)) for kind in "ZU")
        return weight_of(self.pruned_layers[name]), z, u

    def _in_turn(self, ctx: PhaseContext) -> Sequence[str]:
        """The layers of the phase's target, the sub-model of a population whose turn it is.

        Others get no gradient from the loss, so none from the penalty either: an optimizer leaves
        alone what has none. Where the target holds no layer, all are meant.
        """
        target = ctx.phase.target(ctx) if ctx.phase.accepts_adversarial else None
        if target is ctx.phase.module or not isinstance(target, nn.Module):
            return tuple(self.pruned_layers)
        held = {id(p) for p in target.parameters()}
        found = [name for name, layer in self.pruned_layers.items() if id(weight_of(layer)) in held]
        return found or tuple(self.pruned_layers)

    def _gap(self, names: Iterable[str]) -> Tensor:
        """``‖W − Z‖ / ‖W‖`` over some layers; 0 where W is."""
        found = [self._variables(name)[:2] for name in names]
        away = torch.stack([(weight - z).square().sum() for weight, z in found]).sum()
        whole = torch.stack([weight.square().sum() for weight, _ in found]).sum()
        return (away / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt()

    def _tell(self, ctx: PhaseContext) -> None:
        gap = float(self._gap(self.pruned_layers))
        if gap <= FAR:
            return
        gaps = {name: float(self._gap([name])) for name in self.pruned_layers}
        worst = max(gaps, key=lambda name: gaps[name])
        warnings.warn(
            f"phase {ctx.phase.name!r}: ADMM ends with weights that are {gap:.2f} of their norm "
            f"away from pruned ones (more than {FAR:g}; most in {worst}, {gaps[worst]:.2f}), so "
            "cutting them off makes the zeros and the training does not: train more epochs, or "
            f"set a larger pruner.params.rho than {self.rho(ctx):.2g}",
            PhalanxWarning,
            stacklevel=2,
        )


def trained(ctx: PhaseContext) -> set[int]:
    """Ids of what the phase's optimizers move."""
    return {id(p) for group in ctx.phase.groups().values() for p in group}


def weight_of(layer: nn.Module) -> nn.Parameter:
    """A layer's weight ``(O, I, …)``."""
    return layer.get_parameter("weight")


def _steps(ctx: PhaseContext) -> int:
    return ctx.phase.epochs * ctx.batches


def _key(kind: str, name: str) -> str:
    """The buffer of a layer; a dot would not be allowed."""
    return f"{kind}/{name.replace('.', '/')}"
