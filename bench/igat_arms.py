"""iGAT's ablation: five arms fine-tuned from one base, compared image by image over seeds.

    python -m bench.igat_arms --base RUN --out FOLDER --workers 2
    python -m bench.igat_arms --base RUN --out FOLDER --arms soft opposite random hard beta0 zero

Each arm and seed is a run folder ``FOLDER/arm-seed``: trained by iGAT's reduced recipe, attacked on
its test images as the recipe says (cells under ``evaluation``), and asked how often owners are
right on what a rule gives them. What is there already is not done again, so a stopped call goes on
where it was. ``results.json`` has the accuracies of the arms that this call names, and the paired
differences. The arm ``zero`` (α = β = 0) is the base trained for as long, the fair comparison with
the base; it is run where it is named, as in the second call, which reads the five others.

Robust accuracy is the share of images that are right when clean and under each attack of the
recipe, in the record of an arm as in the differences: both are counted from the same cells.

A difference has two 95 % intervals: a t-interval over the seeds, and a normal one over the test
images, of each image's mean difference over the seeds. It holds, or does not, only where both
exclude 0. All arms begin with one base and are judged on one test set, so the first is of
fine-tuning alone, and neither is of another base.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy import stats

import phalanx
from phalanx.api import DefendedModel, craft, generator
from phalanx.config import RunConfig
from phalanx.data import Data, default_root, load_data
from phalanx.evaluation.cell import NONE, Cell
from phalanx.evaluation.engine import blocks_in
from phalanx.evaluation.evaluate import CELLS
from phalanx.evaluation.labels import attack_identity, attack_label
from phalanx.evaluation.store import BlockStore
from phalanx.evaluation.subjects import digest_of, images_of, model_of
from phalanx.runfile import read_run
from phalanx.training.artifacts import open_run, versions
from phalanx.training.files import read_tensors
from phalanx_igat.losses import Rule, is_wrong, owner_right, owners, true_class

RECIPE = Path(__file__).parents[1] / "plugins/igat/recipes/fashion_mnist_cpu.toml"
ARMS: dict[str, dict[str, Any]] = {
    "soft": {"rule": "soft"},
    "opposite": {"rule": "opposite"},
    "random": {"rule": "random"},
    "hard": {"rule": "hard"},
    "beta0": {"rule": "soft", "beta": 0.0},
    "zero": {"alpha": 0.0, "beta": 0.0},
}
"""Name -> what it sets; ``zero`` is the base's own training for as long."""
DEFAULT = ("soft", "opposite", "random", "hard", "beta0")
COMPARED = tuple(("soft", other) for other in ("opposite", "beta0", "random", "hard", "zero"))
BASE = "base"
BATCH = 250
"""Images that are attacked at once where owners are asked."""
OWNERS_LOGGED = ("log/igat/owner_right", "log/igat/member_right")
SEED, VIEW = 0, "deployed"
"""Of the evaluation."""
Z95 = 1.959964
VERDICT_OVER = "seeds of fine-tuning, and test images; one base, one test set"
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One arm and seed, or the base itself.

    Attributes:
        arm: key of `ARMS`, or ``base``.
        seed: of training; -1 for the base.
        base: the run that all arms begin with.
        out: where the run folders are.
        recipe: the run file.
        images: test images on which owners are asked.
    """

    arm: str
    seed: int
    base: Path
    out: Path
    recipe: Path
    images: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / (BASE if self.arm == BASE else f"{self.arm}-{self.seed}")

    def config(self) -> RunConfig:
        """The arm's run; of the base the settings that it is judged by."""
        over: Record = {"init": {"from": str(self.base)}, "seed": max(0, self.seed)}
        over["defense"] = {"params": ARMS.get(self.arm, {})}
        return read_run(self.recipe, overrides=over)


# ---------------------------------------------------------------- one arm


def work(job: Job) -> Record:
    """Train, attack, ask the owners; what is done already is read.

    Raises:
        ValueError: if the recipe names no attacks.
        RuntimeError: if an attack could not be run.
    """
    torch.set_num_threads(1)
    config, folder = job.config(), job.folder
    if not config.evaluation.attacks:
        raise ValueError(f"{job.recipe} names no attacks: write [evaluation] attacks = [...]")
    started = time.monotonic()
    if job.arm == BASE:
        run = open_run(job.base)
    else:
        run = phalanx.train(config, out=folder, resume=(folder / "state.json").exists())
    trained = time.monotonic()
    before = told(folder / "arm.json", run.sha256)
    data = load_data(config.data.use, root=default_root())
    cells = cells_of(folder, run.model, config, data)
    if cells is None:
        evaluate(run.model, config, data, folder)
        cells = cells_of(folder, run.model, config, data)
        assert cells is not None, f"{folder} lacks cells that were computed just now"
    clean, robust = outcomes(folder, cells[:1]), outcomes(folder, cells)
    evaluated = time.monotonic()
    owners = before.get("owners", {})
    if owners.get("images") != min(job.images, len(data.test)):
        owners = asked(run.model, config, data, job.images)
    attacks = config.evaluation.attacks
    found = {
        "arm": job.arm,
        "seed": job.seed,
        "weights": run.sha256,
        "images": len(robust),
        "attack": ", ".join(f"{attack_label(use)} ({use.params.threat})" for use in attacks),
        "cells": cells,
        "clean_accuracy": float(clean.mean()),
        "robust_accuracy": float(robust.mean()),
        # how often owners are right in training is left out: its meaning in the log has changed
        "last_epoch": {k: v for k, v in run.metrics[-1].items() if k not in OWNERS_LOGGED},
        "owners": owners,
        "seconds": before.get("seconds")  # the first call's times are the true ones
        or {
            "training": round(trained - started, 1),
            "evaluation": round(evaluated - trained, 1),
        },
    }
    (folder / "arm.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def told(path: Path, weights: str) -> Record:
    """What an earlier call has written of these weights; empty where it has not."""
    found: Record = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("weights") == weights else {}


def evaluate(model: DefendedModel, config: RunConfig, data: Data, folder: Path) -> None:
    """Attack the test images as the recipe says; finished cells are kept in the folder."""
    report = phalanx.evaluate(
        model,
        data,
        threat=config.evaluation.threat,
        attacks=config.evaluation.attacks,
        views=(VIEW,),
        limit=config.evaluation.limit,
        seed=SEED,
        out=folder / "evaluation",
        name=folder.name,
    )
    if report.failed:
        (first, *_) = report.failed
        raise RuntimeError(f"{first.attack}: {first.reason}")


def asked(model: DefendedModel, config: RunConfig, data: Data, count: int) -> Record:
    """How often members are right on what each rule gives them, on attacked test images.

    Args:
        model: the ensemble.
        config: the attack is its base's own; the combiner is iGAT's.
        data: its first `count` test images are attacked.
        count: of images.

    Returns:
        ``wrong``, the share that the ensemble gets wrong; then for ``misclassified`` (these alone)
        and ``all`` (all attacked images), for each rule the owner's share of right answers, and as
        ``member`` that of a member drawn uniformly.
    """
    params: Any = config.defense.params
    used = getattr(params.base.params, "attack", None) or params.attack  # not all bases have one
    attack = used.create()
    batch = data.test.fetch(torch.arange(min(count, len(data.test))))
    x, y, parts = batch.x, batch.y, []
    for start in range(0, len(y), BATCH):
        here = slice(start, start + BATCH)
        made = craft(attack, model, x[here], y[here], generator=generator("owners", start))
        with torch.no_grad():
            parts.append(torch.stack([member(made) for member in model.members]))
    z = torch.cat(parts, dim=1)
    wrong, sureness = is_wrong(z, y, params.combiner), true_class(z, y)
    found: Record = {"images": len(y), "wrong": float(wrong.float().mean())}
    for name, keep in (("misclassified", wrong), ("all", torch.ones_like(wrong))):
        found[name] = {}
        for rule in get_args(Rule):
            owner = owners(sureness, rule, generator("owners", rule))
            own, anybody = owner_right(z, y, owner, keep)
            found[name] |= {rule: float(own), "member": float(anybody)}
    return found


# ---------------------------------------------------------------- all arms


def cells_of(
    folder: Path, model: DefendedModel, config: RunConfig, data: Data
) -> list[list[str]] | None:
    """The stored cells of this evaluation: the clean one, then that of each attack.

    A folder may hold others too: of attacks, of a number of images or of weights that were asked
    for before.

    Returns:
        Of each cell the files of its blocks of images, in their order; None where one is missing.
    """
    judged, weights = config.evaluation, digest_of(model_of(model))
    count = len(data.test) if judged.limit is None else min(judged.limit, len(data.test))
    asked_for = [(NONE, NONE, NONE)]
    for use in judged.attacks:
        view = VIEW if getattr(use.params, "asks_model", True) else NONE
        asked_for.append((view, attack_identity(use), str(use.params.threat)))
    store = BlockStore(folder / "evaluation" / CELLS)
    names = []
    for view, attack, threat in dict.fromkeys(asked_for):
        cell = Cell(weights, images_of(data).name, view, attack, threat, SEED)
        paths = [store.path(block) for block in blocks_in(cell, data.test, count)]
        if not all(path is not None and path.exists() for path in paths):
            return None
        names.append([path.name for path in paths if path is not None])
    return names


def outcomes(folder: Path, cells: Sequence[Sequence[str]]) -> np.ndarray:
    """Which test images are right in all these cells of an arm, ``(N,)`` booleans."""
    bits = [
        torch.cat(
            [read_tensors(folder / "evaluation" / CELLS / name)[0]["bits"][0] for name in blocks]
        )
        for blocks in cells
    ]
    return torch.stack(bits).bool().all(0).numpy()


def summary(records: Iterable[Record], out: Path) -> Record:
    """Accuracies of each arm over its seeds, and the paired differences."""
    by_arm: dict[str, dict[int, Record]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    arms = {arm: _arm(list(found.values())) for arm, found in by_arm.items()}
    compared = {}
    for first, second in COMPARED:
        seeds = sorted(by_arm.get(first, {}).keys() & by_arm.get(second, {}).keys())
        if seeds:
            pairs = [
                tuple(
                    outcomes(out / f"{arm}-{seed}", by_arm[arm][seed]["cells"])
                    for arm in (first, second)
                )
                for seed in seeds
            ]
            compared[f"{first} - {second}"] = difference(seeds, pairs)
    return {"arms": arms, "differences": compared, "verdict_over": VERDICT_OVER}


def _arm(found: Sequence[Record]) -> Record:
    found = sorted(found, key=lambda record: record["seed"])
    means = {}
    for key in ("clean_accuracy", "robust_accuracy"):
        points = [100.0 * record[key] for record in found]
        means[key] = {
            "mean": float(np.mean(points)),
            "seeds": {str(r["seed"]): round(p, 4) for r, p in zip(found, points)},
        }
    return {**means, "owners": {str(r["seed"]): r["owners"] for r in found}}


def difference(seeds: Sequence[int], pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Record:
    """Paired differences of robust accuracy in points, one a seed, and the mean's intervals.

    Args:
        seeds: of the pairs.
        pairs: which images are right under attack, of the first arm and of the second, ``(N,)``.

    Returns:
        ``ci95_seeds``, a t-interval over the seeds (of two or more), ``ci95_images``, a normal one
        over the images of their mean differences over the seeds, and the verdict on both.
    """
    per_seed = {}
    for seed, (one, other) in zip(seeds, pairs, strict=True):
        won, lost = int((one & ~other).sum()), int((other & ~one).sum())
        points = 100.0 * (won - lost) / len(one)
        error = 100.0 * float(np.std(one.astype(float) - other.astype(float))) / len(one) ** 0.5
        per_seed[str(seed)] = {
            "points": round(points, 4),
            "only_first_right": won,
            "only_second_right": lost,
            "standard_error_over_images": round(error, 4),
        }
    values = [entry["points"] for entry in per_seed.values()]
    found: Record = {"seeds": per_seed, "mean": float(np.mean(values))}
    of_image = 100.0 * np.mean([one.astype(float) - other for one, other in pairs], axis=0)
    reach = Z95 * float(np.std(of_image)) / len(of_image) ** 0.5
    found["ci95_images"] = [found["mean"] - reach, found["mean"] + reach]
    if len(values) > 1:
        error = float(stats.sem(values))
        reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
        found["ci95_seeds"] = [found["mean"] - reach, found["mean"] + reach]
    found["verdict"] = verdict(found.get("ci95_seeds"), found["ci95_images"])
    return found


def verdict(seeds: Sequence[float] | None, images: Sequence[float]) -> str:
    """Whether the first arm is the more robust one, by both 95 % intervals of the difference."""
    if seeds is None:
        return "not resolved"
    if min(seeds[0], images[0]) > 0.0:
        return "holds"
    return "does not hold" if max(seeds[1], images[1]) < 0.0 else "not resolved"


def run(jobs: Sequence[Job], workers: int) -> tuple[list[Record], list[str]]:
    """Do all jobs, each in a process of its own; the records, and what failed and why."""
    records, failed = [], []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        started = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(started):
            name = started[future].folder.name
            try:
                record = future.result()
            except Exception as error:  # the other arms go on
                failed.append(f"{name}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            records.append(record)
            clean, robust = record["clean_accuracy"], record["robust_accuracy"]
            text = f"{name}: clean {clean:.4f}, robust {robust:.4f}"
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
    return records, failed


def main() -> None:
    """Read the command line, train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="run folder of the base")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=tuple(ARMS),
        default=list(DEFAULT),
        help=f"absent: {' '.join(DEFAULT)}; zero is the base trained for as long",
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--images", type=int, default=2000, help="on which owners are asked")
    parser.add_argument("--results", type=Path, help="absent: results.json in --out")
    options = parser.parse_args()
    results = options.results or options.out / "results.json"
    for folder in (options.out, results.parent):  # before hours of work
        folder.mkdir(parents=True, exist_ok=True)
    shared = (options.base.absolute(), options.out.absolute(), options.recipe, options.images)
    jobs = [Job(arm, seed, *shared) for seed in range(options.seeds) for arm in options.arms]
    records, failed = run([*jobs, Job(BASE, -1, *shared)], options.workers)
    places = [BASE, *ARMS]
    records.sort(key=lambda record: (record["seed"], places.index(record["arm"])))
    found = {
        "recipe": options.recipe.name,
        "software": versions(),
        **summary(records, options.out.absolute()),
        "records": records,
    }
    results.write_text(json.dumps(found, indent=1) + "\n")
    for name, one in found["differences"].items():
        texts = [
            f"{kind} " + " … ".join(f"{end:+.2f}" for end in one[f"ci95_{kind}"])
            for kind in ("seeds", "images")
            if f"ci95_{kind}" in one
        ]
        print(f"{name}: {one['mean']:+.2f} points [{'; '.join(texts)}], {one['verdict']}")
    print(f"Verdicts are over {VERDICT_OVER}.")
    if failed:
        sys.exit("\n".join([f"{len(failed)} arms failed:", *failed]))


if __name__ == "__main__":
    main()
