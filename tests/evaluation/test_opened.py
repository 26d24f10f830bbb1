"""Views opened for cells, and steps on prepared copies of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from evaluation_toys import Mixed, Plain, images
from torch import Tensor, nn

import phalanx
from phalanx.attack import attacking
from phalanx.data import load_data
from phalanx.data.sets import Data
from phalanx.defense import DefendedModel, View
from phalanx.evaluation import opened as opened_module
from phalanx.evaluation.metering import Passes
from phalanx.evaluation.opened import Opened
from phalanx.nn import MeanEnsemble, Member, Population
from phalanx.nn.prepare import Prepared

ATTACKS = {
    "ensemble": ("pgd:steps=5", "apgd-t:steps=4,targets=2", "square:queries=10"),
    "population": ("pgd:steps=5",),
}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


@pytest.fixture(scope="module")
def members(digits: Data) -> list[nn.Module]:
    """Two networks with batch normalisation, trained for a few seconds."""
    x, y = digits.train.fetch(slice(0, 768)).x, digits.train.fetch(slice(0, 768)).y
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1, width=4)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for step in range(24):
            rows = torch.arange(128) + 128 * (step % 6)
            loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made.append(Member(network, nn.Identity()))
    return made


def outcome(model: DefendedModel, digits: Data, attacks: Sequence[str]) -> list[tuple[object, ...]]:
    report = phalanx.evaluate(model, digits, attacks=attacks, limit=48, threat="linf:0.06")
    return [(row.view, row.attack, row.robust_accuracy, row.forwards) for row in report.rows]


@pytest.mark.parametrize("kind", ["ensemble", "population"])
def test_an_evaluation_comes_out_the_same_with_and_without_copies(
    kind: str, members: list[nn.Module], digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MeanEnsemble(members[:1]) if kind == "ensemble" else Population(members)
    looked: list[bool] = []
    make = opened_module.prepared

    def watched(module: nn.Module, example: Tensor) -> nn.Module | None:
        found = make(module, example)
        looked.append(isinstance(found, Prepared))
        return found

    monkeypatch.setattr(opened_module, "prepared", watched)
    fast = outcome(model, digits, ATTACKS[kind])
    assert looked
    assert all(looked)
    assert fast == outcome(model, digits, ATTACKS[kind])  # run to run
    monkeypatch.setattr(opened_module, "prepared", lambda module, example: None)
    slow = outcome(model, digits, ATTACKS[kind])
    for quick, plain in zip(fast, slow, strict=True):
        assert quick[:2] == plain[:2]
        assert quick[2] == pytest.approx(plain[2], abs=1.01 / 48)  # an image at the boundary
    assert any(0.05 < float(str(row[2])) < 0.95 for row in fast)


class Other(nn.Module):
    """Takes everything for fooled."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return -self.module(x)


def test_a_copy_that_decides_otherwise_changes_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = Plain(), images(40)

    def robust_accuracy() -> float | None:
        report = phalanx.evaluate(model, data, attacks=["pgd:steps=10"], threat="linf:0.3")
        return report.rows[0].robust_accuracy

    own = robust_accuracy()
    monkeypatch.setattr(opened_module, "prepared", lambda module, example: Other(module))
    assert robust_accuracy() == own == 0.0


def test_only_views_of_independent_rows_are_prepared(members: list[nn.Module]) -> None:
    x = torch.rand(16, 1, 8, 8)
    for name, view in Population(members).eval().views().items():
        function = Opened(view, ("a",), Passes()).at(block=0, chunk=0)
        with attacking(function.own):
            assert (function.prepare(x) is not None) is (name != "deployed")


def test_a_member_that_comes_again_is_prepared_once(members: list[nn.Module]) -> None:
    view = Population(members).eval().views()["one-draw"]
    opened = Opened(view, ("a",), Passes())
    functions = [opened.at(block=0, chunk=chunk) for chunk in range(20)]
    assert len({id(function) for function in functions}) == 2
    assert {id(function.own.module) for function in functions} == {id(m) for m in members}


def test_views_that_make_a_new_module_each_time_are_not_all_kept() -> None:
    view = View(lambda seed: Plain(), rowwise=True, fixed_draw=True)
    opened = Opened(view, ("a",), Passes())
    assert len({id(opened.at(block=0, chunk=chunk).own.module) for chunk in range(100)}) > 1
    assert len(opened._functions) == 32


def test_functions_with_a_stream_are_opened_afresh_for_each_chunk() -> None:
    model = Mixed([0.5, 0.4], closed=False)
    view = View(lambda seed: model, rowwise=False, fixed_draw=True)
    opened = Opened(view, ("a",), Passes())
    assert opened.at(block=0, chunk=0) is not opened.at(block=0, chunk=1)


def test_functions_with_a_stream_begin_it_anew_in_each_block() -> None:
    model = Mixed([0.5, 0.4], closed=False)
    opened = Opened(model.views()["deployed"], ("a",), Passes())
    first = opened.at(block=0, chunk=0)
    assert opened.at(block=0, chunk=3) is first
    assert opened.at(block=1, chunk=16) is not first
    plain = Opened(Plain().views()["deployed"], ("a",), Passes())
    assert plain.at(block=0, chunk=0) is plain.at(block=0, chunk=16)
    assert plain.at(block=0, chunk=0) is not plain.at(block=1, chunk=16)  # a copy of its own
