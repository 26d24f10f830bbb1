"""Checks of the path that an attack took, seen by an observer.

Silent success and incomplete optimisation: Pintor et al., "Indicators of attack failure" (NeurIPS
2022, arXiv 2106.09947). Consistent losses: Tramèr et al., "On adaptive attacks to adversarial
example defenses" (NeurIPS 2020, arXiv 2002.08347), their fourth theme.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.attack import Scores
from phalanx.attacks.losses import margin
from phalanx.evaluation.checks.shares import lower_end, right, status_above
from phalanx.evaluation.checks.table import made, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check, Status

LAST = 10
"""Steps at the end of a run over which its loss should rest."""
MOVES = 0.05
"""Share of the whole range of the loss above which it still moves."""
SHORTEST = 2 * LAST
"""Iterates of a run of which an end can be told from the rest."""
_KEPT = 128  # iterates of a run that are ranked; of longer runs every second, fourth, ...


@dataclass(frozen=True)
class Path:
    """What an attack went through, per image.

    Attributes:
        visited: whether some iterate was misclassified, ``(N,)``; None without scores.
        moved: how far the best loss so far rose in the last 10 iterates of a run, in shares of the
            loss's range there, ``(N,)``; of the run that ended highest.
        rank: Spearman's correlation of loss and margin along a run, ``(N,)``, its mean over runs;
            0 where only the margin changes, NaN where it does not; None without scores.
        shortest: iterates of the shortest run.
    """

    visited: Tensor | None
    moved: Tensor
    rank: Tensor | None
    shortest: int


class PathObserver:
    """Sees every iterate of an attack on one batch (`phalanx.attack.Observer`).

    A run begins at step 0, or where the step does not grow. Memory does not grow with the number
    of steps: at most 138 numbers for each image and quantity.

    Args:
        scores: the attacked function, or one on a stream of its own, asked once for each iterate;
            None: only the loss is seen.
        y: the batch's labels ``(N,)``.
    """

    def __init__(self, scores: Scores | None, y: Tensor) -> None:
        self._scores = scores
        self._y = y
        self._visited = torch.zeros_like(y, dtype=torch.bool)
        self._moved = torch.zeros(len(y), dtype=torch.float64)
        self._highest = torch.full((len(y),), -torch.inf, dtype=torch.float64)
        self._ranks: list[Tensor] = []
        self._shortest = 0
        self._run: _Run | None = None

    def __call__(self, step: int, x: Tensor, loss: Tensor) -> None:
        """Take an iterate ``(N, C, H, W)`` and its loss ``(N,)``."""
        if self._run is not None and step <= self._run.step:
            self._close()
        if self._run is None:
            self._run = _Run()
        lead = None
        if self._scores is not None:
            with torch.no_grad():
                scores = self._scores(x)
            lead = margin(scores, self._y)
            self._visited |= scores.argmax(1) != self._y
        self._run.take(step, loss.detach(), lead)

    def path(self) -> Path:
        """What was seen so far; the run that is going on counts as finished.

        Raises:
            ValueError: if nothing was seen.
        """
        if self._run is not None:
            self._close()
        if not self._shortest:
            raise ValueError("an observer that saw no iterate has no path: give it to an attack")
        seen = self._scores is not None
        rank = torch.stack(self._ranks).nanmean(0) if seen else None
        return Path(self._visited.cpu() if seen else None, self._moved, rank, self._shortest)

    def _close(self) -> None:
        """Take the finished run into what is kept of all of them."""
        assert self._run is not None  # only of a run that has begun
        run, self._run = self._run, None
        highest = run.best[-1].double().cpu()
        higher = highest > self._highest
        self._moved = torch.where(higher, run.moved().double().cpu(), self._moved)
        self._highest = torch.where(higher, highest, self._highest)
        self._shortest = min(self._shortest or run.count, run.count)
        if run.margins:
            losses, margins = torch.stack(run.losses).cpu(), torch.stack(run.margins).cpu()
            self._ranks.append(spearman(losses, margins))


class _Run:
    """One run of an attack: its last best losses, and a thinned record of losses and margins."""

    def __init__(self) -> None:
        self.step = -1
        self.count = 0
        self.best: deque[Tensor] = deque(maxlen=LAST)
        self.losses: list[Tensor] = []
        self.margins: list[Tensor] = []
        self._lowest: Tensor | None = None
        self._stride = 1

    def take(self, step: int, loss: Tensor, lead: Tensor | None) -> None:
        """An iterate's loss and margin ``(N,)``."""
        # NaN is neither higher nor lower than what was seen
        up, down = loss.nan_to_num(-torch.inf), loss.nan_to_num(torch.inf)
        self._lowest = down if self._lowest is None else torch.minimum(self._lowest, down)
        self.best.append(torch.maximum(self.best[-1], up) if self.best else up)
        if lead is not None and self.count % self._stride == 0:
            self.losses.append(loss)
            self.margins.append(lead)
            if len(self.losses) > _KEPT:
                self._stride *= 2
                self.losses, self.margins = self.losses[::2], self.margins[::2]
        self.step, self.count = step, self.count + 1

    def moved(self) -> Tensor:
        """Rise of the best loss over the last iterates, over the range of the loss: ``(N,)``."""
        assert self._lowest is not None  # a run has an iterate
        rise, spread = self.best[-1] - self.best[0], self.best[-1] - self._lowest
        return (rise / spread).nan_to_num(0.0, 0.0, 0.0)  # a flat loss does not move


def joined(paths: Sequence[Path]) -> Path:
    """The path of several batches, one after another; at least one."""
    visited = [path.visited for path in paths if path.visited is not None]
    ranks = [path.rank for path in paths if path.rank is not None]
    return Path(
        visited=torch.cat(visited) if len(visited) == len(paths) else None,
        moved=torch.cat([path.moved for path in paths]),
        rank=torch.cat(ranks) if len(ranks) == len(paths) else None,
        shortest=min(path.shortest for path in paths),
    )


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of columns, equal values at their mean rank.

    Args:
        one: ``(T, N)``.
        other: ``(T, N)``.

    Returns:
        ``(N,)``; 0 where `one` is constant or not finite, NaN where `other` is.
    """
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(0), b - b.mean(0)
    power = (a.square().sum(0) * b.square().sum(0)).sqrt()
    found = torch.where(power > 0, (a * b).sum(0) / power, 0.0)
    found = torch.where(one.isfinite().all(0), found, 0.0)
    varies = b.square().sum(0) > 0
    return torch.where(varies & other.isfinite().all(0), found, torch.nan)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 within each column ``(T, N)``; equal values share their mean rank."""
    below = (values[None] < values[:, None]).sum(1).double()
    equal = (values[None] == values[:, None]).sum(1).double()
    return below + (equal - 1.0) / 2.0


def silent(path: Path, returned: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Images of which some iterate was adversarial and the returned example is not.

    Args:
        path: of the attack.
        returned: outcome of what it returned, ``(N,)`` shares or bits.
        thresholds: of the share of all images.
    """
    limits, n = thresholds.silent, len(returned)
    if path.visited is None:
        return not_run("silent", "The path was seen without scores.", threshold=limits.words())
    count = int((path.visited & right(returned).cpu()).sum())
    return made(
        "silent",
        status_above(lower_end(count, n), warn=limits.warn, fail=limits.fail),
        f"On {count} of {n} paths an iterate was adversarial and the returned example is not.",
        value=count / n,
        count=count,
        n=n,
        threshold=limits.words(),
    )


def incomplete(
    path: Path,
    returned: Tensor,
    *,
    converged: Status | None,
    thresholds: Thresholds = DEFAULTS,
) -> Check:
    """Failed images whose loss still moved at the end of the attack.

    Rescaled to [0, 1] over the run, the best loss so far moves by more than 0.05 in the last 10
    iterates. It moves on sound models too (90 % after PGD-40), so it fails only together with
    `converged_steps`.

    Args:
        path: of the attack; its runs have at least 20 iterates, else this has not run.
        returned: outcome of what it returned, ``(N,)`` shares or bits.
        converged: status of `converged_steps`; None if there is none.
        thresholds: of the share of failed images.
    """
    limits = thresholds.incomplete
    failed = right(returned).cpu()
    n, count = int(failed.sum()), int((failed & (path.moved > MOVES)).sum())
    words = f"{limits.words()}; fails only together with converged_steps"
    if path.shortest < SHORTEST:
        reason = f"A run of {path.shortest} iterates is too short: {SHORTEST} have an end."
        return not_run("incomplete", reason, n=n, threshold=words)
    lower = lower_end(count, n) if n else 0.0
    fail = limits.fail if converged == "fail" else None
    return made(
        "incomplete",
        status_above(lower, warn=limits.warn, fail=fail),
        f"Of {n} images that the attack did not break, {count} had a loss that still moved.",
        value=count / n if n else 0.0,
        count=count,
        n=n,
        threshold=words,
    )


def loss_rank(path: Path, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Whether a higher loss means nearer to misclassified: the median correlation of ranks.

    Per image along its path, then the median over the images whose margin changed. A loss that
    rests while the margin changes has a correlation of 0.

    Args:
        path: of the attack, seen with scores.
        thresholds: of the median.
    """
    words = f"{thresholds.loss_rank.words()} (median over images)"
    if path.rank is None:
        return not_run("loss_rank", "The path was seen without scores.", threshold=words)
    known = path.rank[~path.rank.isnan()]
    if len(known) == 0:
        return not_run("loss_rank", "No margin changed along any path.", n=0, threshold=words)
    value = float(known.quantile(0.5))
    return made(
        "loss_rank",
        thresholds.loss_rank.status(value),
        f"Loss and margin along a path have a median rank correlation of {value:.3f}.",
        value=value,
        n=len(known),
        threshold=words,
    )
