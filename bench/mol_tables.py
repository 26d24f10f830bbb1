"""MoL's tables: each expert on each type of input, the systems, and who is asked for what.

    python -m bench.mol_tables --experts RUN --systems RUN RUN … --out FOLDER

`--experts` is a run of phalanx-mol whose experts are asked alone, each attacked itself (Table 1);
one whose phase ``aggregator`` has 0 epochs has them as they are before the second step.
`--systems` are runs of any defense (MoL's readings, AVG, MAX), attacked as a whole. The attacks are
those of the first run's ``[evaluation]``, on the same images for all. Natural types draw the
same for all; the random starts of attacks are keyed with a system's weights.

"all attacks" is the share of images that are right when clean and under each attack, MoL's
All-Attack. Rows are counted as the evaluation's own: under an attack with a ball an image that is
wrong when clean stays wrong; a natural perturbation's row is of all images, as the paper's. Of
MoL's runs the aggregator's weights on inputs of each type are measured.

Cells are kept under FOLDER, and a repeated call computes only what is missing. ``results.json`` and
``results.md`` are written from all that was asked in this call.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import phalanx
from phalanx.api import Perturbing
from phalanx.config import UseAttack
from phalanx.data import default_root, load_data
from phalanx.data.sets import Data
from phalanx.evaluation.cell import NONE, Cell, joined
from phalanx.evaluation.engine import blocks_in
from phalanx.evaluation.evaluate import CELLS
from phalanx.evaluation.labels import attack_identity, attack_label
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.statistics import wilson
from phalanx.evaluation.store import BlockStore
from phalanx.evaluation.subjects import digest_of, digest_of_batch, images_of, model_of
from phalanx.nn.member import Member
from phalanx.training.artifacts import Run, open_run, versions
from phalanx_mol.config import MoLConfig
from phalanx_mol.measure import Routing, matched, routing, spread
from phalanx_mol.model import MoLModel

CLEAN, ALL, VIEW = "clean", "all attacks", "deployed"
Z95 = 1.959964
Record = dict[str, Any]


class Bench:
    """One call: the same images, attacks and seed for all models; draws are each model's own.

    Args:
        out: where cells and results are kept.
        data: of all runs.
        attacks: of the first run's ``[evaluation]``.
        limit: test images for accuracies.
        images: test images for the aggregator's weights.
        seed: of every draw.
    """

    def __init__(
        self,
        out: Path,
        data: Data,
        attacks: Sequence[UseAttack],
        *,
        limit: int,
        images: int,
        seed: int,
    ) -> None:
        self.out, self.data, self.tested = out, data, images_of(data)
        self.attacks = tuple(resolve_attack(one, threat=self.tested.threat) for one in attacks)
        self.limit, self.images, self.seed = limit, images, seed
        self.outcomes: dict[str, Tensor] = {}

    def accuracies(self, name: str, model: nn.Module) -> Record:
        """Clean, each attack, and all of them together, with 95 % intervals; cells are kept."""
        folder = self.out / name
        started = time.monotonic()
        report = phalanx.evaluate(
            model,
            self.data,
            attacks=self.attacks,
            views=(VIEW,),
            limit=self.limit,
            seed=self.seed,
            out=folder,
            name=name,
        )
        if report.failed:
            raise SystemExit(f"{name}: {report.failed[0].attack}: {report.failed[0].reason}")
        bits = self._bits(folder, model)
        right = torch.stack(list(bits.values())).all(0)
        self.outcomes[name] = right
        found: Record = {CLEAN: _share(bits[CLEAN])}
        for use in self.attacks:
            answers, ball = bits[_key(use)], str(use.params.threat)
            if ball == NONE:  # of all images, as the paper's rows are
                found[attack_label(use)] = _share(answers)
            else:  # an image that is wrong without an attack stays an error
                found[f"{attack_label(use)} ({ball})"] = _share(answers & bits[CLEAN])
        found[ALL] = _share(right)
        joint = [row for row in report.worst if "+" in row.threat]
        assert not joint or math.isclose(joint[0].robust_accuracy, found[ALL]["accuracy"])
        print(
            f"{name}: {found[ALL]['accuracy']:.3f} of {self.limit} under all attacks, "
            f"{time.monotonic() - started:.0f} s",
            file=sys.stderr,
        )
        return found

    def _bits(self, folder: Path, model: nn.Module) -> dict[str, Tensor]:
        """Which images are right: clean, and under each attack, from the cells stored just now."""
        store, weights = BlockStore(folder / CELLS), digest_of(model_of(model))
        found = {}
        for name, use in ((CLEAN, None), *((_key(use), use) for use in self.attacks)):
            blocks = blocks_in(self._cell(weights, use), self.tested.split, self.limit)
            parts = [part for part in map(store.get, blocks) if part is not None]
            if len(parts) < len(blocks):
                raise SystemExit(f"{folder} lacks a cell that was computed just now; empty it")
            outcome = joined(parts)
            if len(outcome.bits) > 1:
                raise SystemExit(
                    f"{folder.name} answers at random, and these tables count one answer"
                )
            found[name] = outcome.bits[0].bool()
        return found

    def _cell(self, weights: str, use: UseAttack | None) -> Cell:
        """Where the evaluation keeps an attack, or none; one that asks no model has no view."""
        asks = use is not None and getattr(use.params, "asks_model", True)
        return Cell(
            weights=weights,
            data=self.tested.name,
            view=VIEW if asks else NONE,
            attack=NONE if use is None else attack_identity(use),
            threat=NONE if use is None else str(use.params.threat),
            seed=self.seed,
        )

    def weights(self, name: str, model: MoLModel, config: MoLConfig) -> Record:
        """The aggregator's weights on inputs of each type; a finished type is kept."""
        count = min(self.images, len(self.data.test))
        batch = self.data.test.fetch(torch.arange(count))
        images = digest_of_batch(batch)
        file = self.out / f"{name}-routing.json"
        kept: Record = json.loads(file.read_text()) if file.exists() else {}
        rows = []
        for expert in config.experts:
            key = json.dumps([digest_of(model), images, self.seed, expert.model_dump(mode="json")])
            if key not in kept:
                row = routing(model, Perturbing.of(expert), batch.x, batch.y, seed=self.seed)
                kept[key] = asdict(row)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(kept, indent=1) + "\n")
            rows.append(Routing(**kept[key]))
        return {
            "rows": [asdict(row) for row in rows],
            "spread": spread(rows),
            "matched": matched(rows),
        }

    def differences(self, systems: Sequence[str]) -> list[Record]:
        """Differences under all attacks, with normal 95 % intervals over images.

        They are paired by image; the random starts of attacks are each system's own.
        """
        found = []
        for at, first in enumerate(systems):
            for second in systems[at + 1 :]:
                d = self.outcomes[first].double() - self.outcomes[second].double()
                half = Z95 * float(d.std()) / math.sqrt(len(d))
                mean = float(d.mean())
                found.append(
                    {
                        "first": first,
                        "second": second,
                        "difference": mean,
                        "ci95": [mean - half, mean + half],
                    }
                )
        return found


def _key(use: UseAttack) -> str:
    return f"{attack_identity(use)} {use.params.threat}"


def _share(right: Tensor) -> Record:
    """Accuracy with Wilson's interval, as the evaluation's own rows."""
    count, n = int(right.sum()), len(right)
    return {"accuracy": count / n, "ci95": wilson(count, n), "n": n}


# ---------------------------------------------------------------- tables


def markdown(found: Record) -> str:
    """The results as tables."""
    settings = found["settings"]
    text = [
        "# MoL: experts, systems, routing",
        "",
        f"{settings['data']}, first {settings['limit']} test images, seed {settings['seed']}; "
        "accuracy in %, 95 % interval by Wilson.",
    ]
    for key, head in (("experts", "Each expert alone, attacked itself"), ("systems", "Systems")):
        if found.get(key):
            text += ["", f"## {head}", "", *_table(found[key])]
    for pair in found.get("differences", ()):
        low, high = (100 * value for value in pair["ci95"])
        text.append(
            f"\n{pair['first']} − {pair['second']} under all attacks, same images: "
            f"{100 * pair['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
        )
    for name, part in found.get("routing", {}).items():
        rows = part["rows"]
        names = list(rows[0]["mean"])
        text += [
            "",
            f"## Weights of {name}",
            "",
            f"Mean weight of each expert (columns) on inputs of each type (rows), "
            f"{rows[0]['images']} images. Largest range of a column {part['spread']:.3f}; the "
            f"type's own expert weighs most on {100 * part['matched']:.1f} % of images, mean over "
            "types.",
            "",
            _line(["", *names]),
            f"|---|{'---|' * len(names)}",
            *(_line([row["type"], *(f"{row['mean'][n]:.3f}" for n in names)]) for row in rows),
        ]
    return "\n".join(text) + "\n"


def _table(columns: Record) -> list[str]:
    names = list(columns)
    rows = list(columns[names[0]])

    def cell(name: str, row: str) -> str:
        low, high = columns[name][row]["ci95"]
        return f"{100 * columns[name][row]['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"

    return [
        _line(["", *names]),
        f"|---|{'---|' * len(names)}",
        *(_line([row, *(cell(name, row) for name in names)]) for row in rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def named(runs: Sequence[Path]) -> dict[str, Run]:
    """Runs by their folders' names."""
    found = {path.name: open_run(path) for path in runs}
    if len(found) < len(runs):
        raise SystemExit("give each run a folder of its own name")
    return found


def problem(runs: Sequence[Run]) -> str | None:
    """Why these runs cannot stand in one table, under the first one's attacks, or None."""
    first = runs[0]
    if not first.config.evaluation.attacks:
        return (
            f"{first.path.name} names no attacks, so there is nothing to tabulate: name the "
            "attacks in [evaluation] of the first run's file"
        )
    for run in runs[1:]:
        if _data(run) != _data(first):
            return (
                f"{run.path.name} is of {_data(run)} and {first.path.name} of {_data(first)}: "
                "give runs of one data set"
            )
    return None


def _data(run: Run) -> str:
    data = run.config.data
    return data.use if data.root is None else f"{data.use} at {data.root}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=Path, help="run whose experts are asked alone")
    parser.add_argument("--systems", type=Path, nargs="*", default=[], help="runs as a whole")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="test images; absent: the first run's")
    parser.add_argument("--routing", type=int, default=1000, help="test images for the weights")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    systems = named(given.systems)
    experts = None if given.experts is None else open_run(given.experts)
    first = experts or next(iter(systems.values()), None)
    if first is None:
        parser.error("give --experts RUN, --systems RUN …, or both")
    wrong = problem([first, *(run for run in systems.values() if run is not first)])
    if wrong is not None:
        parser.error(wrong)
    judged = first.config.evaluation
    data = load_data(first.config.data.use, root=default_root())
    limit = min(given.limit or judged.limit or len(data.test), len(data.test))
    bench = Bench(
        given.out, data, judged.attacks, limit=limit, images=given.routing, seed=given.seed
    )
    found: Record = {
        "settings": {
            "data": first.config.data.use,
            "limit": limit,
            "routing": given.routing,
            "seed": given.seed,
            "attacks": [one.model_dump(mode="json") for one in bench.attacks],
            "runs": {name: run.sha256 for name, run in systems.items()},
            "experts": None if experts is None else experts.sha256,
            "versions": versions(),
        }
    }
    if experts is not None:
        model = experts.model
        if not isinstance(model, MoLModel):
            parser.error(f"{given.experts} is no run of phalanx-mol, so it has no experts")
        pairs: list[tuple[str, Member]] = list(zip(model.names, model.members, strict=True))
        found["experts"] = {
            name: bench.accuracies(f"expert-{name}", member) for name, member in pairs
        }
    if systems:
        found["systems"] = {
            name: bench.accuracies(name, run.model) for name, run in systems.items()
        }
        found["differences"] = bench.differences(list(systems))
        found["routing"] = {
            name: bench.weights(name, run.model, run.config.defense.params)
            for name, run in systems.items()
            if isinstance(run.model, MoLModel) and isinstance(run.config.defense.params, MoLConfig)
        }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "results.md").write_text(markdown(found))
    print(given.out / "results.md", file=sys.stderr)


if __name__ == "__main__":
    main()
