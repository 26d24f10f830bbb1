"""What an attack costs with us and with others, at equal budget.

    python -m bench.benchmark

Processor time of one thread. In each round every library attacks the same images once, one after
the other, and its time is divided by that of the baseline in the same round; the table shows the
median over rounds. Robust accuracies are those of the network itself on examples re-checked for
budget and box. Passes are images through the network or a copy of it, per attacked image.

Each finished round is appended to ``benchmark.jsonl`` at once, under a key of settings and code,
so an interrupted run goes on where it stopped; then ``benchmark.md`` and ``benchmark.json`` are
written from all rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import statistics
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import phalanx
from bench.libraries import ATTACKS, Counting, Run, bare_loop, libraries
from bench.networks import CASES, load
from phalanx.attacks.balls import within
from phalanx.nn import Member, Normalize
from phalanx.specs import Linf

LIBRARIES = ("torchattacks", "foolbox", "art.attacks.evasion", "art.estimators.classification")
OUT = Path(__file__).parent / "results"
Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is attacked.

    Attributes:
        name: in tables.
        network: in evaluation mode; its parameters need gradients.
        x: images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.
        threat: L-inf.
        trained: whether a robust accuracy means anything.
    """

    name: str
    network: nn.Module
    x: Tensor
    y: Tensor
    threat: Linf
    trained: bool = True


ROUNDS = (
    ("ResNet-18, untrained", "PGD-20", 3),
    ("ResNet-20", "PGD-20", 7),
    ("MNIST network", "PGD-20", 7),
    ("ResNet-20", "APGD-CE", 3),
    ("MNIST network", "APGD-CE", 3),
    ("ResNet-20", "Square", 1),
    ("MNIST network", "Square", 1),
    ("ResNet-20", "APGD-T", 1),
    ("MNIST network", "APGD-T", 1),
    ("ResNet-20", "FAB-T", 1),
    ("MNIST network", "FAB-T", 1),
)
"""Network, attack, number of rounds."""


def subject(name: str) -> Subject:
    """A network and its images by the name in `ROUNDS`."""
    if name.startswith("ResNet-18"):
        torch.manual_seed(0)
        backbone = timm.create_model("resnet18_cifar", num_classes=10)
        torch.nn.init.constant_(backbone.fc.bias[:1], 10.0)  # nobody is fooled: no row is left out
        network = Member(backbone, Normalize((0.5,) * 3, (0.25,) * 3)).eval()
        x, y = torch.rand(32, 3, 32, 32), torch.zeros(32, dtype=torch.long)
        return Subject(name, network, x, y, Linf("8/255"), trained=False)
    case, count = (CASES["cifar10"], 64) if name == "ResNet-20" else (CASES["mnist"], 200)
    loaded = load(case, count)
    network = loaded.network.requires_grad_()
    threat = case.threats[0]
    assert isinstance(threat, Linf)
    return Subject(name, network, loaded.x, loaded.y, threat)


def measure(run: Run, on: Subject, seed: int) -> Record:
    """One attack on all images: seconds, passes per image, robust accuracy."""
    counting = Counting(on.network).eval()
    x, y = on.x.clone(), on.y.clone()
    start = time.process_time()
    found = run(counting, x, y, on.threat, seed)
    seconds = time.process_time() - start
    found = found.detach().clamp(0.0, 1.0)  # some leave the box by a rounding error
    kept = within(found, on.x, on.threat)
    with torch.no_grad():
        right = on.network(torch.where(kept[:, None, None, None], found, on.x)).argmax(1) == on.y
    counts = counting.tally.counts
    return {
        "seconds": round(seconds, 3),
        "forwards": round(counts["forward"] / len(x), 2),
        "backwards": round(counts["backward"] / len(x), 2),
        "robust": round(100.0 * float(right.float().mean()), 2) if on.trained else None,
        "outside": int((~kept).sum()),
    }


_COMMON = ("attack", "attacks/balls", "attacks/losses", "attacks/crafting", "nn/prepare")
_OWN = {
    "pgd": ("attacks/ascent", "attacks/gradient"),
    "apgd-ce": ("attacks/ascent", "attacks/auto", "attacks/apgd"),
    "apgd-t": ("attacks/ascent", "attacks/auto", "attacks/apgd"),
    "fab-t": ("attacks/ascent", "attacks/fab"),
    "square": ("attacks/square",),
}


def code(kind: str) -> str:
    """SHA-256 of the sources that the times of an attack depend on, shortened."""
    root = Path(phalanx.__file__).parent
    files = [root / f"{name}.py" for name in (*_COMMON, *_OWN[kind])]
    files.append(Path(__file__).parent / "libraries.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def key_of(name: str, attack: str) -> str:
    """Names the settings and the code, so that an old round is not taken for a new one."""
    text = repr((name, attack, ATTACKS[attack], code(ATTACKS[attack].kind)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rounds_of(path: Path, key: str) -> list[Record]:
    """Finished rounds of these settings and this code."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["key"] == key]


def measured(path: Path, name: str, attack: str, count: int) -> list[Record]:
    """All rounds of one comparison; those that are missing are measured and appended."""
    key = key_of(name, attack)
    done = rounds_of(path, key)
    if len(done) >= count:
        return done[:count]
    for module in LIBRARIES:
        importlib.import_module(module)  # so that no first round pays for it
    on, runs = subject(name), libraries(attack)
    bare_loop(on.network, on.x, on.y, on.threat, 0)
    names = list(runs)
    for number in range(len(done), count):
        turn = number % len(names)  # who begins changes, so that nobody is always warm
        found = {who: measure(runs[who], on, number) for who in names[turn:] + names[:turn]}
        record = {"key": key, "network": name, "attack": attack, "round": number, "found": found}
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, attack, number, {w: r["seconds"] for w, r in found.items()}, flush=True)
        done.append(record)
    return done


def summary(records: list[Record], baseline: str) -> dict[str, Record]:
    """Per library: medians over rounds; time also as a ratio to the baseline of its round."""
    found = {}
    for who in records[0]["found"]:
        rows = [record["found"][who] for record in records]
        ratios = [
            r["seconds"] / record["found"][baseline]["seconds"]
            for r, record in zip(rows, records, strict=True)
        ]
        found[who] = {
            "ratio": round(statistics.median(ratios), 3),
            **{
                name: None
                if rows[0][name] is None
                else round(statistics.median([r[name] for r in rows]), 2)
                for name in ("seconds", "forwards", "backwards", "robust", "outside")
            },
        }
    return found


def table(results: list[Record]) -> str:
    """The results as Markdown."""
    lines = [
        "# Benchmark",
        "",
        f"Processor time of one thread; torch {torch.__version__}, {platform.machine()}, "
        f"Python {platform.python_version()}. "
        + ", ".join(f"{n} {metadata.version(n)}" for n in ("torchattacks", "foolbox"))
        + f", ART {metadata.version('adversarial-robustness-toolbox')}.",
        "",
        "Ratio: median over rounds of the time divided by the baseline's in the same round. The "
        "baseline of PGD is a bare loop on the network with frozen parameters, that of the other "
        "attacks is torchattacks. Passes are per image and include ours for preparing and checking "
        "the copy. Robust: the network itself on re-checked examples, in percent.",
        "",
        "| network | attack | rounds | library | ratio | seconds | forwards | backwards | robust |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        for who, r in one["libraries"].items():
            robust = "-" if r["robust"] is None else f"{r['robust']:.1f}"
            lines.append(
                f"| {one['network']} | {one['attack']} | {one['rounds']} | {who} | "
                f"{r['ratio']:.2f} | {r['seconds']:.1f} | {r['forwards']:.1f} | "
                f"{r['backwards']:.1f} | {robust} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--only", default="", help="comparisons that hold this, as 'ResNet-20 PGD'")
    parser.add_argument(
        "--stored", action="store_true", help="measure nothing: tables of the rounds that are there"
    )
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = []
    for name, attack, count in ROUNDS:
        if chosen.only not in f"{name} {attack}":
            continue
        path = chosen.out / "benchmark.jsonl"
        stored = rounds_of(path, key_of(name, attack))[:count]
        records = stored if chosen.stored else measured(path, name, attack, count)
        if not records:
            continue
        found = summary(records, next(iter(libraries(attack))))
        results.append(
            {"network": name, "attack": attack, "rounds": len(records), "libraries": found}
        )
        if not chosen.only:
            (chosen.out / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")
            (chosen.out / "benchmark.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
