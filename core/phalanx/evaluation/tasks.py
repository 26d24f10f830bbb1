"""What an evaluation does, one attack through one view of one model at a time, as jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from phalanx.config import UseAttack
from phalanx.data.sets import Split
from phalanx.defense import View
from phalanx.errors import EvaluationError, PhalanxError
from phalanx.evaluation.batching import automatic_batch
from phalanx.evaluation.cell import BLOCK, NONE, TRANSFER, Cell, CellRun
from phalanx.evaluation.engine import Job, Target
from phalanx.evaluation.labels import attack_identity, attack_label
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.registry import Registry
from phalanx.specs import Kind


@dataclass(frozen=True)
class Task:
    """One cell to do: an attack through a view, or neither.

    `protocol` is ``paper`` or ``adaptive`` where such a part of a protocol asks for it.
    """

    subject: Subject
    view_name: str = NONE
    view: View | None = None
    use: UseAttack | None = None
    protocol: str | None = None

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

    @property
    def asks_model(self) -> bool:
        """Whether the attack looks at the model."""
        return self.use is not None and bool(getattr(self.use.params, "asks_model", True))

    @property
    def holds_clean(self) -> bool:
        """Whether the attack may leave an image as it is."""
        return self.use is None or bool(getattr(self.use.params, "holds_clean", True))


def tasks_of(subject: Subject, plan: Plan) -> list[Task]:
    """Every attack through every view; an attack that is named twice at one threat runs once.

    So does one that does not look at the model, without a view: one cell stands for all views, so
    that `worst` does not take the worst of several draws of it.
    """
    found: dict[tuple[str, str, str], Task] = {}
    views = plan.views_of(subject)
    asked: list[tuple[str, UseAttack, str | None]] = [
        (name, use, None) for name in views for use in plan.attacks
    ]
    asked += [
        (name, one.use, one.protocol)
        for one in plan.also
        for name in views
        if not one.views or name in one.views
    ]
    for name, use, protocol in asked:
        view = views[name]
        if getattr(use.params, "asks_model", True):
            task = Task(subject, name, view, use, protocol)
        else:  # the view is opened and not asked, and must not cut the images into chunks
            task = Task(subject, NONE, replace(view, fixed_draw=False), use, protocol)
        key = (task.view_name, task.identity, task.threat)
        known = found.setdefault(key, task)
        if known.protocol is None and protocol is not None:
            found[key] = replace(known, protocol=protocol)
    return list(found.values())


@dataclass
class JobMaker:
    """Makes jobs of tasks.

    Attributes:
        data: the images' name.
        seed: of every draw.
        registry: where attacks are looked up.
        batch: images at a time, instead of the automatic number.
    """

    data: str
    seed: int
    registry: Registry
    batch: int | None = None
    batches: dict[str, int] = field(default_factory=dict)

    def job(
        self,
        task: Task,
        split: Split,
        count: int,
        *,
        targets: Sequence[Subject] = (),
        needs: Job | None = None,
    ) -> Job:
        """A task on the first `count` rows.

        Args:
            task: what to do.
            split: the images.
            count: how many of them.
            targets: other models, which are judged on its examples.
            needs: a job without which this one is not worth doing.
        """
        cell = Cell(
            weights=task.subject.sha256,
            data=self.data,
            view=task.view_name,
            attack=task.identity,
            threat=task.threat,
            seed=self.seed,
            batch=BLOCK if task.use is None else self.batch_of(task.subject, split),
        )
        return Job(
            cell,
            task.shown,
            split,
            count,
            lambda: self._run(task, cell),
            needs,
            tuple(Target(self.received(cell, one), one.model) for one in targets),
            attacks=task.use is not None,
        )

    def received(self, source: Cell, target: Subject) -> Cell:
        """The cell of a model that is judged on another cell's examples."""
        made = [source.weights, source.view, source.attack, source.batch]
        return replace(source, weights=target.sha256, view=TRANSFER, attack=json.dumps(made))

    def _run(self, task: Task, cell: Cell) -> CellRun:
        if task.use is None or task.view is None:
            return CellRun(task.subject.model, cell)
        attack = self.registry.create(Kind.ATTACK, task.use.use, task.use.params)
        view = _guarded(task.view, task.view_name)
        return CellRun(task.subject.model, cell, view=view, attack=attack)

    def batch_of(self, subject: Subject, split: Split) -> int:
        """Images of a subject to attack at once."""
        if self.batch is not None:
            return self.batch
        if subject.sha256 not in self.batches:
            self.batches[subject.sha256] = automatic_batch(subject.model, split.shape)
        return self.batches[subject.sha256]


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
