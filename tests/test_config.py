"""Configs of components and of training: resolved names, defaults in context, schedules."""

import math
import types

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from phalanx.config import (
    AdversarialConfig,
    AttackConfig,
    Backbone,
    DataConfig,
    DefenseConfig,
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    UseAttack,
    UseDefense,
    requires_ball,
)
from phalanx.hookspecs import hookimpl
from phalanx.registry import Registry
from phalanx.runfile import problems_of
from phalanx.specs import L2, ComponentSpec, Kind, Linf, NoBall


class PlainConfig(DefenseConfig):
    members: int = 3


class WrapperConfig(DefenseConfig):
    base: UseDefense


class PokeConfig(AttackConfig):
    steps: int = 1


class FamilyConfig(AttackConfig):
    name: str
    steps: int = 1


def component(kind, name, config):
    return ComponentSpec(
        kind=kind, name=name, factory="a:B", config=f"{__name__}:{config}", summary="One."
    )


COMPONENTS = (
    component(Kind.DEFENSE, "plain", "PlainConfig"),
    component(Kind.DEFENSE, "wrapper", "WrapperConfig"),
    component(Kind.ATTACK, "poke", "PokeConfig"),
    component(Kind.ATTACK, "family/*", "FamilyConfig"),
)


@pytest.fixture
def context():
    plugin = types.ModuleType("phalanx_mine")
    plugin.phalanx_components = hookimpl(lambda: COMPONENTS)
    return {"registry": Registry([plugin], discover=False), "threat": Linf(0.1)}


def problems(model, value, context):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(value, context=context)
    return problems_of(caught.value)


class TestUse:
    def test_name_alone_or_with_params(self, context):
        short = UseDefense.model_validate("plain", context=context)
        assert short.params == PlainConfig(members=3)
        long = {"use": "plain", "params": {"members": 5}}
        assert UseDefense.model_validate(long, context=context).params.members == 5

    def test_params_as_config(self, context):
        given = {"use": "plain", "params": PlainConfig(members=5)}
        assert UseDefense.model_validate(given, context=context).params.members == 5

    def test_family_gets_the_rest_of_the_name(self, context):
        params = UseAttack.model_validate("family/DeepFool", context=context).params
        assert (params.name, params.threat) == ("DeepFool", Linf(0.1))

    def test_unknown_name_is_told_once(self, context):
        assert problems(UseAttack, {"use": "pokes", "params": {"x": 1}}, context) == [
            "use: unknown attack 'pokes'; did you mean 'poke'?"
        ]

    def test_nested_key_path(self, context):
        value = {"use": "wrapper", "params": {"base": {"use": "plain", "params": {"memberz": 1}}}}
        assert problems(UseDefense, value, context) == [
            "params.base.params.memberz: unknown key; did you mean 'members'? allowed: members"
        ]

    @pytest.mark.parametrize("params", [3, ["members"], PokeConfig()])
    def test_params_must_be_a_table(self, context, params):
        assert problems(UseDefense, {"use": "plain", "params": params}, context) == [
            f"params: should be a table of keys of PlainConfig, found {params!r}"
        ]

    def test_default_registry_without_a_context(self):
        assert UseDefense.model_validate("pdd").params.members == 3

    def test_json_round_trip(self, context):
        use = UseAttack.model_validate({"use": "poke", "params": {"steps": 3}}, context=context)
        dumped = use.model_dump(mode="json")
        assert dumped == {"use": "poke", "params": {"threat": "linf:0.1", "steps": 3}}
        assert UseAttack.model_validate(dumped, context=context) == use


class TestThreat:
    def test_absent_is_the_data_sets(self, context):
        assert PokeConfig.model_validate({}, context=context).threat == Linf(0.1)
        assert PokeConfig().threat is None

    def test_given_wins(self, context):
        assert PokeConfig.model_validate({"threat": "l2:1"}, context=context).threat == L2(1)

    @pytest.mark.parametrize("threat", [None, NoBall()])
    def test_requires_ball(self, threat):
        with pytest.raises(ValueError, match="write threat = 'linf:8/255'"):
            requires_ball(threat)
        assert requires_ball(Linf(0.1)) == Linf(0.1)


class TestDefaults:
    def test_run(self, context):
        run = RunConfig.model_validate({"defense": "plain"}, context=context)
        assert run.data.use == "digits"
        assert run.training == TrainingConfig()
        assert run.evaluation == EvaluationConfig()

    def test_adversarial(self):
        attack = AdversarialConfig().attack
        assert (attack.use, attack.params.steps) == ("pgd", 10)

    def test_backbone_by_name(self):
        assert Backbone.model_validate("resnet18_cifar").params == {}

    def test_every_default_is_valid(self):
        for config in (OptimizerConfig, ScheduleConfig, TrainingConfig, EvaluationConfig):
            config()

    @pytest.mark.parametrize(
        ("config", "given", "problem"),
        [
            (OptimizerConfig, {"lr": 0}, "lr: should be greater than 0, found 0"),
            (
                OptimizerConfig,
                {"name": "sdg"},
                "name: should be 'sgd', 'adam' or 'adamw', found 'sdg'",
            ),
            (
                TrainingConfig,
                {"batchsize": 3},
                "batchsize: unknown key; did you mean 'batch_size'? allowed: batch_size, epochs, "
                "optimizer, schedule, augment, perturbation, adversarial, ema, select, precision, "
                "threads, phases",
            ),
        ],
    )
    def test_refusals(self, context, config, given, problem):
        assert problems(config, given, context) == [problem]


class TestSchedule:
    @given(st.floats(0, 1))
    def test_constant(self, progress):
        assert ScheduleConfig().build()(progress) == 1.0

    def test_cosine(self):
        factor = ScheduleConfig(name="cosine", floor=0.1).factor
        assert factor(0.0) == pytest.approx(1.0)
        assert factor(0.5) == pytest.approx(0.55)
        assert factor(1.0) == pytest.approx(0.1)

    def test_warmup(self):
        factor = ScheduleConfig(name="cosine", warmup=0.2).factor
        assert factor(0.1) == pytest.approx(0.5)
        assert factor(0.2) == pytest.approx(1.0)
        assert factor(0.6) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)

    def test_multistep(self):
        factor = ScheduleConfig(name="multistep", milestones=(0.5, 0.75), gamma=0.1).factor
        assert [factor(p) for p in (0.49, 0.5, 0.8)] == pytest.approx([1.0, 0.1, 0.01])

    @given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 1))
    def test_within_zero_and_one(self, progress, warmup, floor):
        config = ScheduleConfig(name="cosine", warmup=warmup, floor=floor)
        assert -1e-12 <= config.factor(progress) <= 1.0 + 1e-12


class TestDataConfig:
    def test_a_folders_keys_are_for_folders(self):
        with pytest.raises(
            ValidationError, match="root, workers: only for use = 'folder', a folder"
        ):
            DataConfig(use="mnist", root="photos", workers=4)

    def test_a_folder(self):
        config = DataConfig(use="folder", root="photos", image_size=96, skip_unreadable=True)
        assert DataConfig.model_validate_json(config.model_dump_json()) == config

    def test_defaults_may_be_spelled_out(self):
        spelled = {"root": None, "image_size": None, "workers": 2, "skip_unreadable": False}
        assert DataConfig(use="digits", **spelled) == DataConfig()
