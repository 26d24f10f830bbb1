"""The engine: blocks of cells are read where they are stored, claimed and computed where not.

Several processes may work on one folder: each goes through the same blocks from another one on,
claims what is free, and at the end waits for what the others have in hand. What comes out is the
same for any number of processes, killed and repeated as often as may be.

Without a time budget cells are done one after another. With one, blocks are: all cells on the first
256 images, then all on the next, so that whatever time there is gives whole unions on fewer images.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from torch import Tensor

from phalanx.data.sets import Split
from phalanx.defense import DefendedModel
from phalanx.errors import (
    EvaluationError,
    PhalanxError,
    PluginError,
    ThreatModelError,
    ValidityWarning,
)
from phalanx.evaluation.cell import BLOCK, Block, Cell, CellRun, Outcome, joined
from phalanx.evaluation.progress import Progress
from phalanx.evaluation.scoring import accuracy
from phalanx.evaluation.store import BlockStore
from phalanx.evaluation.subjects import digest_of_batch
from phalanx.phase import Batch

CELL_ERRORS = (EvaluationError, ThreatModelError, PluginError)
"""What ends one cell and lets the others go on."""
_WAIT = 0.1
"""Seconds between two looks for what another process computes."""


@dataclass(frozen=True)
class Target:
    """A model that is judged on another's examples, and the cell that this is."""

    cell: Cell
    model: DefendedModel


@dataclass(eq=False)
class Job:
    """A cell to do on the first rows of a split.

    Attributes:
        cell: what it is.
        shown: its name for progress and warnings.
        split: the images.
        count: how many of them.
        run: makes what computes it.
        needs: a job without which this one is not worth doing: its subject's clean cell.
        targets: models that are judged on its examples too.
        attacks: whether it makes adversarial examples.
        keeps: whether these are kept, where an evaluation keeps them, and shown; a check's are not.
        outcomes: of its finished blocks, by first row.
        received: of its targets' blocks likewise, by cell.
        spoilt: the targets that failed on its examples.
        error: what ended it, if something did.
        stored: whether nothing had to be computed.
        told: whether progress knows what it came to.
    """

    cell: Cell
    shown: str
    split: Split
    count: int
    run: Callable[[], CellRun]
    needs: Job | None = None
    targets: tuple[Target, ...] = ()
    attacks: bool = False
    keeps: bool = True
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    received: dict[Cell, dict[int, Outcome]] = field(default_factory=dict)
    spoilt: set[Cell] = field(default_factory=set)
    error: PhalanxError | None = None
    stored: bool = True
    told: bool = False

    @property
    def over(self) -> bool:
        """Whether it, or what it needs, has failed."""
        return self.error is not None or (self.needs is not None and self.needs.over)

    @property
    def willing(self) -> list[Target]:
        """The targets that have not failed on its examples."""
        return [target for target in self.targets if target.cell not in self.spoilt]

    def outcome(self, count: int) -> Outcome:
        """The cell's outcome on the first `count` images, whole blocks or all of them."""
        return joined([self.outcomes[first] for first in range(0, count, BLOCK)])

    def received_by(self, cell: Cell, count: int) -> Outcome:
        """A target's outcome likewise."""
        blocks = [self.received[cell][first] for first in range(0, count, BLOCK)]
        return joined(blocks).of_rows(slice(0, count))

    def has_received(self, cell: Cell, count: int) -> bool:
        """Whether a target has answered on all of the first `count` images."""
        blocks = self.received[cell]
        ends = [first + done.bits.shape[1] for first, done in blocks.items()]
        return max(ends) >= count and all(first in blocks for first in range(0, count, BLOCK))

    def done(self) -> int:
        """How many of the first images are finished."""
        for first in range(0, self.count, BLOCK):
            if first not in self.outcomes:
                return first
        return self.count


class Engine:
    """Does jobs.

    Args:
        store: of finished blocks.
        progress: is told what is done.
        shard: (i, n): this is process i of n, from 1.
        deadline: `time.monotonic` after which no block is begun; None: none.
    """

    def __init__(
        self,
        store: BlockStore,
        progress: Progress,
        *,
        shard: tuple[int, int] = (1, 1),
        deadline: float | None = None,
    ) -> None:
        self.store = store
        self.progress = progress
        self.shard = shard
        self.deadline = deadline
        self._digests: dict[tuple[int, int, int], str] = {}
        self._splits: list[Split] = []

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def work(self, jobs: Sequence[Job]) -> None:
        """Compute what is not stored; each job ends with its outcomes, or an error.

        After the deadline jobs lack blocks. Progress must have been told how many images there are.
        """
        for job in jobs:
            self._prepare(job)
        left = self._by_block(jobs) if self.deadline is not None else self._by_cell(jobs)
        while left and not self.late:
            waiting = []
            for job, block in left:
                if not job.over and not self._settled(job, block) and not self._claimed(job, block):
                    waiting.append((job, block))
            left = waiting
            if left:
                time.sleep(_WAIT)
        for job in jobs:
            self._finish(job)

    def blocks_of(self, job: Job) -> list[Block]:
        """The job's blocks, in the order of rows."""
        found = []
        for first in range(0, job.count, BLOCK):
            rows = min(BLOCK, job.count - first)
            key = (self._number(job.split), first, rows)
            found.append(Block(job.cell, first, rows, self._digests[key]))
        return found

    def _prepare(self, job: Job) -> None:
        """Digests of the job's blocks, read once for each split."""
        number = self._number(job.split)
        starts = [(first, min(BLOCK, job.count - first)) for first in range(0, job.count, BLOCK)]
        new = [
            (first, rows) for first, rows in starts if (number, first, rows) not in self._digests
        ]
        slices = (slice(first, first + rows) for first, rows in new)
        with closing(job.split.stream(slices)) as batches:
            for (first, rows), batch in zip(new, batches, strict=True):
                self._digests[number, first, rows] = digest_of_batch(batch)

    def _number(self, split: Split) -> int:
        for number, known in enumerate(self._splits):
            if known is split:
                return number
        self._splits.append(split)
        return len(self._splits) - 1

    def _by_cell(self, jobs: Sequence[Job]) -> list[tuple[Job, Block]]:
        """Each job in turn; what other processes have in hand comes back."""
        waiting = []
        for job in jobs:
            if job.over:
                continue
            self.progress.cell_started(job.shown)
            missing = [block for block in self._shifted(job) if not self._settled(job, block)]
            run = self._run(job) if missing else None
            with closing(job.split.stream(_rows(block) for block in missing)) as batches:
                for block, batch in zip(missing, batches, strict=True):
                    if run is None or job.over:
                        break
                    if not self._claimed(job, block, batch, run):
                        waiting.append((job, block))
            if job.done() == job.count:
                self._tell(job)
        return waiting

    def _by_block(self, jobs: Sequence[Job]) -> list[tuple[Job, Block]]:
        """Each block in turn, for all jobs."""
        waiting: list[tuple[Job, Block]] = []
        runs: dict[int, CellRun] = {}
        order = sorted(
            (
                (block.first, place, job, block)
                for place, job in enumerate(jobs)
                for block in self._shifted(job)
            ),
            key=lambda one: (self._turn(one[0]), one[1]),
        )
        for _, place, job, block in order:
            if job.over or self._settled(job, block):
                continue
            if self.late:
                continue  # what is stored is read all the same
            self.progress.cell_started(job.shown)
            run = runs.get(place) or self._run(job)
            if run is not None:
                runs[place] = run
                if not self._claimed(job, block, job.split.fetch(_rows(block)), run):
                    waiting.append((job, block))
        return waiting

    def _shifted(self, job: Job) -> list[Block]:
        """The job's blocks, from this process's own on."""
        return sorted(self.blocks_of(job), key=lambda block: self._turn(block.first))

    def _turn(self, first: int) -> tuple[int, int]:
        i, n = self.shard
        return (first // BLOCK - (i - 1)) % n, first

    def _settled(self, job: Job, block: Block) -> bool:
        """Whether a block, and what targets make of it, is there; taken over if so."""
        if block.first in job.outcomes:
            return True
        own = self.store.get(block)
        if own is None or (job.attacks and job.keeps and self.store.lacks_examples(block)):
            return False
        received = {}
        for target in job.willing:
            found = self.store.get(_of(target.cell, block))
            if found is None:
                return False
            received[target.cell] = found
        self._take(job, block, own, received)
        return True

    def _claimed(
        self, job: Job, block: Block, batch: Batch | None = None, run: CellRun | None = None
    ) -> bool:
        """Compute a block unless another process does; whether that is settled here.

        Images and what computes are made where they lack, once the block is claimed.
        """
        with self.store.claim(block) as free:
            if not free:
                return False
            if not self._settled(job, block):
                run = self._run(job) if run is None else run
                if run is not None:
                    batch = job.split.fetch(_rows(block)) if batch is None else batch
                    try:
                        self._compute(job, block, batch, run)
                    except CELL_ERRORS as error:
                        self._fail(job, error)
        return True

    def _run(self, job: Job) -> CellRun | None:
        """What computes a job; None if that cannot be made, which is noted."""
        try:
            return job.run()
        except CELL_ERRORS as error:
            self._fail(job, error)
            return None

    def _fail(self, job: Job, error: PhalanxError) -> None:
        job.error = error
        left = job.count - sum(done.bits.shape[1] for done in job.outcomes.values())
        self.progress.cell_failed(job.shown, images=left, reason=str(error))

    def _compute(self, job: Job, block: Block, batch: Batch, run: CellRun) -> None:
        own = self.store.get(block)
        examples: Tensor | None = self.store.kept(block) if own is not None else None
        if own is None or examples is None:
            examples, own = run.made(batch, block.first)
            if run.attack is not None and job.keeps:
                self.store.keep(block, examples)
                self.store.sample(block, examples, own.bits)
        received = {}
        for target in job.willing:
            other = _of(target.cell, block)
            found = self.store.get(other)
            if found is None:
                judge = CellRun(target.model, target.cell)
                try:
                    found = judge.outcome(batch, block.first, examples)
                except CELL_ERRORS:  # its own cells say why; this one is another model's
                    job.spoilt.add(target.cell)
                    continue
                self.store.put(other, found)
            received[target.cell] = found
        self.store.put(block, own)  # last: where it is, all that hangs on it was there once
        job.stored = False
        self._take(job, block, own, received)

    def _take(self, job: Job, block: Block, own: Outcome, received: dict[Cell, Outcome]) -> None:
        job.outcomes[block.first] = own
        for cell, found in received.items():
            job.received.setdefault(cell, {})[block.first] = found
        self.progress.images_done(block.rows)

    def _finish(self, job: Job) -> None:
        """Progress for a job that waited for others, and warnings."""
        if job.error is not None or not job.outcomes:
            return
        violations = sum(block.violations for block in job.outcomes.values())
        if violations and not job.stored:
            warnings.warn(
                f"{job.shown}: {violations} of {job.count} examples broke the threat "
                f"{job.cell.threat} or the box, or were not finite; their clean images count "
                "instead",
                ValidityWarning,
                stacklevel=3,
            )
        self._tell(job)

    def _tell(self, job: Job) -> None:
        """Say once what a job came to."""
        done = job.done()
        if done and not job.told:
            job.told = True
            share = accuracy(job.outcome(done).bits)
            self.progress.cell_finished(job.shown, accuracy=share, stored=job.stored)


def blocks_in(cell: Cell, split: Split, count: int) -> list[Block]:
    """A cell's blocks on the first `count` rows of a split, whose images are read for it."""
    starts = [(first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
    with closing(split.stream(slice(first, first + rows) for first, rows in starts)) as batches:
        return [
            Block(cell, first, rows, digest_of_batch(batch))
            for (first, rows), batch in zip(starts, batches, strict=True)
        ]


def _of(cell: Cell, block: Block) -> Block:
    """The same rows of another cell."""
    return Block(cell, block.first, block.rows, block.digest)


def _rows(block: Block) -> slice:
    return slice(block.first, block.first + block.rows)
