"""Evaluations of toys whose checks and verdicts are looked at."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evaluation_toys import Threshold, Toy, images, toy_registry
from torch import Generator, Tensor

from phalanx.api import hookimpl
from phalanx.defense import DefendedModel
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.findings import Check
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.registry import Registry
from phalanx.report.model import Report
from phalanx.specs import ComponentSpec, Kind, parse_threat

ENOUGH = 150
"""Images of which no finding excludes 2 %; all are right."""
LARGE = ("linf:0.4",)
"""At which every image is broken soon, so that attacks are quick."""
STRONG = ("apgd-ce", "apgd-dlr:steps=5", "square:queries=20")
"""The base, and an attack on scores."""
FREE = ["logits", "stochastic", "batch_dependence", "dynamic", "budget"]
CORE = [
    *FREE[:-1],
    "grad_bad:margin",
    "grad_bad:ce",
    "grad_bad:dlr",
    "grad_fd",
    "grad_deployed",
    "unstable",
    "black_box",
    "transfer",
    "unbounded",
    "converged_steps",
    "one_step",
    "eot_k",
    "ensemble_reweight",
    "adaptive",
    "silent",
    "incomplete",
    "loss_rank",
    "budget",
]
FULL = ["monotone", "chance", "losses", "converged_restarts", "noise_gain", "binarization"]


def registry_with(**hooks: Callable[..., Any]) -> Registry:
    """The toys' registry with a plugin ``mine`` of these hooks, the attack ``toy`` among all."""
    toy_registry()  # a fresh log
    module = types.ModuleType("phalanx_mine")
    for name, hook in {"phalanx_components": lambda: (), **hooks}.items():
        setattr(module, name, hookimpl(hook))
    registry = Registry([module], discover=False)
    registry.register(toy("toy"))
    return registry


def toy(name: str) -> ComponentSpec:
    where = Toy.__module__
    return ComponentSpec(
        kind=Kind.ATTACK,
        name=name,
        factory=f"{where}:Toy",
        config=f"{where}:ToyConfig",
        summary="A toy.",
    )


def plan_with(
    *attacks: str, registry: Registry, threats: tuple[str, ...] = ("linf:0.1",), **rest: Any
) -> Plan:
    uses = tuple(
        resolve_attack(parse_attack(one), threat=parse_threat(threat), registry=registry)
        for threat in threats
        for one in attacks
    )
    return Plan(uses, **{"checks": "core", **rest})


def evaluated(
    *models: DefendedModel,
    n: int = ENOUGH,
    attacks: tuple[str, ...] = STRONG,
    registry: Registry | None = None,
    data: Any = None,
    plans: Any = None,
    out: Path | None = None,
    seed: int = 0,
    **rest: Any,
) -> Report:
    """A report of models ``a``, ``b``, …, at core checks unless `rest` says otherwise."""
    registry = registry or registry_with()
    subjects = [Subject(name, model, name) for name, model in zip("abc", models, strict=False)]
    return evaluate_models(
        subjects,
        images(n) if data is None else data,
        plans or plan_with(*attacks, registry=registry, **rest),
        registry=registry,
        out=out,
        seed=seed,
    )


def found_in(report: Report, at: int = 0) -> dict[str, Check]:
    return {check.id: check for check in report.defenses[at].checks}


def verdict_of(report: Report, attack: str, defense: str = "a") -> str:
    return {row.attack: row.verdict for row in report.rows if row.defense == defense}[attack]


def keys(check: Check) -> set[str]:
    """Attacks of the rows that a failure touches."""
    return {attack for _, attack, _ in check.touches}


class Loud(DefendedModel):
    """A threshold moved by noise, drawn for each image."""

    stochastic = True

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.network, self.deviation = Threshold(), deviation

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        moved = self.deviation * torch.randn(len(x), 1, 1, 1, generator=generator)
        scores: Tensor = self.network(x + moved)
        return scores
