"""The protocol ``standard`` beside AutoAttack of torchattacks' attacks, image by image.

    python -m bench.standard --work FOLDER
    python -m bench.standard --work FOLDER --network cifar10

Theirs is AutoAttack's standard set with the original's budgets (F. Croce and M. Hein, ICML 2020):
APGD-CE of 100 steps, APGD-T and FAB-T of 100 steps to each of 9 classes, Square of 5,000 queries,
one restart each, each on the images that the ones before left. Ours is `phalanx.evaluate` with the
protocol ``standard``. Both are judged on the network itself; an example that left ball or box
counts as its clean image, and how many did is told.

What is done is kept under FOLDER, batch by batch, and a repeated call goes on. Writes
``standard.json`` and ``standard.md`` into ``bench/results``. Its environment is that of
`bench/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import phalanx
from bench.agreement import software, violations
from bench.networks import CASES, Case, Loaded, load
from bench.peers import PLANS, Plan, torchattacks_run
from phalanx.attack import attacking
from phalanx.evaluation import scoring
from phalanx.evaluation.cell import NONE, Cell, joined
from phalanx.evaluation.engine import blocks_in
from phalanx.evaluation.evaluate import CELLS
from phalanx.evaluation.labels import attack_identity
from phalanx.evaluation.protocol import load_protocol
from phalanx.evaluation.store import BlockStore
from phalanx.evaluation.subjects import Subject, digest_of, images_of, model_of
from phalanx.evaluation.verify import verify
from phalanx.training.files import write_json

RESULTS = Path(__file__).parent / "results"
COUNTS = {"mnist": 1000, "cifar10": 256}
"""Test images of each network, from the first."""
STAGES = ("APGD-CE", "APGD-T", "FAB-T", "Square-5000")
BUDGETS: dict[str, Plan] = {**PLANS, "Square-5000": Plan("square", 5000)}
SEED, VIEW = 0, "deployed"
Record = dict[str, Any]


# ---------------------------------------------------------------- theirs


def theirs(case: Case, loaded: Loaded, file: Path) -> Record:
    """AutoAttack by torchattacks: which images are left, and examples that broke the rules.

    Args:
        case: the network's budgets; the first threat, in L-inf, is taken.
        loaded: network and images.
        file: where finished batches are kept.
    """
    kept: Record = {"settings": settings(case, len(loaded.x)), "batches": {}}
    if file.exists():
        found: Record = json.loads(file.read_text())
        kept = found if found["settings"] == kept["settings"] else kept
    done = kept["batches"]
    with torch.no_grad():
        scores = torch.cat([loaded.network(part) for part in loaded.x.split(case.batch)])
    left = scores.argmax(1) == loaded.y
    outside = 0
    for stage in STAGES:
        rows = left.nonzero().squeeze(1)
        for number, part in enumerate(rows.split(case.batch)):
            key = f"{stage} {number}"
            if key not in done:
                done[key] = _batch(case, loaded, BUDGETS[stage], part, number)
                write_json(file, kept)
                print(f"{case.name}: {key}: {done[key]}", file=sys.stderr, flush=True)
            left[part[torch.tensor(done[key]["broken"], dtype=torch.long)]] = False
            outside += done[key]["outside"]
    return {"left": left.tolist(), "outside": outside}


def settings(case: Case, count: int) -> Record:
    """What finished batches answer to."""
    return {
        "weights": case.weights,
        "threat": str(case.threats[0]),
        "images": count,
        "batch": case.batch,
        "budgets": {stage: repr(BUDGETS[stage]) for stage in STAGES},
        "seed": SEED,
        "software": software(),
    }


def _batch(case: Case, loaded: Loaded, plan: Plan, rows: Tensor, number: int) -> Record:
    """One batch of one attack: places of the images that it breaks."""
    x, y, threat = loaded.x[rows], loaded.y[rows], case.threats[0]
    with attacking(loaded.prepared):
        x_adv = torchattacks_run(plan, threat, loaded.prepared, SEED, number)(x, y)
    found = violations(x_adv, x, threat)
    inside = torch.ones(len(x), dtype=torch.bool)
    if found["outside"]:
        ones = [violations(x_adv[[row]], x[[row]], threat)["outside"] for row in range(len(x))]
        inside = torch.tensor(ones) == 0
    with torch.no_grad():
        broken = (loaded.network(x_adv).argmax(1) != y) & inside
    return {"broken": broken.nonzero().squeeze(1).tolist(), "outside": found["outside"]}


# ---------------------------------------------------------------- ours


def ours(case: Case, loaded: Loaded, folder: Path) -> Record:
    """The protocol ``standard``: the same of it, from its kept cells and examples."""
    threat, data = case.threats[0], (loaded.x, loaded.y)
    report = phalanx.evaluate(
        loaded.network,
        data,
        protocol="standard",
        threat=threat,
        seed=SEED,
        out=folder,
        name=case.name,
        keep_examples=True,
        checks="free",
    )
    if report.failed:
        raise SystemExit(f"{case.name}: {report.failed[0].attack}: {report.failed[0].reason}")
    images, model = images_of(data), model_of(loaded.network)
    weights, store = digest_of(model), BlockStore(folder / CELLS)
    protocol = load_protocol("standard", threat=threat)
    left = torch.ones(len(loaded.x), dtype=torch.bool)
    for use in (None, *protocol.attacks):
        cell = Cell(
            weights=weights,
            data=images.name,
            view=VIEW if use is not None else NONE,
            attack=NONE if use is None else attack_identity(use),
            threat=NONE if use is None else str(threat),
            seed=SEED,
        )
        found = [store.get(one) for one in blocks_in(cell, images.split, len(left))]
        parts = [one for one in found if one is not None]
        if len(parts) < len(found):
            raise SystemExit(
                f"{folder} lacks a cell under this key: was memory short, so that fewer than 256 "
                "images were attacked at once? Free memory, empty the folder, and repeat."
            )
        left &= scoring.shares(joined(parts).bits) > 0.5
    checked, _ = verify(folder, [Subject(case.name, model, weights)], images)
    worst = next(row for row in report.rows if row.attack == "worst")
    assert abs(worst.robust_accuracy - float(left.double().mean())) < 1e-9
    return {"left": left.tolist(), "outside": sum(one.outside for one in checked)}


# ---------------------------------------------------------------- both


def compared(name: str, work: Path) -> Record:
    """Both on one network, and where they differ."""
    case = CASES[name]
    loaded = load(case, COUNTS[name])
    work.mkdir(parents=True, exist_ok=True)
    own = ours(case, loaded, work / f"{name}-phalanx")
    other = theirs(case, loaded, work / f"{name}-torchattacks.json")
    a, b = torch.tensor(own["left"]), torch.tensor(other["left"])
    return {
        "network": case.name,
        "threat": str(case.threats[0]),
        "images": len(a),
        "ours": float(a.double().mean()),
        "torchattacks": float(b.double().mean()),
        "broken_by_ours_alone": int((b & ~a).sum()),
        "broken_by_torchattacks_alone": int((a & ~b).sum()),
        "outside_ours": own["outside"],
        "outside_torchattacks": other["outside"],
        "software": software(),
    }


def table(records: list[Record]) -> str:
    """The page."""
    lines = [
        "# `standard` beside AutoAttack of torchattacks' attacks",
        "",
        "Robust accuracy in % after the whole set; examples outside ball or box break no image.",
        "",
        "| network | threat | images | ours | torchattacks | difference, points | broken by ours "
        "alone | by torchattacks alone | outside, ours | outside, torchattacks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in records:
        gap = 100 * (one["ours"] - one["torchattacks"])
        lines.append(
            f"| {one['network']} | {one['threat']} | {one['images']} | {100 * one['ours']:.2f} | "
            f"{100 * one['torchattacks']:.2f} | {gap:+.2f} | {one['broken_by_ours_alone']} | "
            f"{one['broken_by_torchattacks_alone']} | {one['outside_ours']} | "
            f"{one['outside_torchattacks']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where finished batches are kept")
    parser.add_argument("--network", choices=tuple(COUNTS), help="this one alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.out / "standard.json"
    known = json.loads(file.read_text())["networks"] if file.exists() else {}
    for name in [options.network] if options.network else COUNTS:
        known[name] = compared(name, options.work)
        write_json(file, {"networks": known})
        (options.out / "standard.md").write_text(table(list(known.values())))
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
