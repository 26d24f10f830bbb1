"""Our attacks against torchattacks' at equal settings: robust accuracies, passes, violations.

    python -m bench.agreement --workers 2

Each cell (network, norm, attack, library, seed) is written to ``bench/results/agreement.json`` as
soon as it is done, under a key of its settings and of the code that ran; a repeated call computes
only what is missing, and then writes the table ``agreement.md``. Both libraries take their steps
on the same prepared copy of the network; every example is judged on the network itself, after it
has been re-checked for budget, box and finiteness in float64. A row outside counts as its clean
image.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fcntl
import hashlib
import inspect
import json
import multiprocessing
import os
import platform
import sys
import textwrap
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.networks import CASES, load
from bench.peers import PLANS, Counted, Plan, Run, phalanx_run, torchattacks_run
from bench.summary import Record, summary, table
from phalanx.attack import attacking
from phalanx.attacks import apgd, ascent, auto, balls, fab, gradient, losses, square
from phalanx.attacks.balls import norm, within
from phalanx.specs import L2, Linf, Threat

Library = Literal["phalanx", "torchattacks"]
RESULTS = Path(__file__).parent / "results" / "agreement.json"
SEEDS = (0, 1, 2)
SLOW = ("APGD-T", "FAB-T")
WITHOUT_DRAWS = ("FAB-T",)
"""With one run they draw nothing in either library: a second seed gives the same examples."""
_GEOMETRY = (balls.project, balls.norm, balls.per_row, balls.finite)
_STEPS = (*_GEOMETRY, balls.steepest, balls.random_start, ascent.input_gradient, losses)
SOURCES: dict[str, tuple[Any, ...]] = {
    "pgd": (*_STEPS, ascent, gradient),
    "apgd-ce": (*_STEPS, auto, apgd),
    "apgd-dlr": (*_STEPS, auto, apgd),
    "apgd-t": (*_STEPS, auto, apgd),
    "fab-t": (*_GEOMETRY, ascent.input_gradient, losses, fab),
    "square": (*_GEOMETRY, losses, square),
}
"""Kind of an attack -> the modules and functions whose change makes its results old."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        network: key of `CASES`.
        threat: one of the case's.
        attack: key of `PLANS`.
        library: whose attack.
        seed: of its random draws.
    """

    network: str
    threat: Threat
    attack: str
    library: Library
    seed: int

    def key(self) -> str:
        """Names the settings and the code, so that an old result is not taken for a new one."""
        case, plan = CASES[self.network], PLANS[self.attack]
        code = digest(plan) if self.library == "phalanx" else version("torchattacks")
        parts = (case.name, case.weights, case.count, case.batch, str(self.threat), repr(plan))
        text = repr((*parts, self.library, self.seed, code))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cells() -> list[Cell]:
    """All cells: quick attacks first, then the slow ones by seed."""
    every = [
        Cell(network, threat, attack, library, seed)
        for seed in SEEDS
        for attack in PLANS
        for network, case in CASES.items()
        for threat in case.threats
        for library in ("torchattacks", "phalanx")
        if seed == SEEDS[0] or attack not in WITHOUT_DRAWS
    ]
    return sorted(every, key=lambda cell: cell.attack in SLOW)


def digest(plan: Plan) -> str:
    """Of the code of our attack, without its comments and docstrings."""
    text = "\n".join(_bare(inspect.getsource(part)) for part in SOURCES[plan.kind])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bare(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]  # it has one
    return ast.unparse(tree)


# ---------------------------------------------------------------- one cell


def software() -> dict[str, str]:
    """Versions that results were written with."""
    packages = ("torch", "torchattacks")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def measure(cell: Cell) -> Record:
    """Attack, re-check, judge."""
    torch.set_num_threads(1)
    case, plan = CASES[cell.network], PLANS[cell.attack]
    loaded = load(case)
    model = Counted(loaded.prepared)
    found, seconds = [], time.process_time()
    with attacking(model):
        for index, start in enumerate(range(0, case.count, case.batch)):
            rows = slice(start, start + case.batch)
            run = _run(cell, plan, model, index)
            found.append(run(loaded.x[rows], loaded.y[rows]))
    seconds = time.process_time() - seconds
    x_adv = torch.cat(found)
    inside = within(x_adv, loaded.x, cell.threat)
    judged = torch.where(inside[:, None, None, None], x_adv, loaded.x)
    return {
        "network": cell.network,
        "threat": str(cell.threat),
        "attack": cell.attack,
        "library": cell.library,
        "seed": cell.seed,
        "images": case.count,
        "clean_accuracy": _accuracy(loaded.network, loaded.x, loaded.y, case.batch),
        "robust_accuracy": _accuracy(loaded.network, judged, loaded.y, case.batch),
        **violations(x_adv, loaded.x, cell.threat),
        "forward_passes": model.forward_rows,
        "backward_passes": model.backward_rows,
        "processor_seconds": round(seconds, 2),
        "plan": dataclasses.asdict(plan),
    }


def _run(cell: Cell, plan: Plan, model: nn.Module, index: int) -> Run:
    make = phalanx_run if cell.library == "phalanx" else torchattacks_run
    return make(plan, cell.threat, model, cell.seed, index)


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    scores = torch.cat([network(part) for part in x.split(batch)])
    return float((scores.argmax(1) == y).double().mean())


def violations(x_adv: Tensor, x: Tensor, threat: Threat) -> Record:
    """How many of the examples ``(N, C, H, W)`` break a rule.

    Returns:
        ``outside``: budget (with the tolerance of `within`), box or finiteness; then each alone;
        ``over_eps``: norms above eps by any rounding at all, in float64, and the largest excess.
    """
    finite = x_adv.isfinite().flatten(1).all(1)
    box = ((x_adv >= 0.0) & (x_adv <= 1.0)).flatten(1).all(1)
    assert isinstance(threat, Linf | L2)
    excess = norm(x_adv.double() - x.double(), threat) - threat.eps
    return {
        "outside": int((~within(x_adv, x, threat)).sum()),
        "outside_budget": int((~(excess <= 1e-5 * threat.eps + 1e-6)).sum()),
        "outside_box": int((~box & finite).sum()),
        "not_finite": int((~finite).sum()),
        "over_eps": int((excess > 0.0).sum()),
        "largest_excess": float(excess.max().clamp_min(0.0)),
    }


# ---------------------------------------------------------------- all cells


def run(wanted: Sequence[Cell], out: Path, workers: int) -> list[str]:
    """Measure what is missing, write each result at once, and return what failed and why."""
    done = read(out)
    missing = [cell for cell in wanted if cell.key() not in done]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there", flush=True)
    failed: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        started = {pool.submit(measure, cell): cell for cell in missing}
        for future in as_completed(started):
            cell = started[future]
            try:
                record = future.result()
            except Exception as error:  # another library's; the other cells go on
                failed.append(f"{cell}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            add(out, cell.key(), record)
            print(
                f"{time.strftime('%H:%M:%S')} {cell.network} {cell.threat} {cell.attack} "
                f"{cell.library} {cell.seed}: {record['robust_accuracy']:.4f}, "
                f"{record['processor_seconds']:.0f} s",
                flush=True,
            )
    return failed


def read(out: Path) -> dict[str, Record]:
    """Key -> result of the cells that are done."""
    if not out.exists():
        return {}
    found: dict[str, Record] = json.loads(out.read_text())["cells"]
    return found


def add(out: Path, key: str, record: Record) -> None:
    """Write one result more; several processes may do so at the same time."""
    with _alone(out):
        write(out, {**read(out), key: record})


def keep(out: Path, keys: Collection[str]) -> list[Record]:
    """Drop all other results, those of older code or settings; return what stays."""
    with _alone(out):
        kept = {key: record for key, record in read(out).items() if key in keys}
        write(out, kept)
    return list(kept.values())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system gives back should this process die."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(out.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write(out: Path, done: dict[str, Record]) -> None:
    """All results and their summary, atomically."""
    fresh = out.with_suffix(".new")
    content = {"software": software(), "summary": summary(done.values()), "cells": done}
    text = json.dumps(content, indent=1)
    fresh.write_text(text + "\n")
    fresh.replace(out)


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--library", choices=("phalanx", "torchattacks"), help="only this one")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="only the first of them")
    parser.add_argument("--attack", choices=tuple(PLANS), help="only this one")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table")
    options = parser.parse_args()
    if _version("torchattacks") == "absent":
        sys.exit("torchattacks is not installed; pip install -r bench/requirements.txt brings it")
    every = cells()
    wanted = [
        cell
        for cell in every
        if options.library in (None, cell.library)
        and options.attack in (None, cell.attack)
        and cell.seed in SEEDS[: options.seeds]
    ]
    failed = [] if options.table else run(wanted, options.out, options.workers)
    page = table(summary(keep(options.out, {cell.key() for cell in every})))
    options.out.with_suffix(".md").write_text(page)
    print(page)
    if failed:
        sys.exit("\n".join([f"{len(failed)} cells failed:", *failed]))


if __name__ == "__main__":
    main()
