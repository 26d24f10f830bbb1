"""The sentences and number formats that all forms of a report share."""

from __future__ import annotations

from collections.abc import Iterable

from phalanx.evaluation.cell import NONE
from phalanx.evaluation.rows import JOIN, WORST, Row

COMPARE = (
    "Compare defenses by their “worst” rows: the mean over images of the smallest share of right "
    "answers under any attack through any view. A defense is as strong as its weakest view."
)
VERDICTS = {
    "incomplete": (
        "Verdict “incomplete”: the attacks listed here ran and every example was checked against "
        "budget and box, but no check has asked whether these attacks are strong enough for this "
        "defense. The accuracies are upper bounds of its robustness."
    ),
}
"""Verdict -> what it means."""
PASSES = (
    "Passes are those of the attack, per image: one image through the attacked function is one "
    "pass, however many members it has. The judge's own are left out."
)

NO_BALL = (
    "A natural perturbation changes every image, at threat “none”: its row is the accuracy on the "
    "changed images alone, and may be above the clean one. The worst case counts the clean images "
    "too."
)
"""Of a report with natural perturbations."""

CONDITIONAL = (
    "“Of clean-correct” is the accuracy among the images that are right without an attack, as "
    "several papers count."
)


def explained(rows: Iterable[Row]) -> list[str]:
    """The sentences that stand under the tables of these rows."""
    alone = any(row.attack.partition(":")[0] == "natural" for row in rows)
    return [PASSES, CONDITIONAL, *([NO_BALL] if alone else [])]


def percent(share: float) -> str:
    """0.934 as ``93.4 %``."""
    return f"{100 * share:.1f} %"


def of_clean_correct(row: Row) -> str:
    """The accuracy among images that are right without an attack; a dash where none is."""
    share = row.conditional_accuracy
    return "–" if share is None else percent(share)


def between(row: Row) -> str:
    """The interval as ``91.2 - 95.1 %``."""
    lo, hi = row.ci95
    return f"{100 * lo:.1f} – {100 * hi:.1f} %"


def count(passes: float) -> str:
    """Passes per image, whole where they are whole."""
    return f"{passes:.0f}" if passes == round(passes) else f"{passes:.1f}"


def name(row: Row) -> str:
    """What was done in a row: ``expected · pgd:steps=100``, or the worst case in words."""
    if row.attack == WORST:
        return "worst case"
    return row.attack if row.view == NONE else f"{row.view} · {row.attack}"


def heading(view: str) -> str:
    """What a view's rows stand under."""
    fixed = {WORST: "Worst case", NONE: "No view: these do not look at the model"}
    return fixed.get(view, f"View {view}")


def under(threat: str) -> str:
    """A threat in a sentence: ``under linf:8/255``, ``without a ball``, or all of several."""
    parts = ["no ball" if part == NONE else part for part in threat.split(JOIN)]
    if parts == ["no ball"]:
        return "without a ball"
    return f"under {parts[0]}" if len(parts) == 1 else f"under any of {', '.join(parts)}"
