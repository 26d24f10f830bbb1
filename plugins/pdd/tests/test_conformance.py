"""The interface's promises, held by the core's own suite."""

from __future__ import annotations

import pytest

from phalanx.testing import check_component
from phalanx_pdd.plugin import PDD


@pytest.mark.parametrize("variant", ["pdd", "deg", "pdd+deg"])
def test_conformance(variant: str) -> None:
    check_component(PDD, params={"backbone": "small_cnn", "members": 2, "variant": variant})
