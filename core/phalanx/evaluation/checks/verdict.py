"""From checks to what is said of a defense (`masking_of`) and of each number (`verdicts`).

`masking` is said of the defense, by its checks. A verdict is said of a row: a failed check makes
the rows unreliable on which it bears, and all others no better than caution. Robust accuracy is an
upper bound, so a `worst` row stays reliable where an attack on which no failure bears reaches it,
and a number at or below chance is never unreliable; but where randomness or batch-mates
move undeclared, or examples broke their budget, every row is, until that is mended.

The rows of one defense are judged together. A check whose id ends in ``@threat`` speaks of that
threat alone; any other speaks of all rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from phalanx.evaluation.checks.table import base_id
from phalanx.evaluation.findings import Check, Masking, Status
from phalanx.evaluation.rows import JOIN, WORST, Row, Verdict

RowKey = tuple[str, str, str]
"""View, attack, threat."""

FREE = frozenset({"logits", "stochastic", "batch_dependence", "dynamic", "budget"})
"""The checks that cost nothing: any protocol runs them."""
REQUIRED = frozenset(
    {
        "stochastic",
        "batch_dependence",
        "dynamic",
        "grad_bad",
        "grad_fd",
        "black_box",
        "transfer",
        "unbounded",
        "converged_steps",
        "budget",
    }
)
"""Of every model; a stochastic one needs `FOR_STOCHASTIC` too, an ensemble `FOR_ENSEMBLES`."""
FOR_STOCHASTIC = frozenset({"eot_k"})
FOR_ENSEMBLES = frozenset({"ensemble_reweight"})
MASKS = frozenset(
    {
        "stochastic",
        "batch_dependence",
        "dynamic",
        "grad_bad",
        "grad_fd",
        "grad_deployed",
        "black_box",
        "transfer",
        "unbounded",
        "ensemble_reweight",
    }
)
"""Checks of which a failure means masking."""
_ON_ALL = frozenset({"stochastic", "batch_dependence", "budget"})
_ON_GRADIENTS = frozenset({"grad_fd", "grad_deployed", "dynamic", "unbounded", "converged_steps"})
_ON_WEAKER = frozenset({"black_box", "transfer", "ensemble_reweight"})
EOT_VIEW = "deployed"
"""The view on which `eot_k` averages gradients over draws."""

PRECEDENCE: tuple[Verdict, ...] = ("unreliable", "incomplete", "screened", "caution", "trusted")
"""The first that applies."""
_MASKING: dict[Masking, str] = {
    "yes": "gradients are masked",
    "no": "no masking was found",
    "unknown": "whether gradients are masked is unknown",
}


@dataclass(frozen=True)
class AttackFacts:
    """What is known of the attack of a row.

    Attributes:
        gradient: whether it follows the model's gradient.
        loss: name of the loss that it ascends, as in ``grad_bad:name``; None of no single one.
    """

    gradient: bool
    loss: str | None = None


def masking_of(checks: Iterable[Check], *, required: Collection[str] = REQUIRED) -> Masking:
    """Whether the defense masks its gradients: ``yes``, ``no`` or ``unknown``.

    Args:
        checks: all that were made.
        required: ids that have to have run; of them only those that can show masking count.
    """
    checks = list(checks)
    if any(one.status == "fail" and base_id(one.id) in MASKS for one in checks):
        return "yes"
    return "unknown" if MASKS & _missing(checks, required) else "no"


def verdicts(
    rows: Sequence[Row],
    checks: Sequence[Check],
    *,
    facts: Mapping[RowKey, AttackFacts],
    chance: float,
    required: Collection[str] = REQUIRED,
) -> tuple[Row, ...]:
    """The rows of one defense, in their order, each with its verdict.

    An `adaptive` check that is ``not-run`` says that the attack is needed and missing, which makes
    every row incomplete; without the check nothing is said of it.

    Args:
        rows: of cells, and of the worst over them.
        checks: of the defense.
        facts: of the attack of each row but the worst ones.
        chance: 1/K.
        required: ids of the checks that this model requires.

    Raises:
        ValueError: if the attack of a row is unknown.
    """
    bearing = _bearing(rows, checks, facts)
    found = []
    for row in rows:
        own = [one for one in checks if _speaks_of(one, row)]
        hit = any(key_of(row) in touched for touched in bearing.values())
        hit &= row.robust_accuracy > chance
        hit |= any(one.status == "fail" and base_id(one.id) in _ON_ALL for one in own)
        verdict = _verdict(own, required, hit=hit)
        found.append(row.model_copy(update={"verdict": verdict}))
    return tuple(found)


def with_touches(
    rows: Sequence[Row], checks: Sequence[Check], *, facts: Mapping[RowKey, AttackFacts]
) -> tuple[Check, ...]:
    """The checks, failed ones with the rows on which they bear; arguments as of `verdicts`."""
    bearing = _bearing(rows, checks, facts)
    return tuple(
        one.model_copy(
            update={
                "touches": tuple(key_of(row) for row in rows if key_of(row) in bearing[at]),
                "bears_on_all": base_id(one.id) in _ON_ALL,
            }
        )
        if at in bearing
        else one
        for at, one in enumerate(checks)
    )


def severest(found: Iterable[Verdict]) -> Verdict:
    """Of several verdicts the one that comes first in precedence; at least one is given."""
    return min(found, key=PRECEDENCE.index)


def sentence(
    verdict: Verdict,
    checks: Sequence[Check],
    *,
    masking: Masking,
    required: Collection[str] = REQUIRED,
) -> str:
    """One sentence: what the verdict on a defense's worst row rests on.

    Args:
        verdict: of the row.
        checks: of the defense.
        masking: as `masking_of` says.
        required: as there.
    """
    missing = _missing(checks, {*required, *FREE})
    if any(base_id(one.id) == "adaptive" and one.status == "not-run" for one in checks):
        missing.add("adaptive")
    said = [
        f"{_listed(names)} {verb if len(names) == 1 else verbs}"
        for names, verb, verbs in (
            (_named(checks, "fail"), "fails", "fail"),
            (_named(checks, "warn"), "warns", "warn"),
            (sorted(missing), "has not run", "have not run"),
        )
        if names
    ]
    rests = "; ".join(said) or f"all {len(required)} required checks pass"
    return f"{verdict.capitalize()}: {rests}; {_MASKING[masking]}."


def key_of(row: Row) -> RowKey:
    """Its view, attack and threat."""
    return row.view, row.attack, row.threat


def _named(checks: Iterable[Check], status: Status) -> list[str]:
    return sorted({one.id for one in checks if one.status == status})


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _parts(threat: str) -> set[str]:
    return set(threat.split(JOIN))


def _speaks_of(check: Check, row: Row) -> bool:
    """Whether the check is of all threats, or of (a part of) the row's."""
    scope = check.id.partition("@")[2]
    return not scope or _parts(scope) <= _parts(row.threat)


def _missing(checks: Sequence[Check], required: Collection[str]) -> set[str]:
    """The required ids of which nothing, or not everything, has run."""
    present = {base_id(one.id) for one in checks}
    undone = {base_id(one.id) for one in checks if one.status == "not-run"}
    return {name for name in required if name not in present or name in undone}


def _verdict(checks: Sequence[Check], required: Collection[str], *, hit: bool) -> Verdict:
    """The first that applies; `hit`: a failure bears on the row, and it is above chance."""
    missing = _missing(checks, required)
    transfer = [one for one in checks if base_id(one.id) == "transfer"]
    if transfer:
        missing.discard("transfer")  # without a source it caps at caution
    if hit:
        return "unreliable"
    if _missing(checks, FREE) or any(
        one.status == "not-run" and base_id(one.id) == "adaptive" for one in checks
    ):
        return "incomplete"
    if missing:
        return "screened"
    if any(one.status in ("warn", "fail") for one in checks) or any(
        one.status == "not-run" for one in transfer
    ):
        return "caution"
    return "trusted"


def _bearing(
    rows: Sequence[Row], checks: Sequence[Check], facts: Mapping[RowKey, AttackFacts]
) -> dict[int, set[RowKey]]:
    """Place of each failed check -> the rows on which it bears.

    A worst row takes no harm where a cell on which none of the failures bears reaches it, that
    is, has an accuracy within its interval.
    """
    cells = [row for row in rows if row.attack != WORST]
    unknown = [key_of(row) for row in cells if key_of(row) not in facts]
    if unknown:
        raise ValueError(f"the facts name no attack of the rows {unknown}; give each one's")
    worst = {row.threat: row for row in rows if row.attack == WORST}
    failed = {at: one for at, one in enumerate(checks) if one.status == "fail"}
    found = {
        at: {
            key_of(row)
            for row in cells
            if _speaks_of(one, row) and _bears_on(one, row, facts[key_of(row)], worst)
        }
        for at, one in failed.items()
    }
    touched = {key for keys in found.values() for key in keys}
    for row in worst.values():
        of_row = [cell for cell in cells if _parts(cell.threat) <= _parts(row.threat)]
        witnessed = any(
            key_of(cell) not in touched and cell.robust_accuracy <= row.ci95[1] for cell in of_row
        )
        for at, one in failed.items():
            everything = base_id(one.id) in _ON_ALL and _speaks_of(one, row)
            parts = any(key_of(cell) in found[at] for cell in of_row)
            if everything or (parts and not witnessed):
                found[at].add(key_of(row))
    return found


def _bears_on(check: Check, row: Row, facts: AttackFacts, worst: Mapping[str, Row]) -> bool:
    """Whether a failure of the check bears on a cell's row.

    "Significantly above worst" is an accuracy above the upper end of worst's interval, so that a
    row which does not reach `worst` is touched, and one that reaches it vouches for it.
    """
    name = base_id(check.id)
    if name in _ON_ALL:
        return True
    if name in _ON_GRADIENTS:
        return facts.gradient
    if name in _ON_WEAKER:
        lowest = worst.get(row.threat)
        return lowest is None or row.robust_accuracy > lowest.ci95[1]
    if name == "grad_bad":
        loss = check.id.partition("@")[0].partition(":")[2]
        return facts.gradient and facts.loss == loss
    return name == "eot_k" and row.view == EOT_VIEW
