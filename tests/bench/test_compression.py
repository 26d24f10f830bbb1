"""The bench of what pruning saves, on networks so small that it takes seconds."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compression(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.compression")


def test_bytes_of_a_small_system(compression):
    dense, block = compression.all_bytes([("block", 4)], width=8)
    assert (dense["scheme"], dense["sparsity"], dense["share"]) == ("dense", 0.0, 1.0)
    assert dense["experts"] == 7
    assert dense["aggregator_width"] == 8
    assert block["aggregator_width"] == 4
    assert block["sparsity"] == pytest.approx(0.75, abs=0.01)
    assert block["share"] == pytest.approx(block["bytes"] / dense["bytes"], abs=1e-4)
    assert block["bytes"] < 0.4 * dense["bytes"]


def test_latency_of_small_networks(compression):
    given = compression.networks(width=8)
    assert list(given) == [
        "dense",
        "filter 4x",
        "filter 4x, compacted",
        "filter 4x, blocks alone, compacted",
        "filter 8x, compacted",
    ]
    records = compression.all_latencies(given, {1: 2})
    assert [one["network"] for one in records] == list(given)
    assert records[0]["ratio"] == 1.0
    dense, pruned, compacted, alone, smallest = (one["parameters"] for one in records)
    assert dense == pruned > 3 * alone
    assert alone > compacted > smallest
    assert all(one["milliseconds_an_image"] > 0.0 for one in records)


def test_medians_and_ratios_of_the_first(compression):
    now = [0.0]

    class Network(torch.nn.Module):
        def __init__(self, *seconds):
            super().__init__()
            self.seconds = iter(seconds)

        def forward(self, x):
            now[0] += next(self.seconds)
            return x

    given = {"a": Network(9.0, 4.0, 2.0, 6.0), "b": Network(9.0, 1.0, 3.0, 2.0)}
    found = compression.all_latencies(given, {2: 3}, clock=lambda: now[0])
    assert [one["milliseconds_an_image"] for one in found] == [2000.0, 1000.0]
    assert [one["ratio"] for one in found] == [1.0, 0.5]


def test_a_network_that_answers_otherwise_is_refused(compression):
    given = compression.networks(compression.VARIANTS[:1], width=8)
    with pytest.raises(AssertionError, match="away from its own scores"):
        compression.check(given["dense"], given["filter 4x, compacted"])


def test_what_is_too_large_or_slow_is_said(compression):
    results = {
        "processor": "P",
        "torch": "2",
        "bytes": [
            row("dense", 1, 1.0),
            row("block", 8, 0.15),
            row("block", 4, 0.3),
        ],
        "latency": [
            latency("dense", 1.0),
            latency("filter 4x, compacted", 0.6),
            latency("filter 8x, compacted", 0.6),
        ],
    }
    assert compression.broken(results) == [
        "block 8x: 0.15 of the dense system's bytes",
        "block 4x: 0.3 of the dense system's bytes",
        "filter 4x, compacted, batch 1: 0.6 of the dense network's time",
    ]
    results["bytes"][1]["share"] = 0.14
    results["bytes"][2]["share"] = 0.25
    results["latency"][1]["ratio"] = 0.5
    assert compression.broken(results) == []
    page = compression.table(results)
    assert "| block | 8 | 22 | 1,000 | 87.5% | 2,000 | 0.1400 |" in page
    assert "| filter 4x, compacted | 1 | 3 | 1,000 | 2.50 | 0.500 |" in page


def row(scheme, rate, share):
    return {
        "scheme": scheme,
        "rate": rate,
        "experts": 7,
        "aggregator_width": 22,
        "parameters": 1000,
        "sparsity": 0.875,
        "bytes": 2000,
        "share": share,
    }


def latency(network, ratio):
    return {
        "network": network,
        "batch": 1,
        "rounds": 3,
        "parameters": 1000,
        "milliseconds_an_image": 2.5,
        "ratio": ratio,
    }
