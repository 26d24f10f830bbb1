"""The logic of the agreement table: keys, means, verdicts, violations, and the resumed run."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from phalanx.specs import L2, Linf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agreement(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.agreement")


@pytest.fixture
def summary(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.summary")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.peers")


def record(library, seed, accuracy, **more):
    return {
        "network": "mnist",
        "threat": "linf:0.3",
        "attack": "APGD-CE",
        "library": library,
        "seed": seed,
        "images": 500,
        "robust_accuracy": accuracy,
        "outside": 0,
        "over_eps": 0,
        "largest_excess": 0.0,
        "forward_passes": 1000,
        "backward_passes": 500,
        "processor_seconds": 1.0,
        **more,
    }


def test_cells_are_all_combinations_and_the_slow_ones_come_last_by_seed(agreement):
    cells = agreement.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * (5 * 3 + 1)  # FAB-T draws nothing
    slow = [cell.attack in agreement.SLOW for cell in cells]
    assert slow == sorted(slow)
    seeds = [cell.seed for cell in cells if cell.attack in agreement.SLOW]
    assert seeds == sorted(seeds)


def test_key_follows_settings_and_seed(agreement, monkeypatch):
    cell = agreement.Cell("mnist", Linf(0.3), "APGD-CE", "phalanx", 0)
    key = cell.key()
    assert dataclasses.replace(cell).key() == key
    assert dataclasses.replace(cell, seed=1).key() != key
    assert dataclasses.replace(cell, threat=Linf(0.2)).key() != key
    longer = dataclasses.replace(agreement.PLANS["APGD-CE"], steps=101)
    monkeypatch.setitem(agreement.PLANS, "APGD-CE", longer)
    assert cell.key() != key


def test_digest_sees_code_and_not_comments(agreement):
    plain = "def f(x):\n    return x + 1\n"
    assert agreement._bare(plain) == agreement._bare(
        'def f(x):\n    """One more."""\n    # up\n    return x + 1\n'
    )
    assert agreement._bare(plain) != agreement._bare(plain.replace("1", "2"))


def test_summary_takes_means_over_seeds_and_passes_per_image(summary):
    records = [record("phalanx", s, a) for s, a in ((1, 0.89), (0, 0.90), (2, 0.91))]
    records += [record("torchattacks", 0, 0.88, outside=2), record("torchattacks", 1, 0.90)]
    (row,) = summary.summary(records)
    assert row["phalanx"]["mean"] == pytest.approx(90.0)
    assert list(row["phalanx"]["seeds"].items()) == [("0", 90.0), ("1", 89.0), ("2", 91.0)]
    assert row["torchattacks"]["mean"] == pytest.approx(89.0)
    assert row["torchattacks"]["outside"] == 2
    assert row["phalanx"]["forward_passes"] == pytest.approx(2.0)
    assert row["phalanx"]["backward_passes"] == pytest.approx(1.0)
    assert row["difference"] == pytest.approx(1.0)
    assert row["verdict"] == "within 1 point"


def test_summary_of_one_library_has_no_verdict(summary):
    (row,) = summary.summary([record("phalanx", 0, 0.9)])
    assert "difference" not in row
    assert "not run" in summary.table([row])


def test_rows_stand_in_the_order_of_networks_norms_and_attacks(summary):
    records = [
        record("phalanx", 0, 0.9, network=network, threat=threat, attack=attack)
        for network, threat in (
            ("cifar10", "l2:0.1"),
            ("mnist", "l2:2"),
            ("mnist", "linf:0.3"),
        )
        for attack in ("Square", "PGD-40")
    ]
    rows = [(row["network"], row["threat"], row["attack"]) for row in summary.summary(records)]
    assert rows == [
        ("mnist", "linf:0.3", "PGD-40"),
        ("mnist", "linf:0.3", "Square"),
        ("mnist", "l2:2", "PGD-40"),
        ("mnist", "l2:2", "Square"),
        ("cifar10", "l2:0.1", "PGD-40"),
        ("cifar10", "l2:0.1", "Square"),
    ]


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (-3.0, "ours lower"),
        (-0.01, "ours lower"),
        (0.0, "within 1 point"),
        (1.0, "within 1 point"),
        (1.01, "weaker"),
    ],
)
def test_verdict(summary, difference, expected):
    assert summary.verdict(difference) == expected


def test_violations_are_counted_by_rule(agreement):
    x = torch.full((6, 1, 2, 2), 0.95)
    x_adv = x.clone()
    x_adv[0] -= 0.1  # within
    x_adv[1] -= 0.2  # over the budget
    x_adv[2] += 0.08  # out of the box
    x_adv[3, 0, 0, 0] = torch.nan
    x_adv[4, 0, 0, 0] = torch.inf
    found = agreement.violations(x_adv, x, Linf(0.15))
    assert found["outside"] == 4
    assert found["outside_budget"] == 3  # NaN and infinity are at no distance within eps
    assert found["outside_box"] == 1
    assert found["not_finite"] == 2
    clean = agreement.violations(x, x, L2(0.1))
    assert not any(clean.values())


def test_results_are_added_one_by_one_and_stay(agreement, tmp_path):
    out = tmp_path / "results" / "agreement.json"
    assert agreement.read(out) == {}
    agreement.add(out, "a", record("phalanx", 0, 0.9))
    agreement.add(out, "b", record("torchattacks", 0, 0.92))
    assert set(agreement.read(out)) == {"a", "b"}
    stored = json.loads(out.read_text())
    assert stored["summary"][0]["verdict"] == "ours lower"
    assert [part.name for part in out.parent.iterdir()] == ["agreement.json"]
    assert agreement.keep(out, {"b", "c"}) == [record("torchattacks", 0, 0.92)]
    assert set(agreement.read(out)) == {"b"}


def test_passes_are_counted_in_images(peers):
    model = peers.Counted(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x = torch.rand(5, 1, 2, 2, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():
        model(x[:2])
    assert (model.forward_rows, model.backward_rows) == (7, 5)


@pytest.mark.parametrize("name", ["PGD-40", "APGD-CE", "APGD-DLR", "APGD-T", "FAB-T", "Square"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_our_side_of_a_plan_runs_within_its_threat(peers, agreement, name, threat):
    plan = dataclasses.replace(peers.PLANS[name], steps=3, targets=2)
    model = peers.Counted(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)))
    x, y = torch.rand(4, 1, 6, 6), torch.arange(4)
    x_adv = peers.phalanx_run(plan, threat, model, 0, 0)(x, y)
    assert agreement.violations(x_adv, x, threat)["outside"] == 0
    assert model.forward_rows > 0


def test_prepared_copy_agrees_and_leaves_the_network_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    networks = importlib.import_module("bench.networks")
    timm = importlib.import_module("timm")
    network = timm.create_model("resnet20_cifar", num_classes=10).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):  # else folding would change nothing
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepared = networks.Prepared(network)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in prepared.modules())
    x = torch.rand(3, 3, 32, 32, requires_grad=True)
    torch.testing.assert_close(prepared(x), network(x), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(prepared(x)[:, 0].sum(), x)
    assert slope.is_contiguous()
    (reference,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    torch.testing.assert_close(slope, reference, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
