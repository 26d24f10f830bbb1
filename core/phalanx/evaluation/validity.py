"""Examining a defense: every check in turn, what verdict each number has, and what is masked.

The checks themselves are pure functions (`phalanx.evaluation.checks`); here they get what they ask
for. Those that cost nothing run under every protocol; the others, of the tiers core and full, where
the protocol asks for them. A check that fails to run says so, and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phalanx.evaluation import checks, contents
from phalanx.evaluation.cell import TRANSFER
from phalanx.evaluation.checks import AttackFacts
from phalanx.evaluation.core_checks import core, free
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.facts import facts_of
from phalanx.evaluation.findings import Check, Curve, DefenseFindings, Example, Transfer
from phalanx.evaluation.full_checks import full
from phalanx.evaluation.loop import Loop, Measurements
from phalanx.evaluation.planning import averages
from phalanx.evaluation.rows import JOIN, WORST, Row
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.specs import L1, L2, Linf, Threat, parse_threat

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
    curves: list[Curve] = []
    transfers: list[Transfer] = []
    diverse: dict[str, float] = {}
    if plan.checks != "free" and balls:
        for examined in at:
            text = str(examined.threat)
            loop.engine.progress.cell_started(f"{subject.name}, checks ({text})")
            own = [*core(examined), *(full(examined) if plan.checks == "full" else ())]
            mark = f"@{text}" if len(balls) > 1 else ""
            found += [one.model_copy(update={"id": one.id + mark}) for one in own]
            found += _of_plugins(examined)
            curves += [one for one in [contents.curve(examined)] if one is not None]
            transfers += [one for one in [contents.members_of(examined)] if one is not None]
        diverse = contents.diversity_of(at[0]) if at else {}
    found.append(_budget(subject, measured))
    judged, findings = _judged(subject, rows, found, measured=measured, loop=loop)
    more = {
        "diversity": diverse,
        "facts": contents.facts(subject, loop.images.split),
        "claims": contents.ledger(subject),
    }
    return Judged(
        judged,
        findings.model_copy(update=more),
        tuple(curves),
        tuple(transfers),
        tuple(contents.examples(subject, loop, measured)),
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


def _budget(subject: Subject, measured: Measurements) -> Check:
    """Of all cells together."""
    count = measured.counts[subject.name]
    outcomes = [one.job.outcome(count) for one in measured.finished(subject.name)]
    violations = sum(one.violations for one in outcomes)
    return checks.budget(violations, count * len(outcomes))


def _of_plugins(examined: Examined) -> list[Check]:
    """Checks that plugins add; none of them is required."""
    found: list[Check] = []
    for plugin, given in examined.loop.maker.registry.ask("phalanx_validity_checks"):
        for check in given or ():
            name = f"{plugin}/{getattr(check, '__name__', 'check')}"
            try:
                made: Check | None = check(examined)
            except Exception as error:  # a plugin raises anything
                reason = f"It could not run: {type(error).__name__}: {error}."
                made = Check(id=name, status="not-run", reason=reason, source=plugin)
            found += [] if made is None else [made]
    return found
