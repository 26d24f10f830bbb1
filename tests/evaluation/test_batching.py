"""How many images are attacked at once: what a pass keeps, against the memory that is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluation_toys import SIDE, Mixed, Plain, Threshold, images, toy_registry
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Generator, Tensor, nn

from phalanx.defense import DefendedModel, View
from phalanx.evaluation import batching
from phalanx.evaluation.batching import automatic_batch
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.specs import Linf

SHAPE = (1, SIDE, SIDE)
LAYERS = 4 * (8 * SIDE * SIDE + 8 * SIDE * SIDE + 8 * SIDE * SIDE + 2)
"""Bytes of what the layers of `Small` answer for one image, in float32."""


class Small(DefendedModel):
    """A convolution of 8 channels, a ReLU, a flattening and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIDE**2, 2)
        )
        self.more: dict[str, View] = {}
        self.modes: list[bool] = []

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        self.modes.append(self.training)
        scores: Tensor = self.network(x)
        return scores

    def views(self) -> dict[str, View]:
        return {"deployed": View(self.serve), **self.more}


def free(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(batching, "_free", lambda device: size)


def enough(batch: int, passes: int = 1) -> int:
    """The fewest free bytes with which so many images may be attacked at once."""
    return 4 * 3 * batch * passes * LAYERS  # a quarter of it, three copies of each layer's output


@pytest.mark.parametrize("batch", [16, 32, 64, 128, 256])
def test_the_largest_power_of_two_that_fits(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, enough(batch))
    assert automatic_batch(Small(), SHAPE) == batch
    free(monkeypatch, enough(batch) - 1)
    assert automatic_batch(Small(), SHAPE) == max(16, batch // 2)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 2 * enough(256)))
def test_any_memory_gives_a_batch_that_blocks_are_made_of(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, size)
    batch = automatic_batch(Small(), SHAPE)
    assert batch in (16, 32, 64, 128, 256)
    assert batch == 16 or enough(batch) <= size
    assert batch == 256 or enough(2 * batch) > size


def test_the_hungriest_view_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Often(nn.Module):
        """Asks the network of another four times."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.network(x) for _ in range(4)]).mean(0)

    model = Small()
    free(monkeypatch, enough(64, passes=4))
    assert automatic_batch(model, SHAPE) == 256
    model.more = {"mean of four": View(lambda seed: Often(model.network))}
    assert automatic_batch(model, SHAPE) == 64


def test_all_draws_of_the_view_expected_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(Threshold):
        """With a layer that is seen."""

        def __init__(self, cut: float) -> None:
            super().__init__(cut)
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(super().forward(x))

    model = Mixed([0.5, 0.4], closed=False)
    model.networks = nn.ModuleList([Layer(0.5), Layer(0.4)])
    bytes_of_a_draw = 2 * 2 * 4  # both networks answer, two classes each
    free(monkeypatch, 4 * 3 * 32 * 20 * bytes_of_a_draw)
    assert automatic_batch(model, SHAPE) == 32


def test_a_view_that_fails_is_left_to_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(seed: int) -> nn.Module:
        raise ZeroDivisionError("oh")

    model = Small()
    model.more = {"never opened": View(never), "no images": View(lambda seed: nn.Linear(3, 2))}
    free(monkeypatch, enough(64))
    assert automatic_batch(model, SHAPE) == 64
    model.network = nn.Sequential(nn.Linear(3, 2))
    assert automatic_batch(model, SHAPE) == 256  # nothing is known of it


@pytest.mark.parametrize("size", [None, 0])
def test_memory_or_layers_that_nobody_knows(
    size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, size)
    assert automatic_batch(Small(), SHAPE) == (256 if size is None else 16)
    assert automatic_batch(Plain(), SHAPE) == (256 if size is None else 16)


def test_nothing_is_left_behind() -> None:
    model = Small()
    model.train()
    before = torch.get_rng_state()
    automatic_batch(model, SHAPE)
    assert model.modes == [False]
    assert model.training
    assert model.network[0].training
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_machine_says() -> None:
    found = batching._free(torch.device("cpu"))
    assert found is None or found > 2**20
    # whatever it is, a toy's pass fits
    assert automatic_batch(Small(), SHAPE) == 256


# ---------------------------------------------------------------- in an evaluation


def evaluated(model: DefendedModel, **rest: Any) -> tuple[Any, list[int]]:
    registry, log = toy_registry()
    uses = tuple(
        resolve_attack(one, threat=Linf(0.1), registry=registry)
        for one in ({"use": "toy"}, {"use": "toy", "params": {"size": 0.05}})
    )
    subject = Subject("m", model, "m")
    report = evaluate_models([subject], images(70), Plan(uses), registry=registry, **rest)
    return report, [rows for rows, _, _ in log.seen]


def test_an_evaluation_attacks_as_many_as_there_is_room_for_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Small()
    whole, sizes = evaluated(model)
    assert sizes == [70, 70]
    assert whole.notes == ()
    free(monkeypatch, enough(32))
    small, sizes = evaluated(model)
    assert sizes == [32, 32, 6] * 2
    assert small.notes == (
        "m: 32 images at a time were attacked, as memory has room for no block of 256.",
    )
    assert small.rows == whole.rows  # the toy draws nothing
    given, sizes = evaluated(model, batch=16)
    assert sizes == [16, 16, 16, 16, 6] * 2
    assert given.notes == ()
