"""Checks of what a model is: its outputs, its randomness, its batches, its state.

Each asks the module as it is given, under `torch.no_grad`; the caller chooses its mode, with
`phalanx.attack.attacking` or `answering`. Tests of randomness, of probabilities and of gradients
inside a forward: Croce and Hein, "Reliable evaluation of adversarial robustness" (ICML 2020, arXiv
2003.01690) and its code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn import functional

from phalanx import randomness
from phalanx.attack import Scores
from phalanx.attacks.balls import per_row
from phalanx.evaluation.checks.table import made, not_applicable, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Check

CALLS = 5
"""Forwards that follow one another, before the one with other global seeds."""


def logits(scores: Tensor, *, thresholds: Thresholds = DEFAULTS) -> Check:
    """Whether outputs look like probabilities, of which attacks would take the softmax again.

    Args:
        scores: outputs of one batch, ``(N, K)``.
        thresholds: `logits` is how far outputs may be from [0, 1], and row sums from 1.
    """
    values, near = scores.detach().double(), thresholds.logits
    outside = torch.maximum(-values.amin(1), values.amax(1) - 1.0).clamp_min(0.0)
    off = torch.maximum(outside, (values.sum(1) - 1.0).abs())
    alike = off <= near
    every = bool(alike.all())
    return made(
        "logits",
        "warn" if every else "pass",
        "Every row of scores is in [0, 1] and sums to 1: they are probabilities, and attacks take "
        "the softmax of them once more; answer with their logarithm."
        if every
        else "The scores are no probabilities.",
        value=float(off.max()),
        count=int(alike.sum()),
        n=len(scores),
        threshold=f"warns where every row is within {near:g} of probabilities",
    )


def stochastic(
    scores: Scores, x: Tensor, *, declared: bool, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Whether answers to the same images vary, against what the model declares.

    Five calls follow one another on one opened module, with no seeding between them; a sixth one
    follows after torch's, numpy's and Python's global seeds were moved, which finds randomness
    that a module rewinds. All global states are as before afterwards.

    Args:
        scores: one opened module, images to scores ``(N, K)``.
        x: images ``(N, C, H, W)``.
        declared: whether the model says that it is stochastic.
        thresholds: of the largest distance between normalised scores.
    """
    with torch.no_grad(), randomness.seeded("check", "stochastic"):
        calls = [_asked(scores, x) for _ in range(CALLS)]
        with randomness.seeded("check", "stochastic", "moved"):
            moved = _asked(scores, x)
    between = max(_distance(a, b) for i, a in enumerate(calls) for b in calls[:i])
    after = max(_distance(moved, call) for call in calls)
    status = "pass" if declared else thresholds.stochastic.status(max(between, after))
    return made(
        "stochastic",
        status,
        f"Declared {'stochastic' if declared else 'deterministic'}; {CALLS} equal calls differ by "
        f"{between:.2g}, and by {after:.2g} from one with the global seeds moved.",
        value=max(between, after),
        n=len(x),
        threshold=f"{thresholds.stochastic.words()} while declared deterministic",
    )


def batch_dependence(
    scores: Scores, x: Tensor, *, declared: bool, thresholds: Thresholds = DEFAULTS
) -> Check:
    """Whether an image's scores change when other images of its batch do.

    Every second row becomes its negative while the others stay, and the other way round; then the
    same with black for the first and the second half. Batch size and positions are kept, as other
    kernels round otherwise.

    Args:
        scores: one opened module, images to scores ``(N, K)``.
        x: images ``(N, C, H, W)`` in [0, 1].
        declared: whether the model says that it is stochastic; then this does not apply.
        thresholds: of the largest distance between normalised scores.
    """
    words = thresholds.batch_dependence.words()
    if declared:
        return not_applicable(
            "batch_dependence", "The model is declared stochastic, so whole batches are attacked."
        )
    if len(x) < 2:
        return not_run("batch_dependence", "One image has no batch-mates.", n=len(x))
    at = torch.arange(len(x), device=x.device)
    odd, second = at % 2 == 1, at >= len(x) // 2
    negative, black = 1.0 - x, torch.zeros_like(x)
    largest = 0.0
    with torch.no_grad():
        plain, again = _alike(scores, x), _alike(scores, x)
        own = _distance(plain, again)
        for others, mates in (
            (odd, negative),
            (~odd, negative),
            (second, black),
            (~second, black),
        ):
            found = _alike(scores, torch.where(per_row(others, x), mates, x))
            largest = max(largest, _distance(found[~others], plain[~others]))
    if thresholds.batch_dependence.status(own) == "fail":
        return not_run(
            "batch_dependence",
            f"Two equal calls differ by {own:.2g}, so batch-mates cannot be told from chance.",
            n=len(x),
            threshold=words,
        )
    return made(
        "batch_dependence",
        thresholds.batch_dependence.status(largest),
        f"Scores change by at most {largest:.2g} when batch-mates do.",
        value=largest,
        n=len(x),
        threshold=words,
    )


def dynamic(scores: Scores, x: Tensor, *, declared: bool) -> Check:
    """Whether the module computes gradients while it answers.

    Calls of autograd's engine are counted during one forward under `torch.no_grad`: `backward`,
    `autograd.grad` and `torch.func.grad`. Forward-mode differentiation and compiled code pass it
    by and are not seen.

    Args:
        scores: one opened module, images to scores ``(N, K)``.
        x: images ``(N, C, H, W)``.
        declared: whether the defense says that it computes gradients while it answers.
    """
    with torch.no_grad(), counted_backwards() as counter:
        scores(x.clone())
    calls = counter.calls
    if calls:
        said = "as declared" if declared else "which it does not declare"
        reason = f"One forward ran {calls} backward passes of its own, {said}."
    else:
        reason = "A forward computes no gradient (forward-mode and compiled code are not seen)."
    return made(
        "dynamic",
        ("warn" if declared else "fail") if calls else "pass",
        reason,
        value=float(calls),
        count=calls,
        n=len(x),
        threshold="warns above 0 where declared, fails above 0 where not",
    )


class Counting:
    """Autograd's engine, counting its backward passes."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls = 0

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's own, counted."""
        self.calls += 1
        return self._engine.run_backward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@contextmanager
def counted_backwards() -> Iterator[Counting]:
    """Count autograd's backward passes inside; the engine comes back whatever happens."""
    engine = Variable._execution_engine
    counter = Counting(engine)
    Variable._execution_engine = counter  # type: ignore[assignment]  # a proxy, no engine
    try:
        yield counter
    finally:
        Variable._execution_engine = engine


def _asked(scores: Scores, x: Tensor) -> Tensor:
    """Normalised scores, in float64; each call gets a copy, as some networks change their input."""
    return functional.normalize(scores(x.clone()).detach().double().flatten(1), dim=1)


def _alike(scores: Scores, x: Tensor) -> Tensor:
    """The same, from the same global random states at each call."""
    with randomness.seeded("check", "batch_dependence"):
        return _asked(scores, x)


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest Euclidean distance between rows; infinite where one is not finite."""
    return float((one - other).norm(dim=1).nan_to_num(torch.inf, torch.inf).max())
