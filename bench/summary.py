"""Means over seeds, differences and verdicts of `bench.agreement`, and their table.

Pure functions of the recorded results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.networks import CASES
from bench.peers import PLANS

Record = dict[str, Any]
TOLERATED = 1.0
"""Points by which our mean may lie above: one library against itself spreads as much."""


def summary(records: Iterable[Record]) -> list[Record]:
    """One row per network, threat and attack, with both libraries' means over their seeds.

    ``difference`` is ours minus theirs in points; it and the verdict are absent until both
    libraries have a result.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for record in records:
        group = (record["network"], record["threat"], record["attack"])
        groups.setdefault(group, {}).setdefault(record["library"], []).append(record)
    rows: list[Record] = []
    for (network, threat, attack), libraries in sorted(groups.items(), key=_place):
        row: Record = {"network": network, "threat": threat, "attack": attack}
        for library, found in libraries.items():
            row[library] = _mean_of(found)
        if len(libraries) == 2:
            difference = row["phalanx"]["mean"] - row["torchattacks"]["mean"]
            row["difference"] = round(difference, 4)
            row["verdict"] = verdict(difference)
        rows.append(row)
    return rows


def _place(item: tuple[tuple[str, str, str], Any]) -> tuple[int, bool, int]:
    network, threat, attack = item[0]
    return list(CASES).index(network), not threat.startswith("linf"), list(PLANS).index(attack)


def _mean_of(found: list[Record]) -> Record:
    found = sorted(found, key=lambda record: record["seed"])
    points = [100.0 * record["robust_accuracy"] for record in found]
    images = sum(record["images"] for record in found)
    return {
        "mean": sum(points) / len(points),
        "seeds": {str(record["seed"]): round(p, 4) for record, p in zip(found, points)},
        "outside": sum(record["outside"] for record in found),
        "over_eps": sum(record["over_eps"] for record in found),
        "largest_excess": max(record["largest_excess"] for record in found),
        "forward_passes": sum(record["forward_passes"] for record in found) / images,
        "backward_passes": sum(record["backward_passes"] for record in found) / images,
        "processor_seconds": sum(record["processor_seconds"] for record in found) / len(found),
    }


def verdict(difference: float) -> str:
    """Of our mean minus theirs, in points of robust accuracy left (less is stronger)."""
    if difference < -1e-9:
        return "ours lower"
    return "within 1 point" if difference <= TOLERATED + 1e-9 else "weaker"


def table(rows: Sequence[Record]) -> str:
    """The summary as a Markdown document."""
    lines = [
        "# Agreement with torchattacks",
        "",
        "Robust accuracy in % that each attack leaves, mean over seeds (each seed in brackets);",
        "passes are images through the network per image attacked, forward + backward; outside is",
        "the number of examples, over all seeds, that break budget, box or finiteness. Difference",
        "is ours minus theirs in points: negative means that ours is the stronger attack. FAB-T",
        "draws nothing in one run, so its one seed stands for all.",
        "",
        "| network | threat | attack | ours | torchattacks | difference | verdict "
        "| passes, ours | passes, torchattacks | outside, ours | outside, torchattacks |",
        "| --- | --- | --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        sides = [row.get("phalanx"), row.get("torchattacks")]
        difference = f"{row['difference']:+.2f}" if "difference" in row else ""
        shown = [
            CASES[row["network"]].name,
            row["threat"],
            row["attack"],
            *map(_accuracies, sides),
            difference,
            row.get("verdict", "not run"),
            *(
                f"{s['forward_passes']:.0f} + {s['backward_passes']:.0f}" if s else ""
                for s in sides
            ),
            *(str(side["outside"]) if side else "" for side in sides),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _accuracies(side: Record | None) -> str:
    if side is None:
        return ""
    return f"{side['mean']:.2f} ({', '.join(f'{p:.1f}' for p in side['seeds'].values())})"
