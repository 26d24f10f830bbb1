"""Examining a defense: every check in turn, what verdict each number has, and what is masked.

The checks themselves are pure functions (`phalanx.evaluation.checks`); here they get what they ask
for. Those that cost nothing run under every protocol; the others, of the tiers core and full, where
the protocol asks for them. A check that fails to run says so, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from phalanx import randomness
from phalanx.evaluation import checks, contents, pictures
from phalanx.evaluation.cell import TRANSFER
from phalanx.evaluation.checks import AttackFacts, Thresholds
from phalanx.evaluation.checks.table import base_id
from phalanx.evaluation.core_checks import NOT_OF_THE_MODEL, core, free
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.facts import facts_of
from phalanx.evaluation.findings import Check, Curve, DefenseFindings, Example, Transfer
from phalanx.evaluation.full_checks import full
from phalanx.evaluation.loop import Loop, Measurements
from phalanx.evaluation.planning import averages
from phalanx.evaluation.rows import JOIN, WORST, Row
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.specs import L1, L2, Linf, Threat, parse_threat

_Made = TypeVar("_Made")
CHECKS = "checks"
"""Folder of kept answers within the output folder."""


@dataclass(frozen=True)
class Judged:
    """What came of examining a defense.

    Attributes:
        rows: its rows with their verdicts.
        findings: checks, masking and what else is said of it.
        curves: accuracy against radius, one for each ball.
        transfers: its members' matrices.
        examples: some adversarial examples as pictures.
    """

    rows: tuple[Row, ...]
    findings: DefenseFindings
    curves: tuple[Curve, ...]
    transfers: tuple[Transfer, ...]
    examples: tuple[Example, ...]


@randomness.seeded("examine")  # for networks that draw from the global generators
def examine(
    subject: Subject,
    plan: Plan,
    rows: Sequence[Row],
    *,
    loop: Loop,
    measured: Measurements,
    folder: Path | None,
) -> Judged:
    """Check a defense, and judge its rows.

    Args:
        subject: the defense.
        plan: how it was attacked; says which checks follow.
        rows: its rows.
        loop: runs further attacks.
        measured: what came of the protocol.
        folder: of the evaluation; None keeps nothing.
    """
    kept = None if folder is None else folder / CHECKS
    balls = _balls(rows)
    at = [
        Examined(subject, plan, loop, measured, threat, kept) for threat in balls or [Linf(eps=0.0)]
    ]
    at = [one for one in at if len(one.rows)]
    found = [*free(at[0])] if at else []

    def tried(what: str, make: Callable[[], _Made]) -> _Made | None:
        """What a report holds besides; None, and a note, where somebody's network raises."""
        try:
            return make()
        except NOT_OF_THE_MODEL:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            loop.notes.append(f"{subject.name}: {what} could not be made: {told}.")
            return None

    curves: list[Curve] = []
    transfers: list[Transfer] = []
    diverse: dict[str, float] = {}
    if plan.checks != "free" and balls:
        for examined in at:
            text = str(examined.threat)
            loop.engine.progress.started(cells=1, images=0)
            loop.engine.progress.cell_started(f"{subject.name}, checks ({text})")
            own = [*core(examined), *(full(examined) if plan.checks == "full" else ())]
            own += _of_plugins(examined)
            mark = f"@{text}" if len(balls) > 1 else ""
            found += [one.model_copy(update={"id": one.id + mark}) for one in own]
            curve = tried("security curve", partial(contents.curve, examined))
            members = tried("transfer between members", partial(contents.members_of, examined))
            curves += [] if curve is None else [curve]
            transfers += [] if members is None else [members]
        diverse = (tried("diversity", lambda: contents.diversity_of(at[0])) if at else None) or {}
        diverse |= contents.robustness_average(transfers[:1])
    found.append(_budget(subject, measured, plan.thresholds))
    judged, findings = _judged(subject, rows, found, measured=measured, loop=loop)
    more = {
        "diversity": diverse,
        "facts": tried("size and latency", lambda: contents.facts(subject, loop.images.split)),
        "claims": contents.ledger(subject),
    }
    return Judged(
        judged,
        findings.model_copy(update=more),
        tuple(curves),
        tuple(transfers),
        tried("pictures", lambda: pictures.examples(subject, loop, measured)) or (),
    )


def _judged(
    subject: Subject,
    rows: Sequence[Row],
    found: Sequence[Check],
    *,
    measured: Measurements,
    loop: Loop,
) -> tuple[tuple[Row, ...], DefenseFindings]:
    """Verdicts and masking from the checks."""
    required = required_of(subject, loop)
    facts = _facts(subject, measured, rows)
    classes = measured.clean[subject.name].outcome(measured.counts[subject.name]).classes
    judged = checks.verdicts(rows, found, facts=facts, chance=1.0 / classes, required=required)
    found = checks.with_touches(rows, found, facts=facts)
    masking = checks.masking_of(found, required=required)
    worst = [row for row in judged if row.attack == WORST]
    said = ""
    if worst:
        verdict = checks.severest(row.verdict for row in worst)
        said = checks.sentence(verdict, found, masking=masking, required=required)
    return judged, DefenseFindings(
        defense=subject.name, masking=masking, checks=tuple(found), sentence=said
    )


def required_of(subject: Subject, loop: Loop) -> frozenset[str]:
    """Ids of the checks that this model requires."""
    required = checks.REQUIRED
    if subject.model.stochastic and not subject.model.support():
        required |= checks.FOR_STOCHASTIC
    if averages(subject, loop.images.split.shape):
        required |= checks.FOR_ENSEMBLES
    return required


def _balls(rows: Sequence[Row]) -> list[Threat]:
    """The balls at which attacks ran; a union's parts are examined where they were attacked."""
    texts = dict.fromkeys(row.threat for row in rows if row.attack != WORST)
    found = [parse_threat(text) for text in texts if text != "none" and JOIN not in text]
    return [one for one in found if isinstance(one, Linf | L2 | L1)]


def _facts(
    subject: Subject, measured: Measurements, rows: Sequence[Row]
) -> dict[tuple[str, str, str], AttackFacts]:
    """Of each cell's row, what is known of its attack."""
    found = {
        (row.view, row.attack, row.threat): AttackFacts(gradient=False)
        for row in rows
        if row.view == TRANSFER
    }
    for one in measured.finished(subject.name):
        if one.task.use is not None:
            key = (one.task.view_name, one.task.label, one.task.threat)
            found[key] = facts_of(one.task.use)
    return found


def _budget(subject: Subject, measured: Measurements, thresholds: Thresholds) -> Check:
    """Of all cells together."""
    count = measured.counts[subject.name]
    outcomes = [one.job.outcome(count) for one in measured.finished(subject.name)]
    violations = sum(one.violations for one in outcomes)
    excess = max((one.excess for one in outcomes), default=0.0)
    known = math.isfinite(excess) and (excess > 0.0 or not violations)
    return checks.budget(
        violations,
        count * len(outcomes),
        excess=excess if known else None,
        thresholds=thresholds,
    )


def _of_plugins(examined: Examined) -> list[Check]:
    """Checks that plugins add; none of them is required, nor stands for one of the core's."""
    found: list[Check] = []
    for plugin, given in examined.loop.maker.registry.ask("phalanx_validity_checks"):
        try:
            asked = list(given or ())
        except Exception as error:  # a plugin that answers with a generator raises anything here
            found.append(_failed(f"{plugin}/checks", plugin, error))
            continue
        for check in asked:
            name = f"{plugin}/{getattr(check, '__name__', 'check')}"
            try:
                made = check(examined)
                if not isinstance(made, Check | None):
                    raise TypeError(f"it gave {type(made).__name__}, not a Check")
            except NOT_OF_THE_MODEL:
                raise
            except Exception as error:  # a plugin raises anything
                made = _failed(name, plugin, error)
            if made is not None and base_id(made.id) in checks.TABLE:
                made = made.model_copy(update={"id": f"{plugin}/{made.id}"})
            found += [] if made is None else [made]
    return found


def _failed(name: str, plugin: str, error: Exception) -> Check:
    reason = f"It could not run: {type(error).__name__}: {error}."
    return Check(id=name, status="not-run", reason=reason, source=plugin)
