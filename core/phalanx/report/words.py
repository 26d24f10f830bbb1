"""The sentences that all forms of a report share; numbers are turned into text by `figures`."""

from __future__ import annotations

from collections.abc import Iterable

from phalanx.evaluation.cell import NONE, TRANSFER
from phalanx.evaluation.diversity import MEANINGS
from phalanx.evaluation.findings import Check, Comparison, Curve, Masking, Status, Transfer
from phalanx.evaluation.rows import JOIN, WORST, Row
from phalanx.report.arrange import PAPER, Quantity, is_drawn

COMPARE = (
    "Compare defenses by their “worst” rows: the mean over images of the smallest share of right "
    "answers under any attack through any view. A defense is as strong as its weakest view."
)
ORDER = (
    "Sorted by verdict, the most trusted first, then by worst-case accuracy. A verdict is said of "
    "a number, masking of a defense."
)
VERDICTS = {
    "trusted": (
        "Verdict “trusted”: every required check has passed, so nothing found here says that a "
        "stronger attack would bring the number far down. It is no proof: the accuracy is an upper "
        "bound."
    ),
    "caution": (
        "Verdict “caution”: no required check has failed, but one warns, or no other model was "
        "there to try transfer from. The number may be too high; the check says in what way."
    ),
    "screened": (
        "Verdict “screened”: the checks that cost nothing have passed, and some that are required "
        "have not run. The number is a first look, not a result to compare by."
    ),
    "incomplete": (
        "Verdict “incomplete”: not even the checks that cost nothing have all run, or the attack "
        "made for this defense is missing. The attacks listed here ran and every example was "
        "checked against budget and box, but nothing says whether they are strong enough for this "
        "defense. The accuracies are upper bounds of its robustness."
    ),
    "unreliable": (
        "Verdict “unreliable”: a required check failed in a way that bears on the number's attack. "
        "Expect a better attack to find a much lower accuracy; do not compare defenses by it. A "
        "number at or below chance is called so only where stochastic, batch_dependence or budget "
        "fails, which bears on every row."
    ),
}
"""Verdict -> what it means."""
MASKING: dict[Masking, str] = {
    "yes": (
        "Masking “yes”: a check of the defense's gradients, randomness or state failed, so that "
        "attacks by its gradients are misled. A worst case may be right all the same, once "
        "transfer or another loss has brought it down: the verdict says so of each number."
    ),
    "no": (
        "Masking “no”: the required checks of the defense's gradients, randomness and state have "
        "run, and none failed."
    ),
    "unknown": (
        "Masking “unknown”: none of the checks of the defense's gradients, randomness and state "
        "failed, but a required one has not run."
    ),
}
"""Masking -> what it means."""
STATUSES: dict[Status, tuple[str, str]] = {
    "fail": ("✗", "{n} failed"),
    "warn": ("!", "{n} warned"),
    "not-run": ("–", "{n} not run"),
    "pass": ("✓", "{n} passed"),
    "not-applicable": ("·", "{n} not applicable"),
}
"""Status of a check -> its mark, and how a sum of checks names it."""
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
PAIRED = (
    "Two defenses on the same images under the same threat. The difference is the worst-case "
    "accuracy of the first minus that of the second, in points. Where its interval holds 0 the "
    "images do not tell the two apart. Each p-value is of its own pair; no correction for their "
    "number is made."
)
CURVES = (
    "Accuracy in per cent against the attacker's radius, each radius attacked afresh. Bands, and "
    "the numbers in brackets, are 95 % intervals."
)
OVERSTATED: dict[Masking, str] = {
    "yes": "gradients mislead this attack, and the curve overstates.",
    "unknown": "the curve may overstate.",
}
"""Masking -> what it means for a curve; where there is none the curve needs no word."""
BESIDE = (
    "What the paper's own protocol gives, beside the worst case of the same threat here. The gap "
    "is how many points the paper's protocol is above it."
)
TRANSFERS = (
    "Rows: the model that is asked. Columns: the model for which the examples were made. A number "
    "is the row's accuracy on the column's examples, in per cent; – was not measured."
)
FACTS = (
    "Latency is per image within a batch of the size given. Training passes are per training "
    "image, forward + backward, over all phases."
)
EXAMPLES = (
    "The difference is drawn around mid grey, larger than it is by the factor given; the pictures "
    "are enlarged without smoothing."
)
LEDGER = (
    "What papers say, beside what was reproduced. Values are in the metric's own unit, accuracies "
    "in per cent; a reproduction in another setting has a line of its own."
)
CHECKED = (
    "A share fails or warns only where its 95 % interval passes the threshold. What is not "
    "applicable counts as passed."
)
OF_PAPER = "paper: "
"""Before what was done in a row of the paper's own protocol."""
NAMED = 4
"""Rows that a sentence names at most."""
DRAWS = (
    "“Right in most draws” is the share of images that more than half of the judge's draws get "
    "right, “worst draw” the smallest accuracy of one draw over all images; both are of models "
    "that draw."
)
"""Of a report with rows that have these."""
TESTS = {"mcnemar": "exact McNemar", "sign-flip": "sign-flip permutation"}
"""Test of a comparison -> its name."""


def explained(rows: Iterable[Row]) -> list[str]:
    """The sentences that stand under the tables of these rows."""
    rows = list(rows)
    drawn = any(is_drawn(row) for row in rows)
    alone = any(row.attack.partition(":")[0] == "natural" for row in rows)
    return [PASSES, CONDITIONAL, *([DRAWS] if drawn else []), *([NO_BALL] if alone else [])]


def meanings(rows: Iterable[Row], maskings: Iterable[Masking] = ()) -> list[str]:
    """What the verdicts and maskings mean that occur, each once."""
    there = {row.verdict for row in rows}
    said = set(maskings)
    return [
        *(meaning for verdict, meaning in VERDICTS.items() if verdict in there),
        *(meaning for masking, meaning in MASKING.items() if masking in said),
    ]


def of_diversity(names: Iterable[str]) -> list[str]:
    """What the diversity values mean, those that have a meaning: ``mra: …``."""
    return [f"{name}: {MEANINGS[name]}" for name in dict.fromkeys(names) if name in MEANINGS]


def name(row: Row) -> str:
    """What was done in a row: ``expected · pgd:steps=100``, or the worst case in words."""
    paper = OF_PAPER if row.protocol == PAPER else ""
    if row.attack == WORST:
        return f"{paper}worst case"
    return paper + (row.attack if row.view == NONE else f"{row.view} · {row.attack}")


def heading(view: str) -> str:
    """What a view's rows stand under."""
    fixed = {
        WORST: "Worst case",
        NONE: "No view: these do not look at the model",
        TRANSFER: "Transfer: examples that were made for other models",
    }
    return fixed.get(view, f"View {view}")


def under(threat: str) -> str:
    """A threat in a sentence: ``under linf:8/255``, ``without a ball``, or all of several."""
    parts = ["no ball" if part == NONE else part for part in threat.split(JOIN)]
    if parts == ["no ball"]:
        return "without a ball"
    return f"under {parts[0]}" if len(parts) == 1 else f"under any of {', '.join(parts)}"


def tally(checks: Iterable[Check]) -> str:
    """``1 failed, 2 not run, 12 passed``, what is worst first."""
    given = [check.status for check in checks]
    counted = ((text, given.count(status)) for status, (_, text) in STATUSES.items())
    return ", ".join(text.format(n=count) for text, count in counted if count)


def bears(check: Check) -> str:
    """On which rows a failed check bears; '' where nothing is said."""
    if check.bears_on_all:
        return "Bears on every row."
    named = [
        f"{attack} ({threat})" if view in (NONE, WORST) else f"{view} · {attack} ({threat})"
        for view, attack, threat in check.touches
    ]
    if len(named) > NAMED:
        named[NAMED - 1 :] = [f"{len(named) - NAMED + 1} other rows"]
    return f"Bears on {'; '.join(named)}." if named else ""


def said(check: Check) -> str:
    """What a check found, and where it failed or warns on which rows that bears."""
    bearing = bears(check) if check.status in {"fail", "warn"} else ""
    return " ".join(part for part in (check.reason, bearing) if part)


def of_quantity(quantity: Quantity) -> str:
    """``mnist, robust_accuracy, linf:0.3, of clean-correct``."""
    conditional = "of clean-correct" if quantity.conditional else ""
    return listed([quantity.dataset, quantity.metric, quantity.threat, conditional], ", ")


def listed(parts: Iterable[str], between: str = "; ") -> str:
    """Those of the parts that say something."""
    return between.join(part for part in parts if part)


def of_transfer(transfer: Transfer) -> str:
    """What a matrix shows, as its title."""
    between = f"members of {transfer.defense}" if transfer.kind == "members" else "models"
    by = f", {transfer.attack}" if transfer.attack else ""
    return f"Transfer between {between} {under(transfer.threat)}{by}, {transfer.n} images"


def of_curve(curve: Curve) -> str:
    """How a curve was measured: ``expected · pgd``."""
    return curve.attack if curve.view == NONE else f"{curve.view} · {curve.attack}"


def overstated(masked: Iterable[tuple[str, Masking]]) -> list[str]:
    """What masking means for some curves: ``Masking is yes (clm): gradients mislead …``.

    Args:
        masked: the defense of each curve, and its masking.
    """
    masked = list(dict.fromkeys(masked))
    named = {
        masking: [defense for defense, found in masked if found == masking]
        for masking in OVERSTATED
    }
    return [
        f"Masking is {masking} ({', '.join(names)}): {OVERSTATED[masking]}"
        for masking, names in named.items()
        if names
    ]


def decided(comparison: Comparison) -> str:
    """Which of the two is better, as far as the interval says."""
    low, high = comparison.ci95
    if low > 0:
        return "the first"
    return "the second" if high < 0 else "not told apart"
