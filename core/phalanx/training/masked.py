"""The retraining that follows a pruner: what is zero stays zero.

Between phases only the model's state travels, so what was pruned is read off the weights: the mask
is ``weight != 0`` when the phase begins.

Deviation: the code of ADMM pruning (Ye et al., ICCV 2019) puts the mask on gradients, before each
update; here it is put on weights, after it. That is the same without `clip_grad`, whose norm counts
the gradients of pruned weights too, and keeps zeros through momentum and weight decay of any kind.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.errors import ConfigError
from phalanx.nn.units import filter_parameters
from phalanx.phase import Phase, PhaseContext
from phalanx.pruner import Pruner, convolutions
from phalanx.regularizer import Regularizer

Layers = Callable[[nn.Module], Mapping[str, nn.Module]]
"""The layers of a module whose weights may be pruned, by name: `Pruner.layers`."""


class Masked(Regularizer):
    """Keeps pruned weights at zero, whatever momentum and weight decay do, after every update.

    A filter that is zero altogether has its bias, and the scale and shift of the batch
    normalisation after it, kept as well where the pruner left them at zero: they alone would let
    it answer again.

    Args:
        layers: whose weights are kept at zero where they are zero; a pruner's own `layers`.
    """

    def __init__(self, layers: Layers = convolutions) -> None:
        super().__init__()
        self._layers = layers
        self._held: list[tuple[Tensor, str]] = []

    def begin(self, ctx: PhaseContext) -> None:
        """Read the masks off the weights that this phase trains."""
        module = ctx.phase.module
        besides = filter_parameters(module, ctx.batch("masked").x[:1])
        trained = {id(p) for group in ctx.phase.groups().values() for p in group}
        self._held = []
        for layer in self._layers(module).values():
            weight = layer.get_parameter("weight")
            pruned = weight.detach() == 0
            silent = pruned.flatten(1).all(1)
            for tensor in (weight, *besides.get(layer, ())):
                if id(tensor) in trained:
                    self._hold(tensor, pruned if tensor is weight else silent & (tensor == 0))

    def _hold(self, tensor: Tensor, pruned: Tensor) -> None:
        name = f"pruned_{len(self._held)}"
        self.register_buffer(name, pruned)
        self._held.append((tensor, name))

    @torch.no_grad()
    def after_step(self, ctx: PhaseContext) -> None:
        """Put pruned weights back to zero."""
        for tensor, name in self._held:
            tensor.masked_fill_(self.get_buffer(name), 0.0)


def with_retraining(
    phases: Sequence[Phase], pruner: Pruner[Any], *, chosen: str = "*"
) -> list[Phase]:
    """The phases, the chosen ones pruned and each followed by a masked ``<name>/retrain``.

    The pruner is the last of a chosen phase's regularizers. Its retraining is the same phase with
    a fresh optimizer and `Masked` in the pruner's place. Phases that depend on a chosen one come
    after its retraining. A later phase that is not chosen but trains pruned weights keeps them at
    zero. A chosen phase without layers that the pruner would prune stays as it is.

    Args:
        phases: of a defense, in order.
        pruner: the trainer works on a copy for each phase.
        chosen: a pattern (fnmatch) for the names of phases.

    Raises:
        ConfigError: if the pattern fits no phase, or none that has something to prune, or one that
            is pruned or retrained already.
    """
    names = [phase.name for phase in phases]
    fitting = [phase for phase in phases if fnmatch.fnmatch(phase.name, chosen)]
    if not fitting:
        raise ConfigError([f"phases: {chosen!r} fits no phase; the phases are {', '.join(names)}"])
    twice = [phase.name for phase in fitting if _is_pruned(phase)]
    if twice:
        raise ConfigError(
            [
                f"phases: {', '.join(twice)} has a pruner of its own: drop one of the two pruners, "
                "the defense's own or this one"
            ]
        )
    pruned = {phase.name for phase in fitting if pruner.layers(phase.module)}
    if not pruned:
        raise ConfigError(
            [
                f"phases: {', '.join(phase.name for phase in fitting)} has no layer that the "
                f"pruner would prune; the phases are {', '.join(names)}"
            ]
        )
    result: list[Phase] = []
    touched: set[int] = set()
    for phase in phases:
        after = tuple(_retrain(name) if name in pruned else name for name in phase.depends_on)
        phase = replace(phase, depends_on=after)
        own = {id(layer.get_parameter("weight")) for layer in pruner.layers(phase.module).values()}
        masked = (*phase.regularizers, Masked(pruner.layers))
        if phase.name in pruned:
            touched |= own
            result.append(replace(phase, regularizers=(*phase.regularizers, pruner)))
            name = _retrain(phase.name)
            result.append(replace(phase, name=name, depends_on=(phase.name,), regularizers=masked))
        else:
            result.append(replace(phase, regularizers=masked) if own & touched else phase)
    return result


def _is_pruned(phase: Phase) -> bool:
    """Whether a pruner rides on it, or it keeps zeros already."""
    return any(isinstance(one, Pruner | Masked) for one in phase.regularizers)


def _retrain(name: str) -> str:
    return f"{name}/retrain"
