"""The settings, and what each refusal says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from phalanx.api import PhalanxError
from phalanx.runfile import read_run
from phalanx_multi.config import AVGConfig, MultiConfig

CLEAN = {"name": "clean"}
LINF = {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}}


def test_defaults_are_mols() -> None:
    config = MultiConfig()
    found = [
        (one.name, str(one.attack.params.threat), one.attack.params.steps, one.attack.params.step)  # type: ignore[union-attr]
        for one in config.types
    ]
    assert found == [
        ("l1", "l1:16", 20, 2.0),
        ("l2", "l2:1", 20, 0.2),
        ("linf", "linf:8/255", 20, 0.01),
    ]
    assert found[0][3] == 2.5 * 16 / 20
    assert not AVGConfig().sequential


@pytest.mark.parametrize("config", [MultiConfig(), AVGConfig(sequential=True)])
def test_round_trip_through_json(config: MultiConfig) -> None:
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (
            [LINF],
            r"'linf' alone is nothing to average or to choose from: write two types or more, or "
            r"take defense 'pgd-at' for one attack",
        ),
        ([], r"'no type' alone is nothing to average"),
        (
            [LINF, CLEAN, LINF, CLEAN],
            r"two types are named clean, linf: give each a name of its own",
        ),
        ([LINF, {"name": "L 1"}], r"should match pattern"),
        ([LINF, {"name": "a", "attack": "pdg"}], r"unknown attack 'pdg'; did you mean 'pgd'"),
        ([LINF, {"name": "a", "atack": "pgd"}], r"unknown key; did you mean 'attack'"),
    ],
)
def test_types_that_cannot_be(types: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MultiConfig.model_validate({"types": types})


def test_a_run_file_tells_it_by_its_key_and_gives_the_default_threat() -> None:
    run = {"data": {"use": "digits"}, "defense": {"use": "max", "params": {"types": [CLEAN]}}}
    with pytest.raises(PhalanxError, match=r"types: 'clean' alone is nothing") as caught:
        read_run(run)
    assert caught.value.exit_code == 2
    given = [CLEAN, {"name": "linf", "attack": "pgd"}]
    run["defense"] = {"use": "avg", "params": {"types": given}}
    params = read_run(run).defense.params
    assert isinstance(params, AVGConfig)
    assert str(params.types[1].attack.params.threat).startswith("linf:")  # type: ignore[union-attr]


def test_settings_are_torch_free() -> None:
    modules = "phalanx_multi.config, phalanx_multi.plugin"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
