"""The settings, the paper's two sets of experts, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

import phalanx_mol.plugin
from phalanx.api import L1, L2, Linf, PhalanxError, PrunerConfig, UsePruner
from phalanx.registry import Registry
from phalanx.runfile import config_hash, read_run
from phalanx_mol.config import SCENARIOS, MoLConfig

PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
TWO: list[dict[str, Any]] = [{"name": "clean"}, {"name": "linf", "attack": PGD}]


def run(params: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"data": {"use": "digits"}, "defense": {"use": "mol", "params": params}, **rest}


# ---------------------------------------------------------------- the paper's sets


def test_the_papers_experts_and_attacks() -> None:
    config = MoLConfig.model_validate({"experts": "comprehensive"})
    names = [expert.name for expert in config.experts]
    assert names == ["clean", "l1", "l2", "linf", "fog", "snow", "rotation"]
    clean, *lp = config.experts[:4]
    assert (clean.attack, clean.perturbation) == (None, None)
    attacks = [expert.attack.params for expert in lp]
    assert [attack.threat for attack in attacks] == [L1(16), L2(1), Linf("8/255")]
    assert [attack.steps for attack in attacks] == [20, 20, 20]
    assert [attack.step for attack in attacks] == [None, 0.2, 0.01]  # absent: 2.5 eps / steps = 2
    assert [expert.perturbation.use for expert in config.experts[4:]] == ["fog", "snow", "rotation"]


def test_mixing_lp_is_the_first_four() -> None:
    experts = MoLConfig.model_validate({"experts": "mixing-lp"}).experts
    assert experts == MoLConfig.model_validate({"experts": "comprehensive"}).experts[:4]
    assert MoLConfig().experts == experts


def test_a_name_and_its_list_are_the_same_run() -> None:
    named = read_run(run({"experts": "comprehensive"}))
    spelled = read_run(run({"experts": list(SCENARIOS["comprehensive"])}))
    assert config_hash(named) == config_hash(spelled)
    assert config_hash(read_run(run({}))) == config_hash(read_run(run({"experts": "mixing-lp"})))
    assert config_hash(named) != config_hash(read_run(run({})))


def test_round_trip_through_json() -> None:
    config = MoLConfig.model_validate({"experts": "comprehensive", "objective": "per-sample"})
    assert MoLConfig.model_validate_json(config.model_dump_json()) == config


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"experts": [{"name": "linf", "attack": PGD}]},
            r"an aggregator weighs two experts or more, found linf: add one, such as "
            r"\{ name = \"clean\" \}, or take defense 'pgd-at' for a single network",
        ),
        ({"experts": []}, "an aggregator weighs two experts or more, found none: add one"),
        (
            {"experts": [*TWO, {"name": "clean"}]},
            "clean stands more than once; give each expert a name",
        ),
        (
            {"experts": "all"},
            r"'all' is no set of experts: write 'mixing-lp', 'comprehensive', or a list such as "
            r"\[\{ name = \"clean\" \}, \{ name = \"linf\", attack = ",
        ),
        (
            {"experts": [{"name": "x", "attack": PGD, "perturbation": "fog"}, *TWO]},
            "'x' has an attack and a perturbation: keep one, or write two types",
        ),
        (
            {"aggregator": "small_cnn", "aggregator_width": 8},
            "aggregator_width narrows the experts' backbone, and aggregator replaces it: keep one",
        ),
        (
            {
                "backbone": "resnet18_cifar",
                "pruner": {"use": "block", "params": {"rate": 8}},
            },
            r"the aggregator is narrowed with the experts' rate 8, and 'resnet18_cifar' is given no"
            r" width: write backbone = \{ use = \"resnet18_cifar\", params = \{ width = 64 \} \},"
            r" or aggregator_width",
        ),
        (
            {"pruner": {"use": "block", "params": {"rate": 8, "rates": {"conv1": 2}}}},
            "the aggregator is narrowed with the one rate of the experts' pruner, and 'block' has"
            " rates of single layers: write aggregator_width, such as aggregator_width = 22",
        ),
    ],
)
def test_what_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MoLConfig.model_validate(params)


def test_the_run_file_tells_it_by_its_key() -> None:
    with pytest.raises(
        PhalanxError, match=r"defense\.params\.experts: an aggregator weighs"
    ) as caught:
        read_run(run({"experts": TWO[:1]}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("params", "key", "told"),
    [
        (
            {"experts": "comprehensive"},
            "defense.params.experts.4.perturbation.use",
            r"unknown perturbation 'fog'; .*pip install \./plugins/natural",
        ),
        (
            {"experts": TWO, "pruner": "block"},
            "defense.params.pruner.use",
            r"unknown pruner 'block'; .*pip install \./plugins/admm",
        ),
    ],
)
def test_a_missing_partner_is_told_with_the_line_that_installs_it(
    params: dict[str, Any], key: str, told: str
) -> None:
    alone = Registry([phalanx_mol.plugin], discover=False)
    with pytest.raises(PhalanxError, match=f"{key}: {told}") as caught:
        read_run(run(params), registry=alone)
    assert caught.value.exit_code == 2
    read_run(run({"experts": TWO}), registry=alone)


# ---------------------------------------------------------------- the aggregator's width


@pytest.mark.parametrize(
    ("rate", "full", "width"), [(4, 64, 32), (8, 64, 22), (8, 8, 2), (1, 8, 8)]
)
def test_the_aggregator_is_narrowed_by_parameters(rate: int, full: int, width: int) -> None:
    config = MoLConfig.model_validate(
        {
            "backbone": {"use": "resnet18_cifar", "params": {"width": full}},
            "pruner": {"use": "block", "params": {"rate": rate}},
        }
    )
    assert config.aggregator_backbone.params["width"] == width
    assert config.backbone.params["width"] == full


def test_the_aggregators_width_is_ones_own() -> None:
    given = {"pruner": {"use": "block", "params": {"rate": 8}}, "aggregator_width": 16}
    assert MoLConfig.model_validate(given).aggregator_backbone.params == {"width": 16}
    del given["aggregator_width"]
    given["aggregator"] = "small_cnn"
    assert MoLConfig.model_validate(given).aggregator_backbone.use == "small_cnn"


class Plain(PrunerConfig):
    """Of a pruner that has no rate."""


def test_a_pruner_without_one_rate_needs_the_width() -> None:
    plain = UsePruner.model_construct(use="plain", params=Plain())
    given = MoLConfig().model_copy(update={"pruner": plain})
    message = (
        "the aggregator is narrowed with the one rate of the experts' pruner, and 'plain' has no "
        "rate: write aggregator_width, such as aggregator_width = 22"
    )
    with pytest.raises(ValueError, match=message):
        _ = given.aggregator_backbone
    wide = given.model_copy(update={"aggregator_width": 5})
    assert wide.aggregator_backbone.params == {"width": 5}
    rates = {"use": "block", "params": {"rate": 8, "rates": {"conv1": 2}}}
    told = MoLConfig.model_validate({"pruner": rates, "aggregator_width": 7})
    assert told.aggregator_backbone.params == {"width": 7}


def test_dense_experts_have_an_aggregator_of_their_own_size() -> None:
    config = MoLConfig()
    assert config.aggregator_backbone == config.backbone
