"""``phalanx reproduce`` without a name: what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phalanx.catalog import Catalog
from phalanx.claims import wanted
from phalanx.cli.common import echo, echo_json, warn
from phalanx.errors import InputError
from phalanx.reproduction import Declared, Found, laid_over, recipe_of, table_of


def print_list(found: Found, known: Catalog, *, as_json: bool) -> None:
    """What there is; a plugin whose file is wrong is named on standard error."""
    for failure in found.failures.values():
        warn(str(failure))
    rows = [_entry(one, found, known) for one in found.reproductions]
    if as_json:
        echo_json(rows)
        return
    header = ("NAME", "SCALES", "DATA", "TRAINS", "CLAIMS", "WHAT")
    lines = [
        header,
        *(
            (
                row["name"],
                ", ".join(row["scales"]),
                ", ".join(row["data"]),
                ", ".join(row["trains"]),
                str(row["claims"]),
                row["title"] + ("" if not row["problem"] else f" ({row['problem']})"),
            )
            for row in rows
        ),
    ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header) - 1)]
    for line in lines:
        left = (cell.ljust(width) for cell, width in zip(line, widths))
        echo("  ".join([*left, line[-1]]))


def _entry(one: Declared, found: Found, known: Catalog) -> dict[str, Any]:
    """One reproduction; what its recipes train is read from them, no plugin is imported for it."""
    trains: dict[str, None] = {}
    data: dict[str, None] = {}
    problem, claims = "", []
    try:
        claims = wanted(one, known)
        for scale in one.reproduction.scales.values():
            for run in scale.runs:
                recipe = table_of(recipe_of(run, one.plugin, found.homes, known))
                whole = laid_over(recipe, run.set_)
                trains[_used(whole, "defense")] = None
                data[_used(whole, "data")] = None
    except InputError as error:
        problem = " ".join(str(error).split())
    return {
        "name": one.name,
        "title": one.reproduction.title,
        "scales": {
            str(name): {"differs": scale.differs, "takes": scale.takes, "runs": list(scale.ids)}
            for name, scale in one.reproduction.scales.items()
        },
        "data": list(data),
        "trains": list(trains),
        "claims": len({id(each.claim) for each in claims}),
        "sources": list(dict.fromkeys(each.claim.source for each in claims)),
        "problem": problem,
    }


def _used(table: Mapping[str, Any], key: str) -> str:
    """The name of a recipe's defense or data set."""
    value = table.get(key, {})
    return str(value.get("use", "digits") if isinstance(value, Mapping) else value)
