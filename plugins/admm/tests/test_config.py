"""The settings: defaults, what they refuse, and what a run file is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phalanx.api import ConfigError
from phalanx.runfile import read_run
from phalanx_admm.config import BlockConfig, FilterConfig, IrregularConfig, PrunedConfig


def test_defaults() -> None:
    config = PrunedConfig()
    assert (config.base.use, config.pruner.use, config.phases) == ("pgd-at", "block", "*")
    assert isinstance(config.pruner.params, BlockConfig)
    pruner = config.pruner.params
    assert (pruner.rate, pruner.block, pruner.scheme) == (4.0, (4, 4), "kgs")
    assert (pruner.rho, pruner.rho_growth, pruner.updates) == (None, 1.0, None)
    assert not pruner.include_heads
    assert PrunedConfig.model_validate_json(config.model_dump_json()) == config


def test_a_base_with_parameters_in_a_run_file() -> None:
    config = read_run(
        {
            "data": {"use": "digits"},
            "defense": {
                "use": "pruned",
                "params": {
                    "base": {"use": "none", "params": {"members": 2}},
                    "pruner": {"use": "block", "params": {"rate": 4}},
                    "phases": "*",
                },
            },
        }
    ).defense.params
    assert isinstance(config, PrunedConfig)
    assert config.base.params.members == 2


def test_epochs_between_updates_come_back_from_a_run_file() -> None:
    config = BlockConfig(update_every=20)
    assert BlockConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (IrregularConfig, {"rate": 0.5}, "greater than or equal to 1"),
        (IrregularConfig, {"rate": float("inf")}, "finite number"),
        (IrregularConfig, {"rates": {"conv1": 0.9}}, "greater than or equal to 1"),
        (IrregularConfig, {"rates": {"": 2}}, r"'' fits no layer: write a layer's name, such as"),
        (IrregularConfig, {"skip": [""]}, r"'' fits no layer: write a layer's name, such as"),
        (IrregularConfig, {"rho": 0}, "greater than 0"),
        (IrregularConfig, {"rho_growth": 0.9}, "greater than or equal to 1"),
        (IrregularConfig, {"updates": 0}, "greater than 0"),
        (
            IrregularConfig,
            {"updates": 9, "update_every": 20},
            "updates = 9 and update_every = 20 both say when Z and U are updated: leave one",
        ),
        (FilterConfig, {"include_heads": True}, "include_heads"),
        (BlockConfig, {"block": [4, 0]}, "greater than 0"),
        (BlockConfig, {"scheme": "row"}, "'kgs' or 'vanilla'"),
        (
            PrunedConfig,
            {"base": "pruned"},
            "'pruned' in itself would prune what is pruned: write the inner base as base, and one",
        ),
        (PrunedConfig, {"pruner": "blocks"}, "unknown pruner 'blocks'; did you mean 'block'"),
    ],
)
def test_what_is_refused(kind: type[Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(params)


def test_a_run_file_is_told_the_key() -> None:
    run = {
        "defense": {
            "use": "pruned",
            "params": {"pruner": {"use": "filter", "params": {"rte": 4}}},
        }
    }
    with pytest.raises(ConfigError, match=r"pruner\.params\.rte: unknown key; did you mean 'rate'"):
        read_run(run)
