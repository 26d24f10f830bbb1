"""The claims that a reproduction answers, and the rows of reports that answer them.

A claim is found in the ledger (`phalanx.catalog`) by some of its fields, which must fit exactly
one. Whether a run's own evaluation will have the row is known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from phalanx.catalog import Catalog, Claim
from phalanx.config import RunConfig
from phalanx.errors import ConfigError
from phalanx.evaluation.labels import attack_label
from phalanx.reproduction import Answer, Answers, Declared, Reproduction, ScaleName
from phalanx.specs import Kind

CLEAN = ("clean_accuracy", "clean_mra")
"""Metrics of the ledger that are a clean accuracy: of a population, the mean over its members."""
ATTACKED = ("robust_accuracy", "mra", "population_accuracy")
"""Those that are the accuracy of a row; the row's view says of which kind."""
GAIN = "clean_accuracy_gain"
"""Points of clean accuracy above another run, or above the lowest of several."""
WORST = "worst"
"""Attack and view of a report's row that takes the worst over all cells of its threat."""
NO_THREAT = "none"


def claim_of(asked: Mapping[str, Any], component: str, catalog: Catalog) -> Claim:
    """The one claim of a defense that fits the given fields.

    Raises:
        LookupError: if none fits, or several do.
    """
    plugin = catalog.find(Kind.DEFENSE, component)
    known = plugin.component(Kind.DEFENSE, component) if plugin is not None else None
    fields = {name: value for name, value in asked.items() if name != "component"}
    fits = [claim for claim in known.claims if _fits(claim, fields)] if known is not None else []
    if len(fits) != 1:
        told = ", ".join(f"{name} = {str(value)!r}" for name, value in sorted(fields.items()))
        count = f"{len(fits)} claims" if fits else "no claim"
        raise LookupError(f"{count} of {component!r} in registry.toml with {told}, not one")
    return fits[0]


def _fits(claim: Claim, fields: Mapping[str, Any]) -> bool:
    return all(
        value in claim.setting if name == "setting" else getattr(claim, name) == value
        for name, value in fields.items()
    )


@dataclass(frozen=True)
class Wanted:
    """A claim, and where its answer stands.

    Attributes:
        claim: of the ledger.
        run: id of the run.
        scales: where it is answered.
        over: runs that a gain is measured against.
        attack: as a report names it; '' for a clean accuracy.
        threat: likewise.
        view: likewise.
        note: what a reader has to know.
        incomparable: why number and claim cannot be compared, or ''.
    """

    claim: Claim
    run: str
    scales: tuple[ScaleName, ...]
    over: tuple[str, ...] = ()
    attack: str = ""
    threat: str = ""
    view: str = ""
    note: str = ""
    incomparable: str = ""


def wanted(declared: Declared, catalog: Catalog) -> list[Wanted]:
    """All claims that a reproduction answers at one scale or another.

    Raises:
        ConfigError: with every row whose claim is not found once, or cannot be answered by a row.
    """
    problems: list[str] = []
    result = []
    for group, row in _rows(declared.reproduction):
        asked = {**group.claim.given(), **row.given()}
        component = asked.get("component") or declared.reproduction.component
        try:
            claim = claim_of(asked, component, catalog)
            result.append(_wanted(claim, group, row, declared.reproduction.scales_of(group)))
        except (LookupError, ValueError) as error:
            problems.append(f"run {group.run}: {error}")
    places = [(id(one.claim), scale) for one in result for scale in one.scales]
    for one in result:
        if any(places.count((id(one.claim), scale)) > 1 for scale in one.scales):
            problems.append(f"run {one.run}: {words(one.claim)} is answered twice at one scale")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source=f"reproduction {declared.name}")
    return result


def _rows(reproduction: Reproduction) -> Iterator[tuple[Answers, Answer]]:
    for group in reproduction.answers:
        for row in group.rows:
            yield group, row


def _wanted(claim: Claim, group: Answers, row: Answer, scales: tuple[ScaleName, ...]) -> Wanted:
    whole = Wanted(
        claim, group.run, scales, group.over, note=row.note, incomparable=row.incomparable
    )
    if (claim.metric == GAIN) is not bool(group.over):
        raise ValueError(
            f"metric {claim.metric!r} and over = {list(group.over)} do not go together"
        )
    if claim.metric in (*CLEAN, GAIN):
        return whole
    if claim.metric not in ATTACKED:
        raise ValueError(f"no row of a report has metric {claim.metric!r}")
    attack = row.by or claim.attack
    return Wanted(
        claim,
        group.run,
        scales,
        attack=attack,
        threat=str(row.under or claim.threat or NO_THREAT),
        view=WORST if attack == WORST else row.view or group.view,
        note=row.note,
        incomparable=row.incomparable,
    )


def words(claim: Claim) -> str:
    """What a claim is of, in words: ``robust accuracy, fgsm, linf:0.02, of clean-correct``."""
    of = "of clean-correct" if claim.conditional else ""
    threat = str(claim.threat or "")
    return ", ".join(
        part for part in (claim.metric.replace("_", " "), claim.attack, threat, of) if part
    )


def answered(
    claims: Iterable[Wanted], scale: ScaleName, configs: Mapping[str, RunConfig]
) -> list[Wanted]:
    """The claims that are answered at a scale; told apart where they are of other data or threats.

    Raises:
        ConfigError: if a run's own evaluation does not have a row that is wanted of it.
    """
    problems = []
    result = []
    for one in claims:
        if scale not in one.scales:
            continue
        config = configs[one.run]
        if problem := _not_measured(one, config):
            problems.append(f"run {one.run}: {problem}")
        reason = one.incomparable or _another(one, config)
        result.append(replace(one, incomparable=reason))
    if problems:
        raise ConfigError(problems, source=f"reproduction at scale {scale}")
    return result


def _another(one: Wanted, config: RunConfig) -> str:
    """Why the number is of something else than the claim; '' if it is of the same."""
    found = []
    if config.data.use != one.claim.dataset:
        found.append(f"{config.data.use}, not {one.claim.dataset}")
    threat = str(one.claim.threat or NO_THREAT)
    if one.attack and one.threat != threat:
        found.append(f"{one.threat}, not {threat}")
    return "; ".join(found)


def _not_measured(one: Wanted, config: RunConfig) -> str:
    """Why a run's own evaluation has no such row; '' if it has."""
    attacks = config.evaluation.attacks
    if not attacks:
        return "its [evaluation] names no attacks, so nothing says which rows there will be"
    if not one.attack:
        return ""
    pairs = [(attack_label(use), str(getattr(use.params, "threat", NO_THREAT))) for use in attacks]
    threats = list(dict.fromkeys(threat for _, threat in pairs))
    parts = set(one.threat.split("+"))
    fits = parts <= set(threats) if one.attack == WORST else (one.attack, one.threat) in pairs
    views = config.evaluation.views
    if not fits:
        known = ", ".join(f"{label} ({threat})" for label, threat in pairs)
        return f"its evaluation has no {one.attack} ({one.threat}); it has {known}"
    if views and one.view not in (*views, WORST, NO_THREAT):
        return f"its evaluation has no view {one.view!r}; it has {', '.join(views)}"
    return ""
