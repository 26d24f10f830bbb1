"""RLS keeps the promises that every component makes."""

from __future__ import annotations

import pytest

from phalanx.testing import check_component
from phalanx_rls.plugin import RLS


@pytest.mark.parametrize(
    "params",
    [
        {"members": 2, "group": 3, "samples": 3},
        {"members": 1, "group": 1, "loss": "nll_mean"},  # deterministic: nothing to draw
    ],
    ids=["sampled", "one network"],
)
def test_conforms(params):
    check_component(RLS, params={"backbone": "small_cnn", **params})
