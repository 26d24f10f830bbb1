"""The shared trained MNIST networks through the whole evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

import phalanx
from phalanx.data import load_data
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.nn.member import Member

pytestmark = pytest.mark.real_data

PGD = ("pgd:steps=40,step=0.01",)


def network(weights: Path, name: str) -> Member:
    import torch

    backbone = timm.create_model("mnist_cnn", num_classes=10)
    backbone.load_state_dict(load_file(weights / f"mnist_lenet_{name}.safetensors"))
    return Member(backbone, torch.nn.Identity())


def test_the_published_networks_under_pgd(data_root: Path, weights_root: Path) -> None:
    data = load_data("mnist", root=data_root)
    found = {}
    for name in ("clean", "adversarial"):
        model = MeanEnsemble([network(weights_root, name)])
        report = phalanx.evaluate(model, data, attacks=PGD, limit=200, name=name)
        found[name], _ = report.rows
    assert found["clean"].clean_accuracy >= 0.98
    assert found["clean"].robust_accuracy == 0.0
    assert found["clean"].ci95 == pytest.approx((0.0, 0.0188), abs=1e-3)
    assert found["adversarial"].clean_accuracy >= 0.98
    assert 0.91 <= found["adversarial"].robust_accuracy <= 0.96
    passes = {name: (row.forwards, row.backwards) for name, row in found.items()}
    assert passes["clean"][0] == passes["clean"][1] < 20  # fooled images leave the batch
    assert 36 < passes["adversarial"][0] == passes["adversarial"][1] < 40


def test_a_population_of_both_is_judged_over_its_support(
    data_root: Path, weights_root: Path
) -> None:
    data = load_data("mnist", root=data_root)
    model = Population([network(weights_root, name) for name in ("clean", "adversarial")])
    report = phalanx.evaluate(model, data, attacks=("fgsm",), limit=96)
    rows = {row.view: row for row in report.rows}
    assert set(rows) == {"deployed", "one-draw", "expected", "worst"}
    assert rows["worst"].robust_accuracy <= min(row.robust_accuracy for row in report.rows)
    assert "6 chunks of 16 images" in (rows["one-draw"].note or "")
