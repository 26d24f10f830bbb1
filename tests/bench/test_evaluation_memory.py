"""What `bench.evaluation_memory` makes of its peaks."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_growth_is_of_medians_and_beside_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    bench = importlib.import_module("bench.evaluation_memory")
    found = bench.result({1000: [500.0, 700.0, 510.0], 10000: [520.0, 530.0, 512.0]})
    assert found["growth_mib"] == 10.0
    assert found["additional_images_mib"] == pytest.approx(9000 * 3072 * 4 / 2**20, abs=0.05)
    assert found["growth_over_images"] == pytest.approx(10 / 105.47, abs=1e-3)
    assert found["growth_over_images"] < found["limit"] < 1.0
