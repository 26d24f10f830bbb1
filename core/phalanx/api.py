"""All that a plugin may import from Phalanx; torch-free to import.

Names resolve on first use, so a thin plugin module that only needs `ComponentSpec` and
`hookimpl` costs milliseconds. `API_VERSION` is (major, minor): minor adds, major removes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phalanx.attack import Attack, Observer, Scores, Targeted, attacking, may_drop_rows
    from phalanx.attacks.ascent import ascend, expectation, input_gradient
    from phalanx.combine import log_max, log_mean
    from phalanx.config import (
        AdversarialConfig,
        AttackConfig,
        Backbone,
        DefenseConfig,
        Normalization,
        OptimizerConfig,
        PerturbationConfig,
        PrunerConfig,
        ScheduleConfig,
        UseAttack,
        UseDefense,
        UsePerturbation,
        UsePruner,
    )
    from phalanx.defense import DefendedModel, Defense, View
    from phalanx.errors import PhalanxError, PhalanxWarning
    from phalanx.hookspecs import hookimpl
    from phalanx.nn.capture import capture
    from phalanx.nn.ensemble import MeanEnsemble, Population
    from phalanx.nn.member import Member, build_member
    from phalanx.perturbation import Perturbation
    from phalanx.phase import Batch, BatchTransform, JointPhase, Phase, PhaseContext, RoundPhase
    from phalanx.pruner import Pruner
    from phalanx.randomness import generator
    from phalanx.regularizer import Regularizer
    from phalanx.specs import (
        L1,
        L2,
        AnyThreat,
        ComponentSpec,
        Epsilon,
        Kind,
        Linf,
        NoBall,
        Paper,
        Spec,
        Task,
        Threat,
        Traits,
        Union,
    )
    from phalanx.training.phases import CrossEntropyPhase
    from phalanx.training.transforms import Adversarial, Augment, Natural

API_VERSION = (1, 0)

_HOME = {
    "phalanx.attack": "Attack Observer Scores Targeted attacking may_drop_rows",
    "phalanx.attacks.ascent": "ascend expectation input_gradient",
    "phalanx.combine": "log_max log_mean",
    "phalanx.config": "AdversarialConfig AttackConfig Backbone DefenseConfig Normalization "
    "OptimizerConfig PerturbationConfig PrunerConfig ScheduleConfig UseAttack UseDefense "
    "UsePerturbation UsePruner",
    "phalanx.defense": "DefendedModel Defense View",
    "phalanx.errors": "PhalanxError PhalanxWarning",
    "phalanx.hookspecs": "hookimpl",
    "phalanx.nn.capture": "capture",
    "phalanx.nn.ensemble": "MeanEnsemble Population",
    "phalanx.nn.member": "Member build_member",
    "phalanx.perturbation": "Perturbation",
    "phalanx.phase": "Batch BatchTransform JointPhase Phase PhaseContext RoundPhase",
    "phalanx.pruner": "Pruner",
    "phalanx.randomness": "generator",
    "phalanx.regularizer": "Regularizer",
    "phalanx.specs": "L1 L2 AnyThreat ComponentSpec Epsilon Kind Linf NoBall Paper Spec Task "
    "Threat Traits Union",
    "phalanx.training.phases": "CrossEntropyPhase",
    "phalanx.training.transforms": "Adversarial Augment Natural",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [  # noqa: PLE0604  # built from the table above, so that each name stands once
    "API_VERSION",
    *_MODULE_OF,
]


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module 'phalanx.api' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
