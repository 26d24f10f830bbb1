"""Evaluation: every attack through every view of every model, then a report.

A cell that an attack cannot do is recorded with its reason, and the others go on. Finished cells
are stored at once where an output folder is given, and found there by a repeated call.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from phalanx.config import UseAttack
from phalanx.errors import EvaluationError, InputError, PhalanxError
from phalanx.evaluation import contents
from phalanx.evaluation.engine import Engine
from phalanx.evaluation.findings import Tier
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.loop import Loop
from phalanx.evaluation.planning import plan_of, surrogate_plan
from phalanx.evaluation.preflight import preflight
from phalanx.evaluation.progress import Progress, Silence
from phalanx.evaluation.protocol import load_protocol, resolve_attack
from phalanx.evaluation.store import BlockStore
from phalanx.evaluation.subjects import (
    AnyData,
    Images,
    Plan,
    Subject,
    check_images,
    check_limit,
    check_plans,
    digest_of,
    images_of,
    model_of,
    name_of,
)
from phalanx.evaluation.tasks import JobMaker
from phalanx.evaluation.validity import examine
from phalanx.registry import Registry, default_registry
from phalanx.specs import Threat, parse_threat
from phalanx.storage import check_output

if TYPE_CHECKING:
    from phalanx.report.model import Report

CELLS = "cells"
"""Folder of the finished cells within the output folder."""


def evaluate(
    model: nn.Module | Any,
    data: AnyData,
    *,
    protocol: str | Path = "quick",
    threat: Threat | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    attacks: Sequence[str | Mapping[str, Any] | UseAttack] = (),
    views: Sequence[str] = (),
    out: Path | str | None = None,
    name: str | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
    shard: tuple[int, int] = (1, 1),
    time_budget: float | None = None,
    keep_examples: bool = False,
    surrogates: Mapping[str, nn.Module | Any] | None = None,
    checks: Tier | None = None,
) -> Report:
    """Attack a model through all its views, and report what is left of its accuracy.

    Args:
        model: images ``(N, C, H, W)`` in [0, 1] to scores ``(N, K)``: any `torch.nn.Module`, or
            an ART ``PyTorchClassifier``; its mode does not matter. What it has to declare
            (randomness, members, mean and std) goes through `phalanx.wrap`.
        data: a data set's name (looked for in ``$PHALANX_DATA``), a `phalanx.data.Data`, a pair
            (x, y) of images and labels ``(N,)``, or a torch ``Dataset`` or ``DataLoader`` of
            (image, label).
        protocol: ``quick``, ``standard``, ``adaptive``, ``union``, a plugin's own, such as
            ``clm/paper``, or the path of a file that ends in ``.toml``.
        threat: such as ``"linf:8/255"``, for all attacks that name none; absent: the data's.
        limit: first N test images; absent: the protocol's number, or all.
        seed: of every draw; equal seeds give equal reports.
        attacks: instead of the protocol's: ``"pgd:steps=100,step=0.01"``, tables or `UseAttack`.
        views: names of the views to attack; absent: all.
        out: folder for finished cells and ``report.html``, ``.json``, ``.md``, ``.tex`` and
            ``.csv``; absent: nothing is written.
            The code of a foreign module does not enter the key of a cell: after a change of its
            `forward` name another folder.
        name: of the defense in the report; absent: the model's class, or a foreign module's.
        registry: where attacks are looked up; absent: the default one.
        progress: is told what is done.
        shard: (i, n): this is process i of n on one `out`, from 1; each gives the whole report.
        time_budget: seconds after which no block of images is begun: rows are then of fewer images,
            which the report says.
        keep_examples: write adversarial images to ``out/examples``, for ``phalanx verify``.
        surrogates: models by name, whose adversarial examples the model is judged on too.
        checks: which validity checks follow: those that cost nothing (``free``), ``core``, or
            ``full``; absent: as the protocol says.

    Raises:
        InputError: if something asked for is unknown or cannot be, or the images do not fit.
        EvaluationError: if not a single cell could be run.
    """
    defended = model_of(model)
    check_limit(limit)
    if limit is None and not attacks:
        limit = load_protocol(protocol, registry=registry).limit
    images = images_of(data, limit)
    subject = Subject(
        name or name_of(defended),
        defended,
        digest_of(defended),
        component=str(getattr(defended, "component", "")),
    )
    default: Threat | None = parse_threat(threat) if threat is not None else images.threat
    if attacks:
        tables = [parse_attack(one) if isinstance(one, str) else one for one in attacks]
        uses = tuple(resolve_attack(one, threat=default, registry=registry) for one in tables)
        plan = Plan(uses, tuple(views), limit, checks=checks or "free")
    else:
        plan = plan_of(
            subject,
            load_protocol(protocol, threat=default, registry=registry),
            threat=default,
            registry=registry or default_registry(),
            shape=images.split.shape,
            views=tuple(views),
            limit=limit,
            checks=checks,
        )
    folder = None if out is None else Path(out)
    others = [
        Subject(title, defended_other, digest_of(defended_other), surrogate=True)
        for title, given in (surrogates or {}).items()
        if (defended_other := model_of(given))
    ]
    report = evaluate_models(
        [subject, *others],
        images,
        [plan, *(surrogate_plan(plan) for _ in others)],
        out=folder,
        seed=seed,
        registry=registry,
        progress=progress,
        shard=shard,
        time_budget=time_budget,
        keep_examples=keep_examples,
    )
    if folder is not None:
        report.save(folder)
    return report


def evaluate_models(
    subjects: Sequence[Subject],
    data: AnyData | Images,
    plan: Plan | Sequence[Plan],
    *,
    out: Path | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    progress: Progress | None = None,
    batch: int | None = None,
    shard: tuple[int, int] = (1, 1),
    time_budget: float | None = None,
    keep_examples: bool = False,
) -> Report:
    """Attack several models on the same data; see `evaluate`.

    Args:
        subjects: the models, each under its own name.
        data: as in `evaluate`.
        plan: one for all, or one for each subject.
        out: finished cells go to its folder ``cells``; the report is not written.
        seed: of every draw.
        registry: where attacks are looked up; absent: the default one.
        progress: is told what is done.
        batch: images at a time, 256 over a power of two, at least 16; absent: as memory has room.
        shard: (i, n): this is process i of n on one folder, from 1; each waits for the others and
            gives the whole report.
        time_budget: seconds after which no block of images is begun any more.
        keep_examples: write adversarial images to the folder ``examples`` of `out`.
    """
    from phalanx.report.model import Report  # it stands above the evaluation

    if out is not None:
        check_output(out, "out")
    plans = [plan] * len(subjects) if isinstance(plan, Plan) else list(plan)
    check_plans(subjects, plans)
    images = data if isinstance(data, Images) else images_of(data, _most(plans))
    check_images(subjects, images)
    for one, own in zip(subjects, plans, strict=True):
        preflight(one.model, images.split, limit=own.limit)
    store = BlockStore(None if out is None else out / CELLS, keeps_examples=keep_examples)
    deadline = None if time_budget is None else time.monotonic() + time_budget
    engine = Engine(store, progress or Silence(), shard=shard, deadline=deadline)
    maker = JobMaker(images.name, seed, registry or default_registry(), batch)
    loop = Loop(images=images, maker=maker, engine=engine)
    loop.check(plans)
    measurements = loop.run(subjects, plans)
    rows = loop.rows(subjects, measurements)
    if not rows:
        raise _nothing_ran(loop)
    judged = [
        examine(
            subject,
            own,
            [row for row in rows if row.defense == subject.name],
            loop=loop,
            measured=measurements,
            folder=out,
        )
        for subject, own in zip(subjects, plans, strict=True)
        if any(row.defense == subject.name for row in rows)
    ]
    found = tuple(row for one in judged for row in one.rows)
    for row in found:
        run = {"defense": row.defense, "data": images.name, "seed": seed, "out": out and str(out)}
        maker.registry.notify("phalanx_attack_finished", run=run, row=row.model_dump(mode="json"))
    failed = tuple(failure for failure, _ in loop.failed)
    told = (*images.notes, *dict.fromkeys(note for plan in plans for note in _notes(plan)))
    environment = _environment(images, plans, seed=seed)
    return Report(
        rows=found,
        environment=environment,
        failed=failed,
        notes=(*told, *loop.notes),
        defenses=tuple(one.findings for one in judged),
        transfers=(
            *contents.transfers(subjects, measurements),
            *(transfer for one in judged for transfer in one.transfers),
        ),
        curves=tuple(curve for one in judged for curve in one.curves),
        comparisons=tuple(contents.comparisons(subjects, measurements, seed)),
        examples=tuple(example for one in judged for example in one.examples),
    )


def _most(plans: Sequence[Plan]) -> int | None:
    """How many images are needed at most; None: all."""
    limits = [plan.limit for plan in plans if plan.limit is not None]
    return max(limits) if len(limits) == len(plans) else None


def _notes(plan: Plan) -> tuple[str, ...]:
    """A plan's notes, and which checks it judges by other thresholds."""
    changed = "; ".join(plan.thresholds.changes())
    if not changed:
        return plan.notes
    return (*plan.notes, f"{plan.protocol} judges by thresholds of its own: {changed}.")


def _nothing_ran(loop: Loop) -> PhalanxError:
    reasons = dict.fromkeys(
        f"{one.attack} on {one.view} ({one.threat}): {one.reason}" for one, _ in loop.failed
    )
    text = "nothing could be evaluated:" + "".join(f"\n  {reason}" for reason in reasons)
    wrong_input = all(isinstance(error, InputError) for _, error in loop.failed)
    return InputError(text) if wrong_input else EvaluationError(text)


def _environment(images: Images, plans: Sequence[Plan], *, seed: int) -> dict[str, Any]:
    """What the numbers were measured with."""
    protocols = list(dict.fromkeys(plan.protocol or "attacks by name" for plan in plans))
    limits = {plan.limit for plan in plans}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "art": _version("adversarial-robustness-toolbox"),
        "phalanx": _version("phalanx"),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "protocol": ", ".join(protocols),
        "limit": limits.pop() if len(limits) == 1 else None,
        "data": images.name,
        **images.facts,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
