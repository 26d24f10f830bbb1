"""The pluggy hooks of project ``phalanx``; a plugin implements any of them with `hookimpl`.

Nothing numeric depends on the order in which plugins are called. A failing observer becomes a
warning that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from phalanx.specs import ComponentSpec

PROJECT = "phalanx"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def phalanx_components() -> Iterable[ComponentSpec]:  # type: ignore[empty-body]  # a specification
    """Declare components. Must not import torch, ART or timm. Called once per plugin."""


@hookspec
def phalanx_adaptive_attacks(defense: str, threat: str) -> Iterable[Mapping[str, Any]]:  # type: ignore[empty-body]  # a specification
    """The attacks that the plugin's own defense must withstand, for protocol ``adaptive``.

    Each is a table as in a protocol: ``{"attack": {"use": "pgd", "params": {...}}, "views":
    ["expected"]}``; without ``views`` it runs on all. () for another plugin's defense, by its
    registered name. `threat` is such as ``linf:8/255``.
    """


@hookspec
def phalanx_validity_checks() -> Iterable[Any]:  # type: ignore[empty-body]  # a specification
    """Checks besides the core's: callables that take a `phalanx.evaluation.validity.Examined`.

    Each returns a `phalanx.api.Check`, or None where it does not apply; none of them is required.
    """


@hookspec
def phalanx_run_started(run: Mapping[str, Any]) -> None:
    """A training begins: `run` has defense, data, config_hash, out."""


@hookspec
def phalanx_epoch_finished(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """An epoch ended: `metrics` is its line of metrics.jsonl."""


@hookspec
def phalanx_attack_finished(run: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """A row of an evaluation has its verdict: `row` is as in report.json.

    `run` has defense, data, seed, and out (None where nothing is written). Called for each row once
    all attacks and checks are done, before the report is written; of processes that share an
    evaluation each calls it for all rows.
    """


@hookspec
def phalanx_run_finished(run: Mapping[str, Any]) -> None:
    """A training ended."""
