"""All that a plugin may import from Phalanx; torch-free to import.

Names resolve on first use, so a thin plugin module that only needs `ComponentSpec` and
`hookimpl` costs milliseconds. `API_VERSION` is (major, minor): minor adds, major removes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` says that the name is offered on: mypy does not read the table below
    from phalanx.attack import (
        Attack as Attack,
        Observer as Observer,
        Scores as Scores,
        Targeted as Targeted,
        attacking as attacking,
        may_drop_rows as may_drop_rows,
    )
    from phalanx.attacks.ascent import (
        Deciding as Deciding,
        ascend as ascend,
        expectation as expectation,
        input_gradient as input_gradient,
    )
    from phalanx.attacks.balls import (
        norm as norm,
        per_row as per_row,
        project as project,
        random_start as random_start,
        steepest as steepest,
    )
    from phalanx.attacks.crafting import (
        craft as craft,
    )
    from phalanx.attacks.losses import (
        Goal as Goal,
        goal_of as goal_of,
        margin as margin,
    )
    from phalanx.combine import (
        log_max as log_max,
        log_mean as log_mean,
    )
    from phalanx.config import (
        AdversarialConfig as AdversarialConfig,
        AttackConfig as AttackConfig,
        Backbone as Backbone,
        DefenseConfig as DefenseConfig,
        Normalization as Normalization,
        OptimizerConfig as OptimizerConfig,
        PerturbationConfig as PerturbationConfig,
        PerturbationType as PerturbationType,
        PrunerConfig as PrunerConfig,
        ScheduleConfig as ScheduleConfig,
        UseAttack as UseAttack,
        UseDefense as UseDefense,
        UsePerturbation as UsePerturbation,
        UsePruner as UsePruner,
    )
    from phalanx.defense import (
        Combined as Combined,
        DefendedModel as DefendedModel,
        Defense as Defense,
        View as View,
    )
    from phalanx.errors import (
        AttackInapplicable as AttackInapplicable,
        ConfigError as ConfigError,
        PhalanxError as PhalanxError,
        PhalanxWarning as PhalanxWarning,
        ThreatModelError as ThreatModelError,
    )
    from phalanx.evaluation.diversity.measures import (
        interrater_agreement as interrater_agreement,
    )
    from phalanx.evaluation.findings import (
        Check as Check,
    )
    from phalanx.hookspecs import (
        hookimpl as hookimpl,
    )
    from phalanx.nn.capture import (
        capture as capture,
    )
    from phalanx.nn.ensemble import (
        MeanEnsemble as MeanEnsemble,
        Population as Population,
    )
    from phalanx.nn.member import (
        Member as Member,
        build_member as build_member,
    )
    from phalanx.nn.units import (
        filter_parameters as filter_parameters,
        unit_leaders as unit_leaders,
    )
    from phalanx.perturbation import (
        Perturbation as Perturbation,
    )
    from phalanx.phase import (
        Batch as Batch,
        BatchTransform as BatchTransform,
        JointPhase as JointPhase,
        Phase as Phase,
        PhaseContext as PhaseContext,
        RoundPhase as RoundPhase,
    )
    from phalanx.pruner import (
        Pruner as Pruner,
        convolutions as convolutions,
    )
    from phalanx.randomness import (
        generator as generator,
    )
    from phalanx.regularizer import (
        Regularizer as Regularizer,
    )
    from phalanx.specs import (
        L1 as L1,
        L2 as L2,
        AnyThreat as AnyThreat,
        ComponentSpec as ComponentSpec,
        Epsilon as Epsilon,
        Kind as Kind,
        Linf as Linf,
        NoBall as NoBall,
        Paper as Paper,
        Spec as Spec,
        Task as Task,
        Threat as Threat,
        Traits as Traits,
        Union as Union,
    )
    from phalanx.training.masked import (
        Masked as Masked,
        with_retraining as with_retraining,
    )
    from phalanx.training.perturbing import (
        Perturbing as Perturbing,
    )
    from phalanx.training.phases import (
        CrossEntropyPhase as CrossEntropyPhase,
    )
    from phalanx.training.transforms import (
        Adversarial as Adversarial,
        Augment as Augment,
        Natural as Natural,
    )

API_VERSION = (1, 2)

_HOME = {
    "phalanx.attack": "Attack Observer Scores Targeted attacking may_drop_rows",
    "phalanx.attacks.ascent": "Deciding ascend expectation input_gradient",
    "phalanx.attacks.balls": "norm per_row project random_start steepest",
    "phalanx.attacks.crafting": "craft",
    "phalanx.attacks.losses": "Goal goal_of margin",
    "phalanx.combine": "log_max log_mean",
    "phalanx.config": "AdversarialConfig AttackConfig Backbone DefenseConfig Normalization "
    "OptimizerConfig PerturbationConfig PerturbationType PrunerConfig ScheduleConfig UseAttack "
    "UseDefense UsePerturbation UsePruner",
    "phalanx.defense": "Combined DefendedModel Defense View",
    "phalanx.errors": "AttackInapplicable ConfigError PhalanxError PhalanxWarning ThreatModelError",
    "phalanx.evaluation.diversity.measures": "interrater_agreement",
    "phalanx.evaluation.findings": "Check",
    "phalanx.hookspecs": "hookimpl",
    "phalanx.nn.capture": "capture",
    "phalanx.nn.ensemble": "MeanEnsemble Population",
    "phalanx.nn.member": "Member build_member",
    "phalanx.nn.units": "filter_parameters unit_leaders",
    "phalanx.perturbation": "Perturbation",
    "phalanx.phase": "Batch BatchTransform JointPhase Phase PhaseContext RoundPhase",
    "phalanx.pruner": "Pruner convolutions",
    "phalanx.randomness": "generator",
    "phalanx.regularizer": "Regularizer",
    "phalanx.specs": "L1 L2 AnyThreat ComponentSpec Epsilon Kind Linf NoBall Paper Spec Task "
    "Threat Traits Union",
    "phalanx.training.masked": "Masked with_retraining",
    "phalanx.training.perturbing": "Perturbing",
    "phalanx.training.phases": "CrossEntropyPhase",
    "phalanx.training.transforms": "Adversarial Augment Natural",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [  # built from the table above, so that each name stands once
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
