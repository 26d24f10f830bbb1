"""What a phase's weights are worth on images that they are not trained on.

A phase whose module is a classifier of its own (one member of a population, say) is judged by that
module, any other by the whole model. A model of several equally likely functions is judged by
their mean accuracy. Robust accuracy is measured with the attack that the phase trains on, each
function under its own examples; the draws are the same after every epoch, so that epochs compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack, attacking
from phalanx.data.sets import Split
from phalanx.defense import DefendedModel
from phalanx.nn.member import Member
from phalanx.phase import Phase
from phalanx.training.transforms import Adversarial

CLEAN, ROBUST = "validation_accuracy", "validation_robust_accuracy"
"""What they are called in metrics.jsonl."""

_IMAGES = 500
_VALUES = 2**22
"""Pixel values in a batch: 27 photos of 3 x 224 x 224."""


def validate(phase: Phase, model: DefendedModel, split: Split, *, seed: int) -> dict[str, float]:
    """Accuracy on held-out images, in [0, 1]; robust accuracy too where the phase selects by it.

    Args:
        phase: that trains; its adversarial transform, if it has one, says with which attack.
        model: that it trains, or trains a part of.
        split: the held-out images, at least one.
        seed: of the run; keys the attack's draws.
    """
    parts = functions(judged(phase, model), randomness.key(seed, phase.name, "validation"))
    attack = attack_of(phase) if phase.select == "best-validation" else None
    device = next(model.parameters()).device
    right = {CLEAN: 0, **({} if attack is None else {ROBUST: 0})}
    size = min(_IMAGES, max(16, _VALUES // math.prod(split.shape)))
    rows = (slice(at, min(at + size, len(split))) for at in range(0, len(split), size))
    with attacking(model), closing(split.stream(rows)) as batches:
        for place, batch in enumerate(batches):
            x, y = batch.x.to(device), batch.y.to(device)
            for number, part in enumerate(parts):
                right[CLEAN] += _right(part, x, y)
                if attack is None:
                    continue
                draws = randomness.generator(
                    seed, phase.name, "validation", number, place, device=device
                )
                examples = attack(part, x, y, generator=draws).detach()
                right[ROBUST] += _right(part, examples, y)
    return {name: count / (len(split) * len(parts)) for name, count in right.items()}


def judged(phase: Phase, model: DefendedModel) -> nn.Module:
    """The phase's module if it is a classifier of its own, else the model."""
    return phase.module if isinstance(phase.module, Member | DefendedModel) else model


def functions(classifier: nn.Module, seed: int) -> Sequence[nn.Module]:
    """Its equally likely functions; where they are many or one, it alone on a stream of `seed`."""
    if isinstance(classifier, DefendedModel):
        return tuple(classifier.support()) or (classifier.serve(seed),)
    return (classifier,)


def attack_of(phase: Phase) -> Attack[Any] | None:
    """The attack of the phase's adversarial transform, if it has one."""
    return next((one.attack for one in phase.transforms if isinstance(one, Adversarial)), None)


@torch.no_grad()
def _right(classifier: nn.Module, x: Tensor, y: Tensor) -> int:
    return int((classifier(x).argmax(1) == y).sum())
