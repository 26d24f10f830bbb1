"""The loop over cells: stored ones are read, the others computed, failures noted."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from phalanx.attack import Attack
from phalanx.config import UseAttack
from phalanx.defense import View
from phalanx.errors import (
    EvaluationError,
    PhalanxError,
    PluginContractError,
    ThreatModelError,
    ValidityWarning,
)
from phalanx.evaluation.cell import (
    NONE,
    Cell,
    Outcome,
    RowsDone,
    attacked_outcome,
    clean_outcome,
)
from phalanx.evaluation.labels import attack_identity, attack_label
from phalanx.evaluation.progress import Progress
from phalanx.evaluation.rows import Failure, Measured, Row, rows_of
from phalanx.evaluation.scoring import accuracy
from phalanx.evaluation.store import CellStore
from phalanx.evaluation.subjects import Images, Plan, Subject, digest_of_rows
from phalanx.registry import Registry
from phalanx.specs import Kind

_CELL_ERRORS = (EvaluationError, ThreatModelError, PluginContractError)
"""What ends one cell and lets the others go on."""


@dataclass(frozen=True)
class _Task:
    """One cell to do: an attack through a view, or neither."""

    subject: Subject
    view_name: str = NONE
    view: View | None = None
    use: UseAttack | None = None

    @property
    def label(self) -> str:
        """The attack as a report names it."""
        return NONE if self.use is None else attack_label(self.use)

    @property
    def threat(self) -> str:
        """The attack's threat as text."""
        return NONE if self.use is None else str(getattr(self.use.params, "threat", NONE))

    @property
    def shown(self) -> str:
        """The cell's name for progress and warnings."""
        if self.use is None:
            return f"{self.subject.name}, clean"
        view = "" if self.view_name == NONE else f"{self.view_name}, "
        threat = "" if self.threat == NONE else f" ({self.threat})"
        return f"{self.subject.name}, {view}{self.label}{threat}"

    @property
    def identity(self) -> str:
        """The attack as a stored cell names it."""
        return NONE if self.use is None else attack_identity(self.use)


class Loop:
    """Runs the cells of an evaluation, one after the other.

    Attributes:
        failed: the cells that could not be run, with what was raised.
    """

    def __init__(
        self,
        *,
        images: Images,
        store: CellStore,
        seed: int,
        registry: Registry,
        progress: Progress,
        batch: int,
    ) -> None:
        self.failed: list[tuple[Failure, PhalanxError]] = []
        self._images = images
        self._store = store
        self._seed = seed
        self._registry = registry
        self._progress = progress
        self._batch = batch
        self._digests: dict[int, str] = {}

    def check(self, plans: Sequence[Plan]) -> None:
        """Refuse an attack that does not exist before anything is computed.

        Attacks that exist and cannot be run are left to their cells.

        Raises:
            InputError: for an unknown attack of a family, such as ``art/DeepFoul``.
        """
        for use in (use for plan in plans for use in plan.attacks):
            with contextlib.suppress(*_CELL_ERRORS):
                self._registry.create(Kind.ATTACK, use.use, use.params)

    def run(self, subjects: Sequence[Subject], plans: Sequence[Plan]) -> list[Row]:
        """The rows of all subjects; a subject that cannot even answer clean images has none."""
        pairs = list(zip(subjects, plans, strict=True))
        cells = [1 + len(_tasks(one, plan)) for one, plan in pairs]
        images = sum(n * self._count(plan) for n, plan in zip(cells, plans, strict=True))
        self._progress.started(cells=sum(cells), images=images)
        return [row for subject, plan in pairs for row in self._rows(subject, plan)]

    def _rows(self, subject: Subject, plan: Plan) -> list[Row]:
        count, before = self._count(plan), len(self.failed)
        clean = self._outcome(_Task(subject), count)
        if clean is None:
            return []
        measured = []
        for task in _tasks(subject, plan):
            outcome = self._outcome(task, count)
            if outcome is not None:
                params = None if task.use is None else task.use.params
                holds_clean = getattr(params, "holds_clean", True)
                measured.append(
                    Measured(task.view_name, task.label, task.threat, outcome, holds_clean)
                )
        missing = Counter(failure.threat for failure, _ in self.failed[before:])
        return rows_of(subject.name, clean, measured, seed=self._seed, missing=missing)

    def _outcome(self, task: _Task, count: int) -> Outcome | None:
        """A cell's outcome, stored or computed; None if it cannot be, which is noted."""
        cell = Cell(
            weights=task.subject.sha256,
            data=self._images.name,
            digest=self._digest(count),
            rows=count,
            view=task.view_name,
            attack=task.identity,
            threat=task.threat,
            seed=self._seed,
        )
        self._progress.cell_started(task.shown)
        found = self._store.get(cell)
        outcome = self._computed(task, cell) if found is None else found
        if outcome is None:
            return None
        if found is not None:
            self._progress.images_done(count)
        share = accuracy(outcome.bits)
        self._progress.cell_finished(task.shown, accuracy=share, stored=found is not None)
        return outcome

    def _computed(self, task: _Task, cell: Cell) -> Outcome | None:
        done = 0

        def told(images: int) -> None:
            nonlocal done
            done += images
            self._progress.images_done(images)

        try:
            outcome = self._compute(task, cell, told)
        except _CELL_ERRORS as error:
            failure = Failure(
                defense=task.subject.name,
                view=task.view_name,
                attack=task.label,
                threat=task.threat,
                reason=str(error),
            )
            self.failed.append((failure, error))
            left = cell.rows - done
            self._progress.cell_failed(task.shown, images=left, reason=failure.reason)
            return None
        self._store.put(cell, outcome)
        if outcome.violations:
            warnings.warn(
                f"{task.shown}: {outcome.violations} of {cell.rows} examples broke the threat "
                f"{task.threat} or the box, or were not finite; their clean images count instead",
                ValidityWarning,
                stacklevel=2,
            )
        return outcome

    def _compute(self, task: _Task, cell: Cell, done: RowsDone) -> Outcome:
        split, model = self._images.split, task.subject.model
        if task.view is None or task.use is None:
            return clean_outcome(model, cell, split, batch=self._batch, done=done)
        create = self._registry.create
        attack: Attack[Any] = create(Kind.ATTACK, task.use.use, task.use.params)
        view = _guarded(task.view, task.view_name)
        return attacked_outcome(
            model, cell, split, view=view, attack=attack, batch=self._batch, done=done
        )

    def _count(self, plan: Plan) -> int:
        """N of a plan."""
        there = len(self._images.split)
        return there if plan.limit is None else min(plan.limit, there)

    def _digest(self, count: int) -> str:
        if count not in self._digests:
            self._digests[count] = digest_of_rows(self._images.split, count)
        return self._digests[count]


def _guarded(view: View, name: str) -> View:
    """The view, whose failure to open ends its cell alone."""

    def opened(seed: int) -> nn.Module:
        try:
            return view.open(seed)
        except PhalanxError:
            raise
        except Exception as error:  # a plugin's view raises anything
            raise EvaluationError(
                f"view {name!r} cannot be opened: {type(error).__name__}: {error}"
            ) from error

    return replace(view, open=opened)


def _tasks(subject: Subject, plan: Plan) -> list[_Task]:
    """Every attack through every view; an attack that is named twice at one threat runs once.

    So does one that does not look at the model, without a view: one cell stands for all views, so
    that `worst` does not take the worst of several draws of it.
    """
    found: dict[tuple[str, str, str], _Task] = {}
    for name, view in plan.views_of(subject).items():
        for use in plan.attacks:
            if getattr(use.params, "asks_model", True):
                task = _Task(subject, name, view, use)
            else:  # the view is opened and not asked, and must not cut the images into chunks
                task = _Task(subject, NONE, replace(view, fixed_draw=False), use)
            found.setdefault((task.view_name, task.identity, task.threat), task)
    return list(found.values())
