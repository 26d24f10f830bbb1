"""The sentences and number formats that all forms of a report share."""

from __future__ import annotations

from phalanx.evaluation.rows import WORST, Row

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

CONDITIONAL = (
    "“Of clean-correct” is the accuracy among the images that are right without an attack, as "
    "several papers count."
)


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
    return "worst case" if row.attack == WORST else f"{row.view} · {row.attack}"
