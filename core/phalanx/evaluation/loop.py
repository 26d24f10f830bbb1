"""All cells of an evaluation: from subjects and plans to finished jobs, and from these to rows.

Every model is also judged on the examples of every other model's cells at the same threat: one
forward pass for each, and the cheapest way to see a defense that only hides its gradients.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.errors import EvaluationError, PhalanxError
from phalanx.evaluation.cell import NONE, TRANSFER, Outcome
from phalanx.evaluation.engine import CELL_ERRORS, Engine, Job
from phalanx.evaluation.rows import Failure, Measured, Row, rows_of
from phalanx.evaluation.subjects import Images, Plan, Subject
from phalanx.evaluation.tasks import JobMaker, Task, tasks_of
from phalanx.specs import Kind

LATE = "left out: the time budget was over before its first block"


@dataclass(frozen=True)
class Attacked:
    """A task and its job."""

    task: Task
    job: Job


@dataclass
class Measurements:
    """All jobs of an evaluation.

    Attributes:
        clean: of each subject by name.
        attacked: of each subject and surrogate by name, in the order of its plan.
        counts: by subject, how many of the first images are finished in all of its cells.
    """

    clean: dict[str, Job]
    attacked: dict[str, list[Attacked]]
    counts: dict[str, int]

    def finished(self, name: str) -> list[Attacked]:
        """A model's cells that came to an end, on its number of images at least."""
        count = self.counts.get(name, 1)
        return [
            one
            for one in self.attacked[name]
            if one.job.error is None and one.job.done() >= count > 0
        ]

    def received(self, name: str, sha256: str) -> dict[tuple[str, str], list[Outcome]]:
        """(Source, threat) -> what a subject makes of that source's examples, cell by cell."""
        found: dict[tuple[str, str], list[Outcome]] = {}
        count = self.counts[name]
        for source in self.attacked:
            if source == name:
                continue
            for one in self.attacked[source]:
                for cell in one.job.received:
                    if cell.weights == sha256 and count and one.job.has_received(cell, count):
                        outcome = one.job.received_by(cell, count)
                        found.setdefault((source, one.task.threat), []).append(outcome)
        return found


class Loop:
    """Runs the cells of an evaluation.

    Attributes:
        failed: the cells that could not be run, with what was raised.
        notes: what a reader has to know besides, in sentences.
    """

    def __init__(self, *, images: Images, maker: JobMaker, engine: Engine) -> None:
        self.failed: list[tuple[Failure, PhalanxError]] = []
        self.notes: list[str] = []
        self.images = images
        self.maker = maker
        self.engine = engine

    def check(self, plans: Sequence[Plan]) -> None:
        """Refuse an attack that does not exist before anything is computed.

        Attacks that exist and cannot be run are left to their cells.

        Raises:
            InputError: for an unknown attack of a family, such as ``art/DeepFoul``.
        """
        for use in (use for plan in plans for use in plan.uses):
            with contextlib.suppress(*CELL_ERRORS):
                self.maker.registry.create(Kind.ATTACK, use.use, use.params)

    def run(self, subjects: Sequence[Subject], plans: Sequence[Plan]) -> Measurements:
        """Do all cells; one that fails is noted, and the others go on."""
        pairs = list(zip(subjects, plans, strict=True))
        tasks = {subject.name: tasks_of(subject, plan) for subject, plan in pairs}
        counts = {subject.name: self.count(plan) for subject, plan in pairs}
        split = self.images.split
        clean = {
            s.name: self.maker.job(Task(s), split, counts[s.name])
            for s in subjects
            if not s.surrogate
        }
        attacked = {
            subject.name: [
                Attacked(
                    task,
                    self.maker.job(
                        task,
                        split,
                        counts[subject.name],
                        targets=_targets(task, subjects, tasks),
                        needs=clean.get(subject.name),
                    ),
                )
                for task in tasks[subject.name]
            ]
            for subject in subjects
        }
        self._tell_batches(subjects)
        jobs: list[Job] = []
        for subject in subjects:
            jobs += [clean[subject.name]] if subject.name in clean else []
            jobs += [one.job for one in attacked[subject.name]]
        self.engine.progress.started(cells=len(jobs), images=sum(job.count for job in jobs))
        self.engine.work(jobs)
        found = Measurements(clean, attacked, {})
        for subject in subjects:
            own = [(Task(subject), clean[subject.name])] if subject.name in clean else []
            own += [(one.task, one.job) for one in attacked[subject.name]]
            found.counts[subject.name] = self._settle(own)
        self._level(found, {s.name: counts[s.name] for s in subjects})
        self._say_batches(subjects)
        return found

    def count(self, plan: Plan) -> int:
        """N of a plan."""
        there = len(self.images.split)
        return there if plan.limit is None else min(plan.limit, there)

    def rows(self, subjects: Sequence[Subject], measurements: Measurements) -> list[Row]:
        """The rows of all subjects; a subject that cannot even answer clean images has none."""
        found: list[Row] = []
        for subject in (one for one in subjects if not one.surrogate):
            name, job = subject.name, measurements.clean[subject.name]
            count = measurements.counts[name]
            if job.error is not None or not count:
                continue
            measured = [
                Measured(
                    one.task.view_name,
                    one.task.label,
                    one.task.threat,
                    one.job.outcome(count),
                    holds_clean=one.task.holds_clean,
                    protocol=one.task.protocol,
                )
                for one in measurements.finished(name)
            ]
            received = measurements.received(name, subject.sha256)
            measured += [
                Measured(TRANSFER, f"from:{source}", threat, first, more=tuple(more))
                for (source, threat), (first, *more) in received.items()
            ]
            missing = Counter(one.threat for one, _ in self.failed if one.defense == name)
            clean = job.outcome(count)
            found += rows_of(name, clean, measured, seed=self.maker.seed, missing=missing)
        return found

    def _settle(self, jobs: Sequence[tuple[Task, Job]]) -> int:
        """Note what failed or was left out; how many images are finished in all other cells."""
        done = []
        for task, job in jobs:
            error = job.error
            if error is None and job.over:
                continue  # what it needs has failed, and is told
            if error is None and job.done() == 0:
                error = EvaluationError(LATE)
            if error is None:
                done.append(job.done())
                continue
            failure = Failure(
                defense=task.subject.name,
                view=task.view_name,
                attack=task.label,
                threat=task.threat,
                reason=str(error),
            )
            self.failed.append((failure, error))
        return min(done, default=0)

    def _level(self, found: Measurements, wanted: dict[str, int]) -> None:
        """Cut all models to the images that the slowest one finished, so that transfer is whole."""
        cut = [count for name, count in found.counts.items() if 0 < count < wanted[name]]
        for name, count in found.counts.items():
            found.counts[name] = min([count, *cut])
            if 0 < found.counts[name] < wanted[name]:
                self.notes.append(
                    f"{name}: the time budget was over after {found.counts[name]} of "
                    f"{wanted[name]} images, which its rows are of; the same command goes on from "
                    "there."
                )

    def _tell_batches(self, subjects: Sequence[Subject]) -> None:
        """Tell progress the numbers that were chosen, before the first attack."""
        for subject in subjects:
            batch = self.maker.batches.get(subject.sha256)
            if batch is not None:
                self.engine.progress.batch_chosen(subject.name, images=batch)

    def _say_batches(self, subjects: Sequence[Subject]) -> None:
        """Note the numbers below a whole block."""
        for subject in subjects:
            batch = self.maker.batches.get(subject.sha256)
            if batch is not None and batch < 256:
                self.notes.append(
                    f"{subject.name}: {batch} images at a time were attacked, as memory has room "
                    "for no block of 256."
                )


def _targets(
    task: Task, subjects: Sequence[Subject], tasks: dict[str, list[Task]]
) -> list[Subject]:
    """The other models that are judged on a task's examples: those attacked at its threat."""
    if not task.asks_model or task.threat == NONE:
        return []
    return [
        other
        for other in subjects
        if other.name != task.subject.name
        and other.sha256 != task.subject.sha256
        and not other.surrogate
        and any(one.threat == task.threat for one in tasks[other.name])
    ]
