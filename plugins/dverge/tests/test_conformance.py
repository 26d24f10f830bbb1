"""The interface's promises, held by the core's own suite."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.testing import check_component
from phalanx_dverge.plugin import DVERGE

ATTACK = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}


@pytest.mark.parametrize(
    "params",
    [
        {"backbone": "small_cnn", "batchnorm": "eval", "attack": ATTACK},
        {"backbone": {"use": "resnet20_cifar", "params": {"width": 2}}, "start": "scratch"},
    ],
    ids=["adversarial", "scratch-with-batchnorm"],
)
def test_conformance(params: dict[str, Any]) -> None:
    check_component(DVERGE, params={"members": 2, "steps": 2, **params})
