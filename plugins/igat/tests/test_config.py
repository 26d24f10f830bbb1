"""The settings, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phalanx.api import ComponentSpec, ConfigError, Kind, PhalanxError, Task
from phalanx.registry import Registry
from phalanx.runfile import config_hash, read_run
from phalanx_igat import plugin
from phalanx_igat.config import IGATConfig
from phalanx_igat.defense import IGAT, MaxEnsemble

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
SMALL = {"backbone": {"use": "small_cnn", "params": {"width": 2}}}
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
FITTING = r"adp, dverge, pdd, or none and pgd-at with members = 2 or more"


def run(params: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"use": "digits"}, "defense": {"use": "igat", "params": params}}


def test_defaults_are_the_papers() -> None:
    config = IGATConfig.model_validate({"base": "adp"})
    assert (config.alpha, config.beta, config.rule) == (5.0, 10.0, "soft")
    assert (config.combiner, config.distribute, config.regularizer) == (
        "average",
        "misclassified",
        "sum",
    )
    assert (config.batch, config.pretrain) == ("twin", False)
    attack = config.attack.params
    assert (config.attack.use, attack.steps, attack.step) == ("pgd", 20, 2 / 255)


def test_its_alpha_is_not_its_bases() -> None:
    config = IGATConfig.model_validate(
        {"base": {"use": "adp", "params": {"alpha": 2, "beta": 0.5}}, "alpha": 7, "beta": 3}
    )
    assert (config.alpha, config.beta) == (7, 3)
    assert (config.base.params.alpha, config.base.params.beta) == (2, 0.5)


def test_round_trip_through_json_and_one_hash() -> None:
    given = {"base": {"use": "adp", "params": {"members": 4, "attack": PGD}}, "rule": "hard"}
    config = IGATConfig.model_validate(given)
    assert IGATConfig.model_validate_json(config.model_dump_json()) == config
    short, long = read_run(run(given)), read_run(run({**given, "alpha": 5.0, "batch": "twin"}))
    assert config_hash(short) == config_hash(long)
    assert config_hash(short) != config_hash(read_run(run({**given, "alpha": 4.0})))


def test_the_threat_is_the_data_sets() -> None:
    config = read_run(run({"base": "adp"})).defense.params
    assert str(config.attack.params.threat) == "linf:0.1"


def test_without_a_base_the_line_that_installs_one_is_told() -> None:
    message = (
        r"defense\.params: no base: write base = { use = \"adp\", params = { … } }, the defense of"
        rf" the ensemble that is fine-tuned \({FITTING}\); pip install \./plugins/adp installs adp"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        read_run(run({}))
    assert caught.value.exit_code == 2


def test_a_base_that_is_not_installed_comes_with_its_install_line() -> None:
    alone = Registry(discover=False, plugins=[plugin])
    with pytest.raises(ConfigError, match=r"it is in phalanx-adp: pip install \./plugins/adp"):
        read_run(run({"base": "adp"}), registry=alone)


def test_the_bases_own_mistakes_are_told_by_their_place() -> None:
    with pytest.raises(ConfigError, match=r"defense\.params\.base\.params\.memberz: unknown key"):
        read_run(run({"base": {"use": "adp", "params": {"memberz": 3}}}))
    many = {"use": "adp", "params": {"members": 12}}
    config = IGATConfig.model_validate({"base": many})
    with pytest.raises(ConfigError, match=r" defense\.params\.base\.params\.members: 12 members"):
        IGAT(config, TASK)
    unknown = {"use": "adp", "params": {"backbone": "small_cmm"}}
    defense = IGAT(IGATConfig.model_validate({"base": unknown}), TASK)
    with pytest.raises(ConfigError, match=r" base\.params\.backbone\.use: no classifier is called"):
        defense.build()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            "none",
            r"base 'none' has members = 1, so nobody shares the examples: write"
            r" base\.params\.members = 2 or more",
        ),
        ({"use": "pgd-at", "params": {"members": 1}}, r"base 'pgd-at' has members = 1"),
        (
            {"use": "igat", "params": {"base": "adp"}},
            rf"base is 'igat' itself: write the ensemble's own defense as base \({FITTING}\)",
        ),
        (
            {
                "use": "pruned",
                "params": {"base": {"use": "igat", "params": {"base": "adp"}}},
            },
            rf"base 'pruned' is over 'igat' itself: write the ensemble's own defense as base"
            rf" \({FITTING}\)",
        ),
    ],
)
def test_bases_that_are_no_ensemble(base: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IGATConfig.model_validate({"base": base})


def test_a_base_whose_settings_know_no_members() -> None:
    registry = Registry(discover=False)
    registry.register(
        ComponentSpec(
            kind=Kind.DEFENSE,
            name="lonely",
            factory="phalanx_igat.defense:IGAT",
            config="phalanx.config:DefenseConfig",
            summary="One network.",
        )
    )
    with pytest.raises(
        ValidationError,
        match=rf"base 'lonely' has no members to distribute examples to: take {FITTING}",
    ):
        IGATConfig.model_validate({"base": "lonely"}, context={"registry": registry})


@pytest.mark.parametrize("name", ["clm", "rls"])
def test_a_base_that_answers_at_random_is_refused_before_training(name: str) -> None:
    base = {"use": name, "params": {**SMALL, "members": 2}}
    defense = IGAT(IGATConfig.model_validate({"base": base}), TASK)
    with pytest.raises(
        ConfigError,
        match=rf"base\.use: '{name}' answers at random, .* take {FITTING}",
    ) as caught:
        defense.build()
    assert caught.value.exit_code == 2


def test_half_of_a_batch_over_a_round_robin_base_is_refused() -> None:
    base = {"use": "dverge", "params": {**SMALL, "members": 2}}
    config = IGATConfig.model_validate({"base": base, "batch": "half", "attack": PGD})
    defense = IGAT(config, TASK)
    with pytest.raises(
        PhalanxError,
        match=r"defense\.params\.batch: phase 'dverge' of 'dverge' makes its own examples .* write"
        r' batch = "twin"',
    ):
        defense.phases(defense.build())


def test_a_last_phase_of_one_member_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"use": "dverge", "params": {**SMALL, "members": 2}}
    defense = IGAT(IGATConfig.model_validate({"base": base, "attack": PGD}), TASK)
    model = defense.build()
    alone = defense.base.phases(model)[:2]
    monkeypatch.setattr(defense.base, "phases", lambda _: alone)
    message = (
        rf"base\.use: the last phase of 'dverge', 'baseline/2', does not train .* take {FITTING}"
    )
    with pytest.raises(ConfigError, match=message):
        defense.phases(model)


def test_a_base_that_serves_no_mean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"use": "adp", "params": {**SMALL, "members": 2}}
    defense = IGAT(IGATConfig.model_validate({"base": base, "attack": PGD}), TASK)
    other = MaxEnsemble(defense.build().members)
    monkeypatch.setattr(defense.base, "build", lambda: other)
    with pytest.raises(
        ConfigError, match=rf"'adp' does not serve the mean of two .* take {FITTING}"
    ):
        defense.build()


def test_zero_weights_ask_for_no_attack() -> None:
    """Not even a threat, where the data set has none."""
    for pretrain in (False, True):
        base = {"use": "dverge", "params": {**SMALL, "members": 2}}
        settings = {"base": base, "alpha": 0, "beta": 0, "pretrain": pretrain}
        defense = IGAT(IGATConfig.model_validate(settings), TASK)
        phases = defense.phases(defense.build())
        assert [p.name for p in phases][-1] == "dverge"
        assert len(phases) == (3 if pretrain else 1)
