"""Counts, exact intervals and tables of the results of `bench.verdicts`; pure functions of records.

The interval of a share: C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits
illustrated in the case of the binomial" (Biometrika 1934).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from scipy.stats import beta

Record = dict[str, Any]
SHOULD = {"masking": "yes", "sound": "no"}
ON_ALL = ("undeclared", "batch-mates")
"""What makes every number of a model unreliable."""
CHANCE = 0.1
"""Of ten classes: a gradient attack that leaves no more is none that masking has misled."""
LARGEST_RATIO = 8.0
"""Passes of the required checks of a kind of model over those of its bases, at most."""


def interval(count: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of the share count/n, n >= 1."""
    tail = (1.0 - level) / 2.0
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(1.0 - tail, count + 1, n - count))
    return low, high


# ---------------------------------------------------------------- what a record says


def ran(records: Iterable[Record]) -> list[Record]:
    """The models of which there is a report."""
    return [one for one in records if "masking" in one]


def row(record: Record, attack: str, view: str = "") -> Record | None:
    """The row of an attack: on this view, else on ``expected``, else on ``deployed``."""
    rows = [one for one in record["rows"] if one["attack"].partition(":")[0] == attack]
    for wanted in (view, "expected", "deployed"):
        for one in rows:
            if one["view"] == wanted:
                return dict(one)
    return None


def overstated(record: Record) -> list[Record]:
    """Rows of gradient attacks whose accuracy is above the interval of the worst case."""
    worst = row(record, "worst", "worst")
    if worst is None:
        return []
    return [
        one
        for one in record["rows"]
        if one["attack"].startswith(("apgd", "mora"))
        and one["robust_accuracy"] > max(worst["ci95"][1], CHANCE)
    ]


def failed(record: Record) -> list[str]:
    """Ids of the checks that failed."""
    return [name for name, one in record["checks"].items() if one["status"] == "fail"]


def check_passes(record: Record) -> float:
    """Passes of the required checks, forward and backward, per image."""
    return float(
        sum(sum(both) for name, both in record["passes"].items() if name in record["required"])
    )


def ratio(record: Record) -> float | None:
    """Those over the base's; None without gradients, where no base runs."""
    base = record["base_passes"]
    return check_passes(record) / base if base else None


def ratio_of_all(records: Iterable[Record]) -> float | None:
    """The same of several models together; None where none has a base."""
    priced = [one for one in ran(records) if ratio(one) is not None]
    base = sum(one["base_passes"] for one in priced)
    return sum(map(check_passes, priced)) / base if priced else None


def too_dear(records: Sequence[Record]) -> Iterator[str]:
    """Kinds of models whose checks take more passes than they may."""
    for kind, how in dict.fromkeys((one["kind"], one["how"]) for one in records):
        found = ratio_of_all(one for one in records if (one["kind"], one["how"]) == (kind, how))
        if found is not None and found > LARGEST_RATIO:
            yield f"{kind}, {how}: the checks take {found:.2f} x the base, over {LARGEST_RATIO:g}"


def unexpected(record: Record) -> Iterator[str]:
    """What came out otherwise than it should."""
    name = f"{record['kind']}, {record['name']} ({record['data']})"
    if "masking" not in record:
        yield f"{name}: {record.get('crashed') or record.get('refused')}"
        return
    if record["masking"] != SHOULD[record["kind"]]:
        yield f"{name}: masking is {record['masking']!r}; {record['sentence']}"
    if record["kind"] == "sound":
        wrong = [one for one in record["rows"] if one["verdict"] == "unreliable"]
    else:
        suspects = record["rows"] if record["how"] in ON_ALL else overstated(record)
        wrong = [one for one in suspects if one["verdict"] != "unreliable"]
    for one in wrong:
        shown = f"{one['attack']} on {one['view']} ({100 * one['robust_accuracy']:.1f} %)"
        yield f"{name}: {shown} is {one['verdict']!r}; {record['sentence']}"


# ---------------------------------------------------------------- tables


def table(records: Sequence[Record]) -> str:
    """The results as Markdown."""
    lines = ["# Verdicts on models whose masking is known", "", *_summary(records), ""]
    lines += [*_by_kind(records), "", *_costs(records), ""]
    for kind, title in (("masking", "Masking models"), ("sound", "Sound models")):
        lines += [*_models([one for one in records if one["kind"] == kind], title), ""]
    otherwise = [*too_dear(records), *(line for one in records for line in unexpected(one))]
    lines += ["## Otherwise than it should", ""]
    lines += [f"- {line}" for line in otherwise] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _summary(records: Sequence[Record]) -> list[str]:
    lines = [
        "Accuracies in %; shares with their exact two-sided 95 % interval. Overstated is a row of",
        "a gradient attack whose accuracy is above the interval of the worst over all attacks.",
        "",
        "| | count | share | interval |",
        "| --- | ---: | ---: | ---: |",
    ]
    for kind, said in (("masking", "yes"), ("sound", "yes"), ("sound", "unknown")):
        own = [one for one in records if one["kind"] == kind]
        count = sum(one.get("masking") == said for one in own)
        lines.append(_share(f"{kind} models with `masking: {said}`", count, len(own)))
    crashed = sum("crashed" in one for one in records)
    lines.append(_share("models that crash an evaluation", crashed, len(records)))
    masking = [one for one in ran(records) if one["kind"] == "masking"]
    over = [one for record in masking for one in overstated(record)]
    flagged = sum(one["verdict"] == "unreliable" for one in over)
    lines.append(
        _share("overstated rows of masking models called `unreliable`", flagged, len(over))
    )
    sound = [one for record in ran(records) if record["kind"] == "sound" for one in record["rows"]]
    wrong = sum(one["verdict"] == "unreliable" for one in sound)
    lines.append(_share("rows of sound models called `unreliable`", wrong, len(sound)))
    return lines


def _share(name: str, count: int, n: int) -> str:
    if not n:
        return f"| {name} | 0 of 0 | | |"
    low, high = interval(count, n)
    return (
        f"| {name} | {count} of {n} | {_percent(count / n)} | {_percent(low)} to {_percent(high)} |"
    )


def _by_kind(records: Sequence[Record]) -> list[str]:
    lines = [
        "## By kind",
        "",
        "What masking models mask by, and what sound ones are. Cost: passes of the required checks",
        "of all models of a kind, over those of their bases; and the largest ratio of one model.",
        "",
        "| | kind | models | `masking: yes` | cost | largest |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for kind, how in dict.fromkeys((one["kind"], one["how"]) for one in records):
        same = [one for one in records if (one["kind"], one["how"]) == (kind, how)]
        found = sum(one.get("masking") == "yes" for one in same)
        lines.append(f"| {kind} | {how} | {len(same)} | {found} |{_cost_of_all(same)} |")
    return lines


def _cost_of_all(records: Sequence[Record]) -> str:
    """Two cells: the ratio of sums, and the largest ratio; of models with a base."""
    priced = [one for one in ran(records) if ratio(one) is not None]
    whole = ratio_of_all(priced)
    if whole is None:
        return " |"
    return f" {whole:.2f} | {max(ratio(one) or 0.0 for one in priced):.2f}"


def _costs(records: Sequence[Record]) -> list[str]:
    lines = [
        "## Cost of the required checks",
        "",
        "Passes per image, forward and backward together: median over models of those of the base",
        "and of the checks; their ratio, median and largest. A base that breaks every image in a",
        "few steps costs little itself, hence the groups.",
        "",
        "| models | number | base | checks | ratio | largest ratio | largest at |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    priced = [one for one in ran(records) if ratio(one) is not None]
    for form in ("single", "ensemble", "stochastic"):
        for kept in (False, True):
            same = [one for one in priced if one["form"] == form and survives(one) is kept]
            if same:
                left = "the base leaves some" if kept else "the base breaks nearly all"
                lines.append(_cost(f"{form}, {left}", same))
    return lines


def survives(record: Record) -> bool:
    """Whether the base leaves more than chance."""
    rows = [row(record, name) for name in ("apgd-ce", "apgd-dlr")]
    return min(one["robust_accuracy"] for one in rows if one) > CHANCE


def _cost(name: str, records: Sequence[Record]) -> str:
    found = {one["name"]: ratio(one) or 0.0 for one in records}
    largest = max(found, key=lambda one: found[one])
    base = median(one["base_passes"] for one in records)
    cost = median(check_passes(one) for one in records)
    return (
        f"| {name} | {len(records)} | {base:.0f} | {cost:.0f} | {median(found.values()):.2f} | "
        f"{found[largest]:.2f} | {largest} |"
    )


def _models(records: Sequence[Record], title: str) -> list[str]:
    lines = [
        f"## {title}",
        "",
        "| model | data | kind | clean | APGD-CE | verdict | worst | verdict | masking | failed |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | --- | --- | --- |",
    ]
    for one in records:
        if "masking" not in one:
            lines.append(
                f"| {one['name']} | {one['data']} | {one['how']} | | | | | | no report | |"
            )
            continue
        shown = [one["name"], one["data"], one["how"], _percent(one["clean"])]
        for found in (row(one, "apgd-ce"), row(one, "worst", "worst")):
            shown += [_percent(found["robust_accuracy"]), found["verdict"]] if found else ["", ""]
        lines.append(f"| {' | '.join([*shown, one['masking'], ', '.join(failed(one))])} |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
