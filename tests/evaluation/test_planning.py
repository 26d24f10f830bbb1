"""What a protocol comes to for one model: its own entries, plugins' attacks, papers' protocols."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_toys import Mixed, Plain, Threshold, images

import phalanx
from phalanx.api import ComponentSpec, Kind, hookimpl
from phalanx.defense import DefendedModel, View
from phalanx.errors import ConfigError, InputError, PluginHookWarning, UnknownComponentError
from phalanx.evaluation.labels import attack_label
from phalanx.evaluation.planning import averages, paper_protocol, plan_of, surrogate_plan
from phalanx.evaluation.protocol import Extra, Protocol, load_protocol, resolve_attack
from phalanx.evaluation.subjects import Also, Plan, Subject
from phalanx.evaluation.tasks import tasks_of
from phalanx.nn.ensemble import MeanEnsemble, Population
from phalanx.registry import Registry
from phalanx.specs import Linf, Threat

SHAPE = (1, 4, 4)
EIGHT = Linf("8/255")


def subject(model: DefendedModel, component: str = "") -> Subject:
    return Subject("m", model, "m", component=component)


def planned(model: DefendedModel, protocol: Protocol, *, component: str = "", **rest: Any) -> Plan:
    rest = {"threat": EIGHT, "registry": Registry(discover=False), **rest}
    return plan_of(subject(model, component), protocol, shape=SHAPE, **rest)


def protocol_of(*entries: dict[str, Any], **rest: Any) -> Protocol:
    return Protocol(name="mine", also=tuple(Extra.model_validate(one) for one in entries), **rest)


def entry(use: str = "fgsm", *, params: dict[str, Any] | None = None, **rest: Any) -> Any:
    return {"attack": {"use": use, "params": params or {}}, **rest}


def labels(plan: Plan) -> list[tuple[str, str, tuple[str, ...], str | None]]:
    return [
        (attack_label(one.use), str(one.use.params.threat), one.views, one.protocol)  # type: ignore[attr-defined]
        for one in plan.also
    ]


class Choice(DefendedModel):
    """Members, and no average of them: the first one answers."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = MeanEnsemble([Threshold(), Threshold(0.4)])

    @property
    def members(self) -> Any:
        return self.networks.members

    def draw(self, x: Any, generator: Any) -> Any:
        return self.members[0](x)


class Broken(Choice):
    """Fails when it is asked what it averages."""

    def combined(self, x: Any) -> Any:
        raise RuntimeError("no")


MODELS: dict[str, Callable[[], DefendedModel]] = {
    "single": Plain,
    "random": lambda: Mixed([0.5, 0.4], closed=False),
    "mean": lambda: MeanEnsemble([Threshold(), Threshold(0.4)]),
    "mean of one": lambda: MeanEnsemble([Threshold()]),
    "population": lambda: Population([Threshold(), Threshold(0.4)]),
    "choice": Choice,
    "broken": Broken,
}


# ---------------------------------------------------------------- entries of a protocol


@pytest.mark.parametrize(
    ("only", "fits"),
    [
        ("stochastic", {"random", "population"}),
        ("deterministic", {"single", "mean", "mean of one", "choice", "broken"}),
        ("ensembles", {"mean", "population", "choice", "broken"}),
        ("averages", {"mean", "population"}),
        (None, set(MODELS)),
    ],
)
def test_an_entry_is_for_some_models_only(only: str | None, fits: set[str]) -> None:
    protocol = protocol_of(entry(only=only))
    found = {name for name, make in MODELS.items() if planned(make(), protocol).also}
    assert found == fits


def test_averages_says_no_of_a_model_that_fails() -> None:
    assert averages(subject(MODELS["mean"]()), SHAPE)
    assert not averages(subject(Broken()), SHAPE)


def test_what_a_random_model_serves_is_no_average_of_its_members() -> None:
    protocol = protocol_of(entry(only="averages", views=["deployed", "expected"]))
    found = {
        name: [views for _, _, views, _ in labels(planned(MODELS[name](), protocol))]
        for name in ("mean", "population")
    }
    assert found == {"mean": [("deployed", "expected")], "population": [("expected",)]}


def test_entries_run_on_their_views_where_these_are_asked_for() -> None:
    protocol = protocol_of(
        entry(views=["deployed", "expected"]), entry("bim", views=["one-draw"]), entry("pgd")
    )
    model = MODELS["population"]()
    assert [views for _, _, views, _ in labels(planned(model, protocol))] == [
        ("deployed", "expected"),
        ("one-draw",),
        (),
    ]
    narrowed = planned(model, protocol, views=("expected",))
    assert [(label, views) for label, _, views, _ in labels(narrowed)] == [
        ("fgsm", ("expected",)),
        ("pgd", ()),
    ]
    run = [(one.view_name, one.label) for one in tasks_of(subject(model), narrowed)]
    assert run == [("expected", "fgsm"), ("expected", "pgd")]
    every = [
        (one.view_name, one.label) for one in tasks_of(subject(model), planned(model, protocol))
    ]
    assert every == [
        ("deployed", "fgsm"),
        ("expected", "fgsm"),
        ("one-draw", "bim"),
        ("deployed", "pgd"),
        ("one-draw", "pgd"),
        ("expected", "pgd"),
    ]


def test_an_entry_keeps_a_threat_of_its_own() -> None:
    protocol = protocol_of(entry(params={"threat": "l2:0.5"}), entry("pgd"))
    assert [threat for _, threat, _, _ in labels(planned(Plain(), protocol))] == [
        "l2:0.5",
        "linf:8/255",
    ]


def test_limit_checks_and_name_come_from_the_protocol() -> None:
    protocol = protocol_of(entry(), limit=500, checks="core")
    plan = planned(Plain(), protocol)
    assert (plan.protocol, plan.limit, plan.checks, plan.notes) == ("mine", 500, "core", ())
    assert planned(Plain(), protocol, limit=20).limit == 20


def test_an_attack_of_a_plugin_that_is_missing_is_left_out_with_a_note() -> None:
    registry = Registry(discover=False)
    protocol = load_protocol("adaptive", threat=EIGHT, registry=registry)
    plan = planned(MODELS["mean"](), protocol, registry=registry)
    left_out = ["mora", "member-transfer", "rays", "signhunter"]
    assert [label for label, *_ in labels(plan)] == ["fab-t", "square"]
    assert [note.split("'")[1] for note in plan.notes] == left_out
    assert plan.notes[0] == (
        "adaptive goes without one of its attacks: unknown attack 'mora'; it is in "
        "phalanx-ensemble-attacks: pip install ./plugins/ensemble_attacks"
    )
    assert len(planned(Plain(), protocol, registry=registry).notes) == 2  # no ensemble: two for all


def test_a_wrong_parameter_in_a_protocol_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(Plain(), protocol_of(entry("pgd", params={"stepz": 3})))
    assert str(caught.value).startswith("protocol 'mine': 1 problem\n  params.stepz: ")


def test_an_unknown_protocol_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownComponentError) as caught:
        load_protocol("adaptve", registry=Registry(discover=False))
    assert str(caught.value) == (
        "unknown protocol 'adaptve'; did you mean 'adaptive'? known: adaptive, quick, standard, "
        "union"
    )
    with pytest.raises(UnknownComponentError, match="unknown protocol 'xyz'; known: adaptive, "):
        load_protocol("xyz", registry=Registry(discover=False))


# ---------------------------------------------------------------- what plugins add


PAPER_TOML = """
name = "planned/paper"
attacks = [{ use = "pgd", params = { steps = 3 } }]

[[also]]
views = ["one-draw"]
attack = { use = "fgsm" }

[[also]]
attack = { use = "bim", params = { threat = "linf:8/255", steps = 7 } }

[[also]]
attack = { use = "bim", params = { threat = "linf:4/255", steps = 9 } }
"""
PLUGIN = """
from phalanx.api import ComponentSpec, Kind, hookimpl

def one(name):
    return ComponentSpec(
        kind=Kind.DEFENSE, name=name, factory="a:b", config="a:c", summary="One."
    )

@hookimpl
def phalanx_components():
    return [one("planned"), one("second")]

@hookimpl
def phalanx_adaptive_attacks(defense, threat):
    if defense != "planned":
        return []
    return [
        {"attack": {"use": "apgd-ce"}, "views": ["expected"]},
        {"attack": {"use": "apgd-dlr", "params": {"threat": threat}}, "only": "stochastic"},
    ]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with a plugin that has two defenses, adaptive attacks and papers' protocols."""
    package = tmp_path / "phalanx_planned"
    (package / "protocols").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(PLUGIN)
    (package / "protocols" / "paper.toml").write_text(PAPER_TOML)
    other = 'name = "planned/second-paper"\nattacks = [{ use = "fgsm" }]\n'
    (package / "protocols" / "second-paper.toml").write_text(other)
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry([importlib.import_module("phalanx_planned.plugin")], discover=False)
    for name in ("phalanx_planned.plugin", "phalanx_planned"):
        sys.modules.pop(name, None)


def of_plugins(registry: Registry, component: str, threat: Threat = EIGHT) -> Plan:
    protocol = protocol_of(plugins=True)
    model = MODELS["population"]()
    return planned(model, protocol, component=component, registry=registry, threat=threat)


def test_adaptive_attacks_and_the_papers_protocol_are_added_with_whose_they_are(
    installed: Registry,
) -> None:
    assert labels(of_plugins(installed, "planned")) == [
        ("apgd-ce", "linf:8/255", ("expected",), "adaptive"),
        ("apgd-dlr", "linf:8/255", (), "adaptive"),
        ("pgd:steps=3", "linf:8/255", (), "paper"),
        ("fgsm", "linf:8/255", ("one-draw",), "paper"),
        ("bim:steps=7", "linf:8/255", (), "paper"),
    ]


def test_the_papers_attacks_at_other_radii_are_left_out(installed: Registry) -> None:
    found = labels(of_plugins(installed, "planned", Linf("4/255")))
    assert [label for label, *_ in found] == [
        "apgd-ce",
        "apgd-dlr",
        "pgd:steps=3",
        "fgsm",
        "bim:steps=9",
    ]
    assert {threat for _, threat, *_ in found} == {"linf:4/255"}


def test_a_defense_with_a_protocol_of_its_own_has_that_one(installed: Registry) -> None:
    assert labels(of_plugins(installed, "second")) == [("fgsm", "linf:8/255", (), "paper")]


def test_only_the_models_own_plugin_is_asked_for_attacks(installed: Registry) -> None:
    assert of_plugins(installed, "").also == ()
    assert of_plugins(installed, "nobody").also == ()
    assert paper_protocol("nobody", threat=EIGHT, registry=installed) is None
    without = planned(Plain(), protocol_of(entry()), component="planned", registry=installed)
    assert labels(without) == [("fgsm", "linf:8/255", (), None)]  # plugins = false


def test_an_attack_that_a_plugin_asks_for_too_runs_once_under_its_name(installed: Registry) -> None:
    ce = resolve_attack({"use": "apgd-ce"}, threat=EIGHT, registry=installed)
    plan = Plan((ce,), also=of_plugins(installed, "planned").also[:1])
    tasks = tasks_of(subject(MODELS["population"]()), plan)
    assert [(one.view_name, one.protocol) for one in tasks] == [
        ("deployed", None),
        ("one-draw", None),
        ("expected", "adaptive"),
    ]


def test_a_papers_protocol_by_its_name(installed: Registry) -> None:
    protocol = load_protocol("planned/paper", threat=EIGHT, registry=installed)
    plan = planned(MODELS["population"](), protocol, registry=installed)
    assert [attack_label(use) for use in plan.attacks] == ["pgd:steps=3"]
    # asked for by its name it is not beside another one, and keeps its radii
    assert labels(plan) == [
        ("fgsm", "linf:8/255", ("one-draw",), None),
        ("bim:steps=7", "linf:8/255", (), None),
        ("bim:steps=9", "linf:4/255", (), None),
    ]
    with pytest.raises(UnknownComponentError, match="did you mean 'planned/paper'"):
        load_protocol("planed/paper", registry=installed)


def test_clms_paper_by_its_name() -> None:
    plugin = pytest.importorskip("phalanx_clm.plugin")
    registry = Registry([plugin], discover=False)
    protocol = load_protocol("clm/paper", threat=EIGHT, registry=registry)
    model = MODELS["population"]()
    tasks = tasks_of(subject(model), planned(model, protocol, registry=registry))
    assert [(one.view_name, one.label) for one in tasks] == [
        ("one-draw", "fgsm"),
        ("one-draw", "pgd:step=2/255"),
    ]


# ---------------------------------------------------------------- plugins that do it wrong


def plugin_with(answer: Callable[[], Any]) -> Registry:
    """A registry with the plugin ``mine``, whose adaptive attacks are what `answer` gives."""
    module = types.ModuleType("phalanx_mine")
    spec = ComponentSpec(kind=Kind.DEFENSE, name="mine", factory="a:b", config="a:c", summary="1.")

    def attacks(defense: str, threat: str) -> Any:
        return answer()

    module.phalanx_components = hookimpl(lambda: [spec])  # type: ignore[attr-defined]
    module.phalanx_adaptive_attacks = hookimpl(attacks)  # type: ignore[attr-defined]
    return Registry([module], discover=False)


def generator() -> Iterator[Any]:
    yield entry()
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda: [{"atack": {"use": "pgd"}}], "attack: this key is required"),
        (
            lambda: [entry("pgd", views=["expected"], weight=2)],
            "weight: unknown key; allowed: attack, only, views",
        ),
        (lambda: [entry(only="some")], "only: should be 'stochastic', 'deterministic', "),
        (lambda: [{"attack": {"params": {"steps": 3}}}], "attack.use: is missing: an attack's nam"),
        (lambda: [entry("pgd", params={"stepz": 3})], "params.stepz: "),
        (lambda: ["pgd"], "should be a table of keys, found 'pgd'"),
        (lambda: 5, "they cannot be read: TypeError: 'int' object is not iterable"),
        (generator, "they cannot be read: ZeroDivisionError: oh"),
    ],
)
def test_wrong_tables_of_a_plugin_are_an_error_that_names_it(answer: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of_plugins(plugin_with(answer), "mine")
    told = str(caught.value)
    assert told.startswith("adaptive attacks of plugin 'mine' for mine: ")
    assert f"\n  {problem}" in told


def test_a_plugin_that_raises_is_left_out_with_a_warning() -> None:
    def fails() -> Any:
        raise ZeroDivisionError("oh")

    with pytest.warns(PluginHookWarning, match="'mine'.*phalanx_adaptive_attacks.*oh"):
        plan = of_plugins(plugin_with(fails), "mine")
    assert plan.also == ()


def test_an_adaptive_attack_that_is_missing_becomes_a_note() -> None:
    plan = of_plugins(plugin_with(lambda: [entry("mora"), entry()]), "mine")
    assert labels(plan) == [("fgsm", "linf:8/255", (), "adaptive")]
    assert plan.notes[0].startswith("mine goes without one of its attacks: unknown attack 'mora'")


def test_nothing_is_as_good_as_no_attacks() -> None:
    assert of_plugins(plugin_with(lambda: None), "mine").also == ()


# ---------------------------------------------------------------- surrogates


def plan_with(*attacks: str, also: tuple[str, ...] = ()) -> Plan:
    def resolved(name: str) -> Any:
        return resolve_attack({"use": name}, threat=EIGHT, registry=Registry(discover=False))

    more = tuple(Also(resolved(name), ("one-draw",)) for name in also)
    uses = tuple(resolved(name) for name in attacks)
    return Plan(uses, ("expected",), 30, "some", also=more, checks="full", notes=("a note",))


@pytest.mark.parametrize(
    ("attacks", "also", "kept"),
    [
        (("fgsm", "square", "apgd-ce"), ("pgd",), ["fgsm", "apgd-ce"]),
        (("square",), (), ["square"]),  # better than no examples at all
        ((), ("pgd", "square"), ["pgd"]),  # a paper's protocol may have such entries alone
    ],
)
def test_examples_are_made_on_a_surrogate_by_attacks_that_follow_gradients(
    attacks: tuple[str, ...], also: tuple[str, ...], kept: list[str]
) -> None:
    plan = surrogate_plan(plan_with(*attacks, also=also))
    assert [use.use for use in plan.uses] == kept
    assert (plan.views, plan.limit, plan.protocol) == (("deployed",), 30, "some")
    assert (plan.also, plan.checks, plan.notes) == ((), "free", ())


def test_views_are_those_of_the_model() -> None:
    model = Plain()
    model.views = lambda: {"deployed": View(model.serve), "extra": View(model.serve)}  # type: ignore[method-assign]
    plan = planned(model, protocol_of(entry(views=["extra", "expected"])))
    assert [one.view_name for one in tasks_of(subject(model), plan)] == ["extra"]


def test_a_protocol_for_other_views_is_refused() -> None:
    data = images(20)
    with pytest.raises(InputError) as caught:
        phalanx.evaluate(Plain(), data, protocol="clm/paper")
    assert str(caught.value) == (
        "Plain: no attack of clm/paper runs on a view that it has (deployed); name another "
        "protocol or attacks"
    )
