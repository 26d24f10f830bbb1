"""Look-up by name, what is said of names that are not there, in-process registration, observers."""

import importlib
import types
import warnings

import pytest

import phalanx
from phalanx import catalog, discovery, registry
from phalanx.api import ComponentSpec, DefenseConfig, Kind, Spec, hookimpl
from phalanx.errors import (
    DuplicatePluginError,
    PluginContractError,
    PluginHookWarning,
    PluginLoadError,
    UnknownComponentError,
)
from phalanx.registry import Registry

TRS = """
schema = 1
[[plugin]]
id = "trs"
package = "phalanx-trs"
path = "plugins/trs"
entry_point = "phalanx_trs.plugin"
api = ">=1.0,<2"
core = ">=0.1,<0.2"
status = "experimental"
{published}
[[plugin.component]]
kind = "defense"
name = "trs"
summary = "Smooth members."
"""


class MyConfig(DefenseConfig):
    members: int = 3


def spec(name="mine", **rest):
    here = f"{__name__}:MyConfig"
    given = {"factory": here, "config": here, "summary": "One.", **rest}
    return ComponentSpec(kind=Kind.DEFENSE, name=name, **given)


def module(name="phalanx_mine", *components, **hooks):
    plugin = types.ModuleType(name)
    plugin.phalanx_components = hookimpl(lambda: components)
    for hook, function in hooks.items():
        setattr(plugin, hook, hookimpl(function))
    return plugin


@pytest.fixture
def core():
    return Registry(discover=False)


@pytest.fixture
def with_trs(monkeypatch):
    """Make the catalog know a plugin that is not installed."""

    def know(published=""):
        known = catalog.read(TRS.format(published=published))
        monkeypatch.setattr(registry.catalog, "load", lambda: known)

    return know


def message(call, *arguments, error=UnknownComponentError):
    with pytest.raises(error) as caught:
        call(*arguments)
    return str(caught.value)


class TestFind:
    def test_core_alone(self, core):
        assert {one.plugin for one in core.specs()} == {"core"}
        assert [one.spec.name for one in core.specs(Kind.DEFENSE)] == ["none", "pgd-at"]
        assert core.spec(Kind.ATTACK, "pgd").name == "pgd"

    def test_sorted_by_kind_and_name(self):
        registered = Registry([module("phalanx_mine", spec("zoo"), spec("bee"))], discover=False)
        names = [one.spec.name for one in registered.specs(Kind.DEFENSE)]
        assert names == ["bee", "none", "pgd-at", "zoo"]

    def test_plugin_of_a_module(self):
        one = Registry([module("phalanx_mine.plugin", spec())], discover=False)
        assert one.find(Kind.DEFENSE, "mine").plugin == "mine"

    def test_qualified(self):
        one = Registry([module("phalanx_mine", spec("thing"))], discover=False)
        assert one.spec(Kind.DEFENSE, "mine/thing") is one.spec(Kind.DEFENSE, "thing")
        assert one.spec(Kind.ATTACK, "core/pgd").name == "pgd"
        assert "unknown defense 'core/thing'" in message(one.spec, Kind.DEFENSE, "core/thing")

    def test_family(self, core):
        assert core.spec(Kind.ATTACK, "art/DeepFool").name == "art/*"
        assert core.family_arguments(Kind.ATTACK, "art/DeepFool") == {"name": "DeepFool"}
        assert core.family_arguments(Kind.ATTACK, "pgd") == {}
        assert "unknown attack 'art/'" in message(core.spec, Kind.ATTACK, "art/")

    def test_installed_plugins(self):
        found = Registry().find(Kind.DEFENSE, "pdd")
        assert (found.plugin, found.dist) == ("pdd", "phalanx-pdd")

    def test_config_class_and_create(self):
        one = Registry([module("phalanx_mine", spec())], discover=False)
        assert one.config_class(Kind.DEFENSE, "mine") is MyConfig
        assert one.config_class(Kind.DEFENSE, "mine/mine") is MyConfig
        factory = spec(factory="types:SimpleNamespace", config=f"{__name__}:MyConfig")
        one = Registry([module("phalanx_mine", factory)], discover=False)
        assert one.factory(Kind.DEFENSE, "mine") is types.SimpleNamespace


class TestMissing:
    def test_near_name(self, core):
        assert message(core.spec, Kind.ATTACK, "pdg") == "unknown attack 'pdg'; did you mean 'pgd'?"

    def test_no_near_name(self, core):
        text = message(core.spec, Kind.DEFENSE, "zzzz")
        assert text == "unknown defense 'zzzz'; known: none, pgd-at"

    def test_no_component_of_that_kind(self, core):
        assert message(core.spec, Kind.PRUNER, "x") == "unknown pruner 'x'; known: none"

    def test_other_kind(self, core):
        text = message(core.spec, Kind.DEFENSE, "pgd")
        assert text == "unknown defense 'pgd'; 'pgd' is of kind attack"

    def test_near_name_that_is_not_installed(self, core, with_trs):
        with_trs()
        assert message(core.spec, Kind.DEFENSE, "trss") == (
            "unknown defense 'trss'; did you mean 'trs'? "
            "it is in phalanx-trs: pip install ./plugins/trs"
        )

    @pytest.mark.parametrize("name", ["trs", "trs/trs"])
    def test_known_but_not_installed(self, core, with_trs, name):
        with_trs()
        assert message(core.spec, Kind.DEFENSE, name) == (
            f"unknown defense {name!r}; it is in phalanx-trs: pip install ./plugins/trs"
        )

    def test_bare_package_name_only_where_published(self, core, with_trs):
        with_trs("published = true")
        assert message(core.spec, Kind.DEFENSE, "trs") == (
            "unknown defense 'trs'; it is in phalanx-trs: pip install phalanx-trs"
        )

    def test_disabled(self):
        chosen = discovery.Selection(disabled={"clm": "run 'phalanx plugin enable clm'"})
        one = Registry(selection=chosen)
        assert message(one.spec, Kind.DEFENSE, "clm") == (
            "defense 'clm' is in the plugin 'clm', which is disabled: "
            "run 'phalanx plugin enable clm'"
        )
        assert message(one.spec, Kind.DEFENSE, "clmm") == (
            "unknown defense 'clmm'; did you mean 'clm'?"
        )
        assert one.disabled == chosen.disabled

    def test_failed_plugin(self):
        def explode():
            raise RuntimeError("boom")

        broken = module("phalanx_mine")
        broken.phalanx_components = hookimpl(explode)
        one = Registry([broken], discover=False)
        with pytest.raises(PluginLoadError, match="did not load: RuntimeError: boom") as caught:
            one.spec(Kind.DEFENSE, "mine")
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert [failure.id for failure in one.failures] == ["mine"]

    def test_strict(self):
        chosen = discovery.Selection(disabled={}, strict=True)
        with pytest.raises(DuplicatePluginError, match="the core and plugin 'mine'"):
            Registry([module("phalanx_mine", spec("none"))], discover=False, selection=chosen)


class TestBrokenTargets:
    @pytest.mark.parametrize(
        ("config", "error", "text"),
        [
            (
                "phalanx_not_there:X",
                PluginLoadError,
                "defense 'mine': 'phalanx_not_there:X' did not import: "
                "ModuleNotFoundError: No module named 'phalanx_not_there'",
            ),
            (
                "types:Nope",
                PluginContractError,
                "defense 'mine' of plugin 'mine': there is no 'types:Nope'",
            ),
            (
                "types:SimpleNamespace",
                PluginContractError,
                "defense 'mine' of plugin 'mine': 'types:SimpleNamespace' is not a config "
                "(a phalanx.api.Spec)",
            ),
        ],
    )
    def test_config(self, config, error, text):
        one = Registry([module("phalanx_mine", spec(config=config))], discover=False)
        assert message(one.config_class, Kind.DEFENSE, "mine", error=error) == text

    def test_factory_that_cannot_be_called(self):
        one = Registry([module("phalanx_mine", spec(factory="sys:path"))], discover=False)
        assert message(one.factory, Kind.DEFENSE, "mine", error=PluginContractError) == (
            "defense 'mine' of plugin 'mine': 'sys:path' cannot be called"
        )


class TestInProcess:
    def test_decorator(self, core):
        class Local(Spec):
            size: int = 1

        @core.defense("mine", config=Local)
        class Mine:
            """First line.

            More.
            """

            def __init__(self, config):
                self.config = config

        found = core.find(Kind.DEFENSE, "mine")
        assert (found.plugin, found.spec.summary) == ("session", "First line.")
        assert core.config_class(Kind.DEFENSE, "mine") is Local
        assert core.create(Kind.DEFENSE, "mine", Local(size=2)).config.size == 2

    def test_a_cell_that_runs_twice_replaces(self, core):
        for size in (1, 2):

            @core.defense("mine", config=MyConfig, summary=str(size))
            class Mine:
                pass

        assert core.spec(Kind.DEFENSE, "mine").summary == "2"
        assert core.factory(Kind.DEFENSE, "mine") is Mine

    def test_registering_a_spec_forgets_the_class_of_that_name(self, core):
        class Local(Spec):
            pass

        core.defense("mine", config=Local)(types.SimpleNamespace)
        assert core.config_class(Kind.DEFENSE, "mine") is Local
        core.register(spec(factory="types:SimpleNamespace", summary="Two."))
        assert core.spec(Kind.DEFENSE, "mine").summary == "Two."
        assert core.config_class(Kind.DEFENSE, "mine") is MyConfig

    def test_names_are_unique(self, core):
        with pytest.raises(DuplicatePluginError) as caught:
            core.register(spec("none"))
        assert str(caught.value) == (
            "the defense 'none' is already registered by 'core': choose another name"
        )
        core.register(spec("mine"))
        with pytest.raises(DuplicatePluginError, match="already registered by 'session'"):
            core.register(spec("mine", factory="types:ModuleType"))

    def test_config_is_checked(self, core):
        with pytest.raises(PluginContractError, match="is not a config"):
            core.defense("mine", config=int)

    def test_module_level_functions_act_on_the_default(self, monkeypatch, core):
        monkeypatch.setattr(registry, "default_registry", lambda: core)
        phalanx.register(spec("one"))

        @phalanx.defense("two", config=MyConfig)
        class Two:
            pass

        assert core.spec(Kind.DEFENSE, "one").name == "one"
        assert core.factory(Kind.DEFENSE, "two") is Two

    def test_the_decorator_works_when_the_module_of_its_name_is_imported(self, monkeypatch, core):
        monkeypatch.setattr(registry, "default_registry", lambda: core)
        importlib.import_module("phalanx.defense")

        @phalanx.defense("three", config=MyConfig)
        class Three:
            pass

        assert core.factory(Kind.DEFENSE, "three") is Three

    def test_default_registry_is_cached(self):
        assert phalanx.default_registry() is phalanx.default_registry()


class TestBlame:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [(TypeError("no x"), "TypeError: no x"), (SystemExit(2), "SystemExit: 2")],
    )
    def test_a_factory_that_fails_names_its_plugin(self, core, error, reason):
        @core.defense("mine", config=MyConfig)
        class Mine:
            def __init__(self, config):
                raise error

        with pytest.raises(PluginContractError) as caught:
            core.create(Kind.DEFENSE, "mine", MyConfig())
        assert str(caught.value) == (
            f"defense 'mine' of plugin 'session': cannot be built: {reason}; tell its authors, or "
            "leave it out"
        )
        assert caught.value.plugin == "session"
        assert caught.value.__cause__ is error

    def test_what_phalanx_says_itself_comes_through(self, core):
        with (
            pytest.raises(UnknownComponentError, match="plain"),
            core.blamed(Kind.DEFENSE, "none", "failed"),
        ):
            raise UnknownComponentError("plain")

    def test_an_installed_plugin_is_named_with_its_distribution(self):
        error = Registry().broken(Kind.DEFENSE, "pdd", "is odd")
        assert str(error) == "defense 'pdd' of plugin 'pdd' (phalanx-pdd 0.1.0): is odd"


class TestObservers:
    def test_all_are_told(self):
        told = []
        one = module("phalanx_one", phalanx_run_started=lambda run: told.append(("one", run)))
        two = module("phalanx_two", phalanx_run_started=lambda: told.append(("two", None)))
        Registry([one, two], discover=False).notify("phalanx_run_started", run={"out": "x"})
        assert sorted(told, key=str) == [("one", {"out": "x"}), ("two", None)]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ValueError("no disk"), "ValueError: no disk"),
            (SystemExit(3), "SystemExit: 3"),
            (GeneratorExit(), "GeneratorExit"),
        ],
    )
    def test_a_failing_one_is_left_out_and_named(self, error, reason):
        told = []

        def fail(run):
            raise error

        one = module("phalanx_one", phalanx_run_finished=fail)
        two = module("phalanx_two", phalanx_run_finished=lambda run: told.append(run))
        both = Registry([one, two], discover=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            both.notify("phalanx_run_finished", run={})
        assert told == [{}]
        assert [(one.category, str(one.message)) for one in caught] == [
            (
                PluginHookWarning,
                "plugin 'one' (phalanx_one): phalanx_run_finished failed and was left out: "
                f"{reason}",
            )
        ]

    def test_ctrl_c_is_not_an_observers_failure(self):
        def interrupted(run):
            raise KeyboardInterrupt

        one = module("phalanx_one", phalanx_run_started=interrupted)
        with pytest.raises(KeyboardInterrupt):
            Registry([one], discover=False).notify("phalanx_run_started", run={})
