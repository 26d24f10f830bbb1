"""A pruner that breaks promises is found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from phalanx import default_registry
from phalanx.config import PrunerConfig
from phalanx.pruner import Pruner
from phalanx.registry import Registry
from phalanx.specs import ComponentSpec, Kind
from phalanx.testing import ConformanceError, check_component


class Shrinking(Pruner[PrunerConfig]):
    """Halves weights at every projection, and forgets a filter when it compacts."""

    def project(self, name, weight):
        return weight / 2

    def compact(self, model):
        model.conv1.weight.data[0] = 0.0
        return model


class InPlace(Pruner[PrunerConfig]):
    """Projects what it is given."""

    def project(self, name, weight):
        return weight.zero_()

    def compact(self, model):
        return model


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The session's registry, without what a test adds."""
    found = default_registry()
    before = dict(found._components), dict(found._in_process)
    yield found
    found._components, found._in_process = before


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Shrinking, r"check_pruner: AssertionError: project\('conv1'\) twice is another"),
        (InPlace, r"check_pruner: AssertionError: project\('conv1'\) changes the weight that it"),
    ],
)
def test_a_pruner_that_breaks_promises_is_found_out(registry, kind, message):
    name = f"broken-{kind.__name__.lower()}"
    spec = ComponentSpec(
        kind=Kind.PRUNER,
        name=name,
        factory=f"{__name__}:{kind.__name__}",
        config="phalanx.config:PrunerConfig",
        summary="Broken.",
    )
    registry.register(spec)
    with torch.no_grad(), pytest.raises(ConformanceError, match=message):
        check_component(spec)
