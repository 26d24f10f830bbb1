"""From a defense's phases and a run file to the phases that are trained, checked as a whole."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from phalanx.config import PhaseOverrides, TrainingConfig
from phalanx.errors import ConfigError, TrainingError
from phalanx.phase import BatchTransform, Phase
from phalanx.pruner import Pruner
from phalanx.training.transforms import Adversarial, Augment, Natural


def planned(
    phases: Sequence[Phase],
    training: TrainingConfig,
    model: nn.Module,
    *,
    held_out: int | None = None,
) -> list[Phase]:
    """The phases with the run file's overrides, in an order that their dependencies allow.

    Of a phase that a `Pruner` rides on the last epoch is kept, whatever `select` says.

    Args:
        phases: the defense's own.
        training: the run file's overrides.
        model: what they train.
        held_out: images for validation; absent: not known, so not asked for.

    Raises:
        ConfigError: if a pattern fits no phase, no phase can take the adversarial examples, or
            there are no images to select an epoch by.
        TrainingError: if the defense's phases contradict each other.
    """
    names = [phase.name for phase in phases]
    problems = [
        f"training.phases.{pattern!r}: fits no phase; the phases are {', '.join(names)}"
        for pattern in training.phases
        if not fnmatch.filter(names, pattern)
    ]
    if training.adversarial and not any(phase.accepts_adversarial for phase in phases):
        problems.append(
            "training.adversarial: every phase of this defense crafts its own examples; leave it "
            "out and set the attack in defense.params"
        )
    for pattern, part in training.phases.items():
        meant = [phase for phase in phases if fnmatch.fnmatch(phase.name, pattern)]
        if part.adversarial and meant and not any(phase.accepts_adversarial for phase in meant):
            problems.append(
                f"training.phases.{pattern!r}.adversarial: "
                f"{', '.join(phase.name for phase in meant)} crafts its own examples; leave it out "
                "and set the attack in defense.params"
            )
    result = [_overridden(phase, training) for phase in phases]
    selecting = [phase.name for phase in result if phase.select == "best-validation"]
    if selecting and held_out == 0:
        problems.append(
            f"training.select: the best epoch of {', '.join(selecting)} is chosen on held-out "
            "images, and there are none; set data.validation to their share of the training set, "
            "such as 0.1"
        )
    if problems:
        raise ConfigError(problems, source="run file")
    _check(result, model)
    return result


def _overridden(phase: Phase, training: TrainingConfig) -> Phase:
    for overrides in (
        training,
        *(
            part
            for pattern, part in training.phases.items()
            if fnmatch.fnmatch(phase.name, pattern)
        ),
    ):
        phase = _apply(phase, overrides)
    if any(isinstance(one, Pruner) for one in phase.regularizers):
        phase = replace(phase, select="last")  # an earlier epoch is not pulled as far, but cut off
    return phase


def _apply(phase: Phase, overrides: PhaseOverrides) -> Phase:
    changes: dict[str, Any] = {
        key: value
        for key in ("batch_size", "epochs", "optimizer", "ema", "select")
        if (value := getattr(overrides, key)) is not None
    }
    if overrides.schedule is not None:
        changes["schedule"] = overrides.schedule.build()
    transforms = phase.transforms
    if overrides.augment is not None:
        kept = tuple(t for t in transforms if not isinstance(t, Augment))
        transforms = (Augment(overrides.augment), *kept) if overrides.augment else kept
    if overrides.perturbation is not None:
        transforms = _perturbed(transforms, Natural(overrides.perturbation.create()))
    if overrides.adversarial is not None and phase.accepts_adversarial:
        config = overrides.adversarial
        crafted = Adversarial(config.attack.create(), config.mode, config.batchnorm)
        transforms = _replaced(transforms, crafted)
    return replace(phase, **changes, transforms=transforms)


def _replaced(
    transforms: tuple[BatchTransform, ...], crafted: Adversarial
) -> tuple[BatchTransform, ...]:
    """`crafted` in the place of the phase's own adversarial transform, or at the end."""
    if any(isinstance(t, Adversarial) for t in transforms):
        return tuple(crafted if isinstance(t, Adversarial) else t for t in transforms)
    return (*transforms, crafted)


def _perturbed(
    transforms: tuple[BatchTransform, ...], natural: Natural
) -> tuple[BatchTransform, ...]:
    """`natural` instead of the phase's own, before adversarial examples, else at the end."""
    kept = [t for t in transforms if not isinstance(t, Natural)]
    places = [place for place, t in enumerate(kept) if isinstance(t, Adversarial)]
    kept.insert(min(places, default=len(kept)), natural)
    return tuple(kept)


def prefix(module: nn.Module, model: nn.Module) -> str:
    """The name of `module` within `model`, with its dot; '' for the model itself.

    Raises:
        TrainingError: if it is no part of the model.
    """
    for name, part in model.named_modules():
        if part is module:
            return f"{name}." if name else ""
    raise TrainingError(f"a phase trains a {type(module).__name__} that is no part of the model")


def _check(phases: Sequence[Phase], model: nn.Module) -> None:
    """Names are unique, dependencies come first, and independent phases share no state."""
    done: dict[str, set[str]] = {}
    owned: dict[str, set[int]] = {}
    for phase in phases:
        if phase.name in done:
            raise TrainingError(f"two phases are named {phase.name!r}")
        late = [name for name in phase.depends_on if name not in done]
        if late:
            raise TrainingError(
                f"phase {phase.name!r} depends on {', '.join(late)}, not among the phases before it"
            )
        prefix(phase.module, model)
        before = set(phase.depends_on).union(*(done[name] for name in phase.depends_on))
        mine = {id(t) for t in (*phase.module.parameters(), *phase.module.buffers())}
        for other, theirs in owned.items():
            if other not in before and mine & theirs:
                raise TrainingError(
                    f"phases {other!r} and {phase.name!r} change the same weights but do not "
                    "depend on each other; add one to the other's depends_on"
                )
        done[phase.name], owned[phase.name] = before, mine
