"""CLM keeps the promises that every component makes."""

from __future__ import annotations

import pytest

from phalanx.testing import check_component
from phalanx_clm.plugin import CLM


@pytest.mark.parametrize("variant", ["ulm", "clm"])
def test_conforms(variant):
    check_component(CLM, params={"backbone": "small_cnn", "members": 3, "variant": variant})
