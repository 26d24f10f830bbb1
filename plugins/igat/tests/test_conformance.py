"""The interface's promises, held by the core's own suite, over each kind of base."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_igat.plugin import COMPONENTS

SMALL = {"members": 2, "backbone": {"use": "small_cnn", "params": {"width": 2}}}
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 1}}
ADP = {"use": "adp", "params": {**SMALL, "attack": PGD}}
DVERGE = {"use": "dverge", "params": {**SMALL, "steps": 1, "start": "scratch"}}


@pytest.mark.parametrize(
    "params",
    [
        {"base": ADP},
        {"base": DVERGE, "attack": PGD, "combiner": "max", "rule": "hard"},
    ],
    ids=["adp", "dverge-max"],
)
def test_conformance(params: dict[str, Any]) -> None:
    (spec,) = COMPONENTS
    check_component(spec, params={"pretrain": True, **params})
