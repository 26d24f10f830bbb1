"""The settings, and what each refusal says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from phalanx.api import L2, AttackConfig, Linf, ThreatModelError, UseAttack
from phalanx.evaluation.labels import attack_identity, attack_label, parse_attack
from phalanx.evaluation.protocol import resolve_attack, with_threat
from phalanx_ensemble_attacks.config import MemberTransferConfig, MORAConfig


def nested(config: Any) -> AttackConfig:
    params = config.attack.params
    assert isinstance(params, AttackConfig)
    return params


def test_defaults() -> None:
    config = MORAConfig()
    assert (config.steps, config.betas) == (100, (0.5, 0.0, 0.25, 0.75, 1.0))
    assert (config.temperature, config.schedule, config.restarts) == (None, "linear", 1)
    transfer = MemberTransferConfig()
    assert (transfer.attack.use, transfer.member) == ("apgd-ce", None)
    assert nested(transfer).steps == 50  # type: ignore[attr-defined]  # APGD's


def test_members_share_the_threat() -> None:
    assert nested(MemberTransferConfig(threat="linf:0.1")).threat == Linf(0.1)  # type: ignore[arg-type]  # as text
    config = MemberTransferConfig.model_validate({}, context={"threat": L2(1.0)})
    assert (config.threat, nested(config).threat) == (L2(1.0), L2(1.0))
    given = {"threat": "linf:0.1", "attack": "pgd"}
    config = MemberTransferConfig.model_validate(given, context={"threat": L2(1.0)})
    assert nested(config).threat == Linf(0.1)
    assert nested(config.at(L2(0.5))).threat == L2(0.5)
    assert config.at(L2(0.5)).threat == L2(0.5)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"threat": "linf:0.1"},
        {"threat": "l2:1", "attack": {"use": "pgd", "params": {"steps": 3}}, "member": 1},
        {"threat": "l2:1", "attack": {"use": "pgd", "params": {"threat": "l2:1"}}},
    ],
)
def test_round_trip_through_json(given: dict[str, Any]) -> None:
    config = MemberTransferConfig.model_validate(given)
    assert MemberTransferConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "text",
    [
        "mora:betas=[0.5,1.0],schedule=cosine,steps=20,temperature=0.8",
        'member-transfer:attack={use="pgd",params={steps=3}},member=1',
    ],
)
def test_labels_read_back(text: str) -> None:
    use = resolve_attack(parse_attack(text), threat=Linf(0.1))
    assert attack_label(use) == text
    assert attack_label(with_threat(use, L2(1.0))) == text
    again = resolve_attack(parse_attack(text), threat=L2(1.0))
    assert attack_identity(with_threat(use, L2(1.0))) == attack_identity(again)
    assert isinstance(use, UseAttack)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (MORAConfig, {"betas": []}, r"at least 1 item"),
        (MORAConfig, {"betas": [0.5, 1.5]}, r"should be less than or equal to 1, found 1.5"),
        (MORAConfig, {"temperature": -1}, r"should be greater than or equal to 0, found -1"),
        (MORAConfig, {"temperature": float("inf")}, r"should be a finite number, found inf"),
        (MORAConfig, {"steps": 0}, r"should be greater than 0, found 0"),
        (MORAConfig, {"schedule": "cos"}, r"should be 'linear' or 'cosine', found 'cos'"),
        (MORAConfig, {"beta": 1}, r"unknown key; did you mean 'betas'"),
        (MemberTransferConfig, {"member": -1}, r"should be greater than or equal to 0, found -1"),
        (MemberTransferConfig, {"attack": "apdg-ce"}, r"did you mean 'apgd-ce'"),
        (
            MemberTransferConfig,
            {"threat": "linf:0.1", "attack": {"use": "pgd", "params": {"threat": "l2:1"}}},
            r"params.threat = 'l2:1' is not the threat that the whole is attacked at \(linf:0.1\): "
            r"leave it out, and write threat = 'l2:1' beside attack if it is meant",
        ),
        (
            MemberTransferConfig,
            {"attack": {"use": "pgd", "params": {"threat": "l2:1"}}},
            r"attacked at \(none given\): leave it out",
        ),
        (MemberTransferConfig, {"threat": "linf"}, r"a threat is written as norm:epsilon"),
    ],
)
def test_settings_that_cannot_be(kind: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        kind.model_validate(params)
    assert caught.value.error_count() == 1


def test_an_attack_without_a_ball_is_refused() -> None:
    natural = {
        "use": "natural",
        "params": {"perturbation": {"use": "rotation", "params": {"max_angle": 5}}},
    }
    text = (
        r"attack 'natural' cannot be made at linf:0.1: name one that attacks a model within a "
        r"ball, such as 'apgd-ce'"
    )
    with pytest.raises(ValidationError, match=text):
        MemberTransferConfig.model_validate({"threat": "linf:0.1", "attack": natural})
    with pytest.raises(ThreatModelError, match=text):
        MemberTransferConfig.model_validate({"attack": natural}).at(Linf(0.1))


def test_settings_are_torch_free() -> None:
    modules = "phalanx_ensemble_attacks.config, phalanx_ensemble_attacks.plugin"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
