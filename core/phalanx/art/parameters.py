"""Which arguments one of ART's attack classes gets: from the config, the threat and the labels."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import numpy as np

from phalanx.art.config import ArtAttackConfig
from phalanx.errors import ConfigError, ThreatModelError
from phalanx.specs import L1, L2, Linf, NoBall, Threat

_NORMS: dict[type[Threat], float] = {Linf: np.inf, L2: 2, L1: 1}
_OWN_BALL = ("Wasserstein",)
"""Their `eps` is no radius of our balls."""
_ONE_NORM: dict[str, type[Threat]] = {"BasicIterativeMethod": Linf, "VirtualAdversarialMethod": L2}
"""They take `eps` and no `norm`."""
_ADAPTIVE = (
    "AutoAttack",
    "AutoConjugateGradient",
    "AutoProjectedGradientDescent",
    "RescalingAutoConjugateGradient",
)
"""They only ever shorten their step; its first length is 2 eps (Croce & Hein, arXiv 2003.01690)."""
_ROW_BY_ROW = (
    "CarliniL0Method",
    "CarliniL2Method",
    "CarliniLInfMethod",
    "DeepFool",
    "ElasticNet",
    "NewtonFool",
    "SaliencyMapMethod",
    "VirtualAdversarialMethod",
)
"""They default to one image a batch and treat the rows of a larger one alike."""
_ALWAYS_TARGETED = ("SaliencyMapMethod", "TargetedUniversalPerturbation")
_FROM_ELSEWHERE = ("self", "estimator", "classifier", "kwargs", "args")


def takes_budget(name: str, accepted: set[str]) -> bool:
    """Whether the class keeps within an `eps` of ours by itself, and is no minimum-norm attack."""
    return "eps" in accepted and name not in _OWN_BALL


def accepted_by(kind: type) -> dict[str, Any]:
    """The parameters of an ART attack class with their defaults, the classifier left out."""
    signature = inspect.signature(kind)
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in _FROM_ELSEWHERE
    }


def check(config: ArtAttackConfig, kind: type, threat: Threat) -> None:
    """Hold a config against the class's own parameters.

    Raises:
        ConfigError: for unknown parameters, and for those that do not come from the config.
        ThreatModelError: if the class knows one norm, and it is another.
    """
    accepted = accepted_by(kind)
    problems = []
    for key in config.parameters:
        if key == "targeted":
            problems.append("targeted: comes with the labels; pass Targeted(labels) to the attack")
        elif key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(f"{key}: unknown parameter; {hint}allowed: {', '.join(accepted)}")
        elif key in ("eps", "norm") and _from_threat(config.name, set(accepted), threat):
            problems.append(f"{key}: comes from the threat ({threat}); set that instead")
    if problems:
        raise ConfigError(problems, source=f"art/{config.name}")
    only = _ONE_NORM.get(config.name)
    if only is not None and not isinstance(threat, only | NoBall):
        raise ThreatModelError(
            f"ART's {config.name} cannot take threat {threat}; it takes: {only.__name__.lower()}"
        )


def fill(
    config: ArtAttackConfig, kind: type, threat: Threat, *, shape: tuple[int, ...], targeted: bool
) -> dict[str, Any]:
    """The keyword arguments for the class.

    `eps` and `norm` are the threat's; an unset `eps_step` is 2.5 eps / max_iter, at most eps, or
    2 eps for the attacks that adapt it; the attack is quiet; the classes that would go image by
    image get batches. All else is as given, or ART's default.

    Args:
        config: the parameters that were asked for.
        kind: ART's class.
        threat: a ball with a positive radius, or none.
        shape: ``(N, C, H, W)`` of the images.
        targeted: whether the labels are to be reached.
    """
    name, accepted, given = config.name, accepted_by(kind), config.parameters
    filled: dict[str, Any] = dict(given)
    if _from_threat(name, set(accepted), threat):
        filled["eps"] = threat.eps  # type: ignore[attr-defined]  # every ball has eps
        if "eps_step" in accepted and "eps_step" not in given:
            filled["eps_step"] = _step(name, accepted | given, filled["eps"])
    if "norm" in accepted and name not in _OWN_BALL and type(threat) in _NORMS:
        filled.setdefault("norm", _NORMS[type(threat)])
    if "targeted" in accepted:
        filled["targeted"] = targeted
    if "verbose" in accepted:
        filled.setdefault("verbose", False)
    if name in _ROW_BY_ROW:
        filled.setdefault("batch_size", min(shape[0], 128))
    if "patch_shape" in accepted:
        filled.setdefault("patch_shape", shape[1:])
    if name == "UniversalPerturbation" and filled.get("attacker", "deepfool") != "fgsm":
        filled["attacker_params"] = {"verbose": False} | (given.get("attacker_params") or {})
    return filled


def can_target(name: str, kind: type) -> bool:
    """Whether the class can be given labels to reach."""
    return name in _ALWAYS_TARGETED or "targeted" in accepted_by(kind)


def _from_threat(name: str, accepted: set[str], threat: Threat) -> bool:
    return takes_budget(name, accepted) and not isinstance(threat, NoBall)


def _step(name: str, values: dict[str, Any], eps: float) -> float:
    if name in _ADAPTIVE:
        return 2.0 * eps
    if "max_iter" in values:
        return min(2.5 * eps / float(values["max_iter"]), eps)
    return min(float(values["eps_step"]), eps)
