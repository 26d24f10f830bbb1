"""The interface's promises, held by the core's own suite."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_mol.plugin import COMPONENTS

SMALL = {"backbone": {"use": "small_cnn", "params": {"width": 4}}}
LINF = {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 1}}}
DENSE = {"experts": [LINF, {"name": "fog", "perturbation": "fog"}]}
PRUNED = {
    "experts": [{"name": "clean"}, {"name": "snow", "perturbation": "snow"}],
    "pruner": {"use": "irregular", "params": {"rate": 2, "include_heads": True, "rho": 10.0}},
    "objective": "per-sample",
    "weighting": "linear",
}


@pytest.mark.parametrize("params", [DENSE, PRUNED], ids=["dense", "pruned"])
@pytest.mark.filterwarnings("ignore:phase:phalanx.errors.PhalanxWarning")  # ADMM of one epoch
def test_conformance(params: dict[str, Any]) -> None:
    (mol,) = COMPONENTS
    check_component(mol, params={**SMALL, **params})
