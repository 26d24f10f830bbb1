"""What each check asks and whose it is, and the making of a `Check` from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phalanx.evaluation.findings import Check, Status


@dataclass(frozen=True)
class Entry:
    """A line of the table of checks.

    Attributes:
        id: its name; a check's own id may go on with ``:loss`` and with ``@threat``.
        tier: whether it runs by default.
        asks: what it measures.
        source: whose check it is.
    """

    id: str
    tier: Literal["core", "full"]
    asks: str
    source: str


_AUTO = "AutoAttack (Croce and Hein 2020)"
_CARLINI = "Carlini et al. 2019"
_ATHALYE = "Athalye et al. 2018"
_PINTOR = "Pintor et al. 2022"
_TRAMER = "Tramèr et al. 2020"
_MORA = "MORA (2022)"
_OURS = "Phalanx"
_UNSEEN = "forward-mode differentiation and compiled code are not seen"

TABLE: dict[str, Entry] = {
    entry.id: entry
    for entry in (
        Entry("logits", "core", "whether outputs look like probabilities", _AUTO),
        Entry("stochastic", "core", "whether answers vary undeclared", f"{_AUTO}, {_OURS}"),
        Entry("batch_dependence", "core", "whether batch-mates change answers", _OURS),
        Entry("dynamic", "core", "whether a forward computes gradients", f"{_AUTO}; {_UNSEEN}"),
        Entry(
            "grad_bad",
            "core",
            "share of images without a usable gradient, for each loss ascended",
            f"ART, {_AUTO}, {_PINTOR}",
        ),
        Entry("grad_fd", "core", "autograd against central differences", _OURS),
        Entry("grad_deployed", "core", "estimator's gradient against autograd's", _OURS),
        Entry(
            "black_box",
            "core",
            "images that attacks on scores or labels break and the base does not",
            f"{_AUTO}, {_CARLINI} (8)",
        ),
        Entry(
            "transfer",
            "core",
            "images that examples of other models break and the base does not",
            f"{_CARLINI} (10), {_OURS}",
        ),
        Entry("unbounded", "core", "images not broken without a ball", f"{_ATHALYE}, {_PINTOR}"),
        Entry("converged_steps", "core", "images broken with twice the steps", f"{_CARLINI} (4)"),
        Entry("budget", "core", "examples outside ball or box, or not finite", _AUTO),
        Entry("eot_k", "core", "more draws, and none, in expectation", f"{_CARLINI} (11)"),
        Entry("ensemble_reweight", "core", "images broken with members weighed anew", _MORA),
        Entry(
            "adaptive",
            "core",
            "whether the rest of the attacks beats the adaptive one",
            f"{_TRAMER}, {_CARLINI} (8)",
        ),
        Entry("one_step", "core", "images that one step breaks and many do not", _ATHALYE),
        Entry("silent", "core", "adversarial iterates that an attack did not return", _PINTOR),
        Entry("incomplete", "core", "failed images whose loss still moves", _PINTOR),
        Entry("unstable", "core", "change of the margin under noise", _PINTOR),
        Entry("loss_rank", "core", "rank correlation of loss and margin on paths", _TRAMER),
        Entry("ensemble_dominance", "core", "images of which one member has the gradient", _MORA),
        Entry(
            "noise_gain",
            "full",
            "images that random points break and the attack does not",
            f"{_ATHALYE}, {_CARLINI} (17)",
        ),
        Entry("monotone", "full", "loss of success at a larger radius", f"{_CARLINI} (5)"),
        Entry("chance", "full", "accuracy above chance at eps = 0.5", f"{_CARLINI} (6)"),
        Entry("losses", "full", "images that another loss breaks", f"{_TRAMER} (T5)"),
        Entry("converged_restarts", "full", "images broken with twice the restarts", _CARLINI),
        Entry("binarization", "full", "planted examples not found", "Zimmermann et al. 2022"),
    )
}
"""Id -> what it asks."""


def base_id(check: str) -> str:
    """``grad_bad`` of ``grad_bad:ce@linf:8/255``."""
    return check.partition("@")[0].partition(":")[0]


def made(
    check: str,
    status: Status,
    reason: str,
    *,
    value: float | None = None,
    count: int | None = None,
    n: int | None = None,
    threshold: str = "",
) -> Check:
    """A check of this id with its source from the table.

    Raises:
        KeyError: if the table has no such check.
    """
    return Check(
        id=check,
        status=status,
        value=value,
        count=count,
        n=n,
        threshold=threshold,
        reason=reason,
        source=TABLE[base_id(check)].source,
    )


def not_run(check: str, reason: str, *, n: int | None = None, threshold: str = "") -> Check:
    """A check that has not run, and why."""
    return made(check, "not-run", reason, n=n, threshold=threshold)


def not_applicable(check: str, reason: str) -> Check:
    """A check that does not apply to this model, and why; it counts as passed."""
    return made(check, "not-applicable", reason)
