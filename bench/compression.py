"""What pruning saves: MoL's bytes on disk, and the latency of filter-pruned networks.

    python -m bench.compression

Weights are untrained and projected, which is all that bytes and latency depend on. Bytes: MoL's
seven experts (ResNet-18, width 64) and its aggregator as one weights file, written as a finished
run writes it, beside the same with dense experts and an aggregator of full width. Latency: one
expert, its filters pruned and compacted, beside the dense one; processor time of one thread, the
networks in turn in each round, the median over rounds.

Writes ``compression.json`` and ``compression.md`` into ``bench/results``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phalanx.api import Backbone, Task, UsePruner, build_member, filter_parameters, generator
from phalanx.nn.size import latencies, processor, size_of
from phalanx.randomness import seeded
from phalanx.runfile import read_run
from phalanx.training.artifacts import WEIGHTS, build_model, write_weights

OUT = Path(__file__).parent / "results"
TASK = Task(
    name="cifar10",
    shape=(3, 32, 32),
    classes=10,
    train_size=50000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
)
WIDTH = 64
SCHEMES = (("block", 8), ("irregular", 8), ("block", 4), ("filter", 4))
"""Pruner and rate; a filter-pruned network is stored with its zeros, as it is trained."""
LARGEST_SHARE = {8: 1 / 7, 4: 0.27}
"""Of the dense system's bytes, at a rate of blocks. At 8 as the paper counts: a pruned system is as
large as one network; at 4 a quarter, and room for the bits and what is not pruned."""
VARIANTS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("filter 4x", 4, ()),
    ("filter 4x, blocks alone", 4, ("conv1", "*downsample*")),
    ("filter 8x", 8, ()),
)
"""For latency: name, rate of filters, layers that are not pruned. Where stem and shortcuts are not,
all channels between blocks stay, whichever filters are pruned."""
LARGEST_RATIO = 0.5
"""Of the dense expert's time, at a rate of 4."""
BATCHES = {1: 30, 16: 10}
"""Images in a pass, and rounds."""
Record = dict[str, Any]


# ---------------------------------------------------------------- networks


@torch.no_grad()
def prune(model: nn.Module, use: UsePruner) -> Any:
    """Project a model's weights, and silence filters of zeros; the pruner."""
    pruner = use.create()
    for name, layer in pruner.layers(model).items():
        layer.weight.copy_(pruner.project(name, layer.weight))
    besides = filter_parameters(model, torch.zeros(1, *TASK.shape))
    for layer, tensors in besides.items():
        if isinstance(layer, nn.Conv2d):
            silent = (layer.weight == 0).flatten(1).all(1)
            for tensor in tensors:
                tensor[silent] = 0.0
    return pruner


def pruner_of(scheme: str, rate: float) -> UsePruner:
    """A pruner with its paper's settings but for the rate."""
    return UsePruner.model_validate({"use": scheme, "params": {"rate": rate}})


# ---------------------------------------------------------------- bytes


def system_bytes(folder: Path, pruner: UsePruner | None, *, width: int = WIDTH) -> Record:
    """Bytes of MoL's weights file with seven experts, and sizes; without a pruner all is dense."""
    params: Record = {
        "experts": "comprehensive",
        "backbone": {"use": "resnet18_cifar", "params": {"width": width}},
    }
    if pruner is not None:
        params["pruner"] = pruner.model_dump()
    config = read_run(
        {"data": {"use": "cifar10"}, "defense": {"use": "mol", "params": params}},
    )
    model: Any = build_model(config, TASK)
    if pruner is not None:
        prune(model.experts, pruner)
    write_weights(folder, model, config, TASK, {})
    experts, aggregator = size_of(model.experts), model.aggregator.made_from
    return {
        "experts": len(model.experts),
        "aggregator_width": aggregator.params["width"],
        "parameters": size_of(model).parameters,
        "sparsity": round(experts.sparsity, 4),
        "bytes": (folder / WEIGHTS).stat().st_size,
    }


def all_bytes(schemes: Sequence[tuple[str, int]] = SCHEMES, *, width: int = WIDTH) -> list[Record]:
    """One record for the dense system, and one for each scheme with its share of that."""
    with tempfile.TemporaryDirectory() as folder:
        dense = system_bytes(Path(folder), None, width=width)
        found = [{"scheme": "dense", "rate": 1, **dense, "share": 1.0}]
        for scheme, rate in schemes:
            one = system_bytes(Path(folder), pruner_of(scheme, rate), width=width)
            share = round(one["bytes"] / dense["bytes"], 4)
            found.append({"scheme": scheme, "rate": rate, **one, "share": share})
    return found


# ---------------------------------------------------------------- latency


def networks(
    variants: Sequence[tuple[str, float, tuple[str, ...]]] = VARIANTS, *, width: int = WIDTH
) -> dict[str, nn.Module]:
    """A dense expert, the first variant as it is pruned, and each variant compacted."""
    found = {"dense": expert(width)}
    for name, rate, skip in variants:
        member = expert(width)
        params = {"rate": rate, "skip": skip}
        pruner = prune(member, UsePruner.model_validate({"use": "filter", "params": params}))
        compacted = pruner.compact(member)
        check(member, compacted)
        if len(found) == 1:
            found[name] = member
        found[f"{name}, compacted"] = compacted
    return found


def expert(width: int) -> nn.Module:
    """An untrained expert, the same one at each call."""
    with seeded(0, "build"):
        backbone = Backbone(use="resnet18_cifar", params={"width": width})
        return build_member(backbone, TASK).eval()


@torch.no_grad()
def check(own: nn.Module, found: nn.Module) -> None:
    """Refuse a compacted network that answers otherwise.

    Raises:
        AssertionError: if scores differ by more than 1e-5 of the largest.
    """
    x = torch.rand(8, *TASK.shape, generator=generator(0, "check"))
    expected = own(x)
    gap = float((found(x) - expected).abs().max() / expected.abs().max())
    if not gap <= 1e-5:
        raise AssertionError(f"the compacted network is {gap:.1e} away from its own scores")


def all_latencies(
    given: dict[str, nn.Module],
    batches: dict[int, int] = BATCHES,
    *,
    clock: Callable[[], float] = time.process_time,
) -> list[Record]:
    """Medians over rounds for each network and batch, and their ratio to the first network's."""
    records = []
    for batch, rounds in batches.items():
        x = torch.rand(batch, *TASK.shape, generator=generator(0, "images"))
        timed = latencies(list(given.values()), x, passes=rounds, clock=clock)
        for (name, network), one in zip(given.items(), timed, strict=True):
            records.append(
                {
                    "network": name,
                    "batch": batch,
                    "rounds": rounds,
                    "parameters": size_of(network).parameters,
                    "milliseconds_an_image": round(1e3 * one.seconds, 3),
                    "ratio": round(one.seconds / timed[0].seconds, 4),
                }
            )
    return records


# ---------------------------------------------------------------- results


def broken(results: Record) -> list[str]:
    """What is larger or slower than it should be."""
    found = [
        f"{one['scheme']} {one['rate']}x: {one['share']} of the dense system's bytes"
        for one in results["bytes"]
        if one["scheme"] == "block" and one["share"] > LARGEST_SHARE.get(one["rate"], 1.0)
    ]
    limited = [f"{name}, compacted" for name, rate, _ in VARIANTS if rate == 4]
    return found + [
        f"{one['network']}, batch {one['batch']}: {one['ratio']} of the dense network's time"
        for one in results["latency"]
        if one["network"] in limited and one["ratio"] > LARGEST_RATIO
    ]


def table(results: Record) -> str:
    """The results as Markdown."""
    lines = [
        "# Compression",
        "",
        f"{results['processor']}, one thread, torch {results['torch']}.",
        "",
        f"MoL with {results['bytes'][0]['experts']} experts, ResNet-18 of width {WIDTH}, images of "
        "CIFAR-10's shape: bytes of its weights file. Untrained weights, projected. Sparsity is "
        "that of the experts' convolutions; a block is 4 filters x 4 channels at one kernel "
        "position.",
        "",
        "| pruner | rate | aggregator's width | parameters | sparsity | bytes | of the dense |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['scheme']} | {one['rate']} | {one['aggregator_width']} | {one['parameters']:,} | "
        f"{one['sparsity']:.1%} | {one['bytes']:,} | {one['share']:.4f} |"
        for one in results["bytes"]
    ]
    lines += [
        "",
        "One expert, its filters pruned at a rate of 4 and 8: processor time of an image, medians; "
        "ratio to the dense network's. Compacted, channels inside residual blocks are gone, and "
        "those of a stage where all that write them happen to be zero; `blocks alone`: stem and "
        "shortcuts are not pruned, so none of the latter. Scores agree to 1e-5.",
        "",
        "| network | batch | rounds | parameters | ms | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['network']} | {one['batch']} | {one['rounds']} | {one['parameters']:,} | "
        f"{one['milliseconds_an_image']:.2f} | {one['ratio']:.3f} |"
        for one in results["latency"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write, and fail where something is larger or slower than it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "processor": processor(),
        "torch": torch.__version__,
        "bytes": all_bytes(),
        "latency": all_latencies(networks()),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "compression.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.out / "compression.md").write_text(table(results))
    print(table(results))
    if failed := broken(results):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
