"""Stages of plugin loading in process: scan, check, register, the user's choice."""

import errno
import importlib.metadata
import os
import types

import pytest

from phalanx import discovery, plugins
from phalanx.api import ComponentSpec, Kind, hookimpl
from phalanx.errors import (
    ConfigError,
    DuplicatePluginError,
    IncompatiblePluginError,
    OutputError,
    PluginContractError,
    PluginLoadError,
    StorageError,
)


def spec(name="mine", kind=Kind.DEFENSE):
    return ComponentSpec(kind=kind, name=name, factory="a.b:C", config="a.b:D", summary="One.")


def plugin_of(*components):
    module = types.ModuleType("phalanx_mine")
    module.phalanx_components = hookimpl(lambda: components)
    return module


def found(plugin="mine", *, dist="phalanx-mine", requires=(), target="phalanx_pdd.plugin"):
    return discovery.FoundPlugin(plugin, target, dist, "1.0", tuple(requires))


def distribution(folder, name, entry_points, *, requires=(), version="1.0"):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text("[phalanx.plugins]\n" + "\n".join(entry_points) + "\n")


def entries(*folders):
    return [
        entry
        for dist in importlib.metadata.distributions(path=[str(folder) for folder in folders])
        for entry in dist.entry_points
    ]


class TestScan:
    def test_finds_by_metadata_alone(self, tmp_path):
        distribution(
            tmp_path,
            "phalanx-trs",
            ["trs = phalanx_trs.plugin"],
            requires=["phalanx>=0.1,<0.2", "phalanx-other>=9", "torch"],
        )
        [one] = discovery.scan(entries(tmp_path))
        assert one == discovery.FoundPlugin(
            "trs",
            "phalanx_trs.plugin",
            "phalanx-trs",
            "1.0",
            ("phalanx>=0.1,<0.2",),
            str(tmp_path),
        )
        assert one.label == "phalanx-trs 1.0"

    def test_identical_duplicates_are_merged(self, tmp_path):
        for folder in ("a", "b"):
            distribution(tmp_path / folder, "phalanx-trs", ["trs = phalanx_trs.plugin"])
        assert len(discovery.scan(entries(tmp_path / "a", tmp_path / "b"))) == 1

    def test_two_distributions_stay_two(self, tmp_path):
        distribution(tmp_path, "phalanx-trs", ["trs = phalanx_trs.plugin"])
        distribution(tmp_path, "other-trs", ["trs = other_trs.plugin"])
        assert [one.dist for one in discovery.scan(entries(tmp_path))] == [
            "other-trs",
            "phalanx-trs",
        ]

    def test_a_distribution_without_a_name_is_found(self, tmp_path):
        distribution(tmp_path, "phalanx-odd", ["odd = phalanx_odd.plugin"])
        (tmp_path / "phalanx_odd-1.0.dist-info" / "METADATA").write_text("\n")
        [one] = discovery.scan(entries(tmp_path))
        assert (one.id, one.dist, one.version) == ("odd", "unnamed", "")

    def test_installed_plugins_are_found(self):
        assert {"clm", "pdd"} <= {one.id for one in discovery.scan()}


class TestCheck:
    @pytest.mark.parametrize("text", ["phalanx", "phalanx>=0.1,<0.2", "phalanx>=9; extra == 'x'"])
    def test_accepts(self, text):
        discovery.check(found(requires=[text]), "0.1.0")

    def test_accepts_a_development_version_of_the_core(self):
        discovery.check(found(requires=["phalanx>=0.1"]), "0.2.0.dev1")

    def test_refuses_another_core(self):
        message = "it needs phalanx<0.2,>=0.1, and this is phalanx 0.2.0"
        with pytest.raises(IncompatiblePluginError, match=f"^{message}$") as caught:
            discovery.check(found(requires=["phalanx<0.2,>=0.1"]), "0.2.0")
        assert (caught.value.plugin, caught.value.dist, caught.value.version) == (
            "mine",
            "phalanx-mine",
            "1.0",
        )

    @pytest.mark.parametrize("plugin", ["core", "a/b", "Trs", ""])
    def test_refuses_an_id_that_is_none(self, plugin):
        message = (
            f"{plugin!r} cannot be a plugin's id: an id has lower-case letters, digits and "
            f"hyphens, and 'core' is taken"
        )
        with pytest.raises(PluginContractError) as caught:
            discovery.check(found(plugin), "0.1.0")
        assert str(caught.value) == message


class TestLoad:
    def test_loads_what_is_found(self):
        loaded = plugins.load([found("pdd")], core_version="0.1.0")
        assert [one.id for one in loaded.plugins] == ["pdd"]
        assert loaded.plugins[0].seconds >= 0.0
        assert loaded.failures == []

    def test_leaves_out_what_is_disabled_or_not_allowed(self):
        loaded = plugins.load(
            [found("a"), found("b")],
            core_version="0.1.0",
            disabled={"a": "say please"},
            allowed=["a"],
        )
        assert loaded.plugins == []
        assert loaded.disabled == {
            "a": "say please",
            "b": "add b to PHALANX_PLUGINS, or unset it",
        }

    def test_keyboard_interrupt_is_not_caught(self, monkeypatch):
        def interrupt(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(importlib.metadata.EntryPoint, "load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plugins.load([found()], core_version="0.1.0")

    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "while True:\n    try:\n        while True: pass\n    except Exception: pass",
            "import time; time.sleep(100)",
        ],
    )
    def test_an_endless_import_is_ended_and_recorded(self, monkeypatch, tmp_path, code):
        (tmp_path / "phalanx_endless.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(plugins, "IMPORT_SECONDS", 0.1)
        endless = found("endless", target="phalanx_endless")
        loaded = plugins.load([endless, found("pdd")], core_version="0.1.0")
        assert [one.id for one in loaded.plugins] == ["pdd"]
        (failure,) = loaded.failures
        assert (failure.stage, type(failure.error)) == ("import", TimeoutError)
        assert str(failure.error) == "timed out: its import did not end within 0.1 s"

    def test_endless_components_are_ended_and_recorded(self, monkeypatch):
        def endless():
            while True:
                pass

        monkeypatch.setattr(plugins, "IMPORT_SECONDS", 0.05)
        module = types.ModuleType("phalanx_mine")
        module.phalanx_components = hookimpl(endless)
        loaded = plugins.new()
        plugins.add(loaded, found(), module)
        (failure,) = loaded.failures
        assert failure.stage == "components"
        assert str(failure.error) == "timed out: phalanx_components did not end within 0.05 s"

    def test_two_claims_of_one_id(self):
        loaded = plugins.load([found(), found(dist="other")], core_version="0.1.0")
        assert [type(one.error) for one in loaded.failures] == [DuplicatePluginError] * 2
        assert [one.stage for one in loaded.failures] == ["scan", "scan"]

    def test_failure_is_rolled_back(self):
        loaded = plugins.new()
        plugin = plugin_of("not a spec")
        plugins.add(loaded, found(), plugin)
        assert not loaded.manager.is_registered(plugin)
        assert [one.stage for one in loaded.failures] == ["components"]

    def test_one_component_twice(self):
        loaded = plugins.new()
        plugins.add(loaded, found(), plugin_of(spec(), spec()))
        assert str(loaded.failures[0]) == (
            "plugin 'mine' (phalanx-mine 1.0) did not load: PluginContractError: it registers the "
            "defense 'mine' twice. Run 'phalanx doctor mine', or 'phalanx plugin disable mine'."
        )

    def test_one_name_in_two_kinds_is_no_clash(self):
        loaded = plugins.new()
        plugins.add(loaded, found(), plugin_of(spec(), spec(kind=Kind.ATTACK)))
        plugins.refuse_clashes(loaded)
        assert loaded.failures == []

    def test_components_may_be_generated(self):
        module = types.ModuleType("phalanx_mine")

        @hookimpl
        def phalanx_components():
            yield spec()

        module.phalanx_components = phalanx_components
        loaded = plugins.new()
        plugins.add(loaded, found(), module)
        assert loaded.plugins[0].components == (spec(),)


class TestFailure:
    def test_exception_chains_the_cause(self):
        cause = ImportError("no foo.")
        raised = discovery.PluginFailure(found(), "import", cause).exception()
        assert type(raised) is PluginLoadError
        assert raised.__cause__ is cause
        assert (raised.plugin, raised.dist, raised.version) == ("mine", "phalanx-mine", "1.0")
        assert str(raised) == (
            "plugin 'mine' (phalanx-mine 1.0) did not load: ImportError: no foo. "
            "Run 'phalanx doctor mine', or 'phalanx plugin disable mine'."
        )

    def test_many_lines_become_one(self):
        assert discovery.describe(ValueError("a\n  b")) == "ValueError: a b"
        assert discovery.describe(ValueError()) == "ValueError"


class TestSelection:
    def environ(self, tmp_path, **rest):
        return {"XDG_CONFIG_HOME": str(tmp_path), **rest}

    def test_nothing_chosen(self, tmp_path):
        chosen = discovery.selection(self.environ(tmp_path))
        assert chosen == discovery.Selection(disabled={}, allowed=None, strict=False)

    def test_environment(self, tmp_path):
        chosen = discovery.selection(
            self.environ(tmp_path, PHALANX_DISABLE="a, b", PHALANX_PLUGINS="", PHALANX_STRICT="1")
        )
        assert chosen.disabled == {
            "a": "take a out of PHALANX_DISABLE",
            "b": "take b out of PHALANX_DISABLE",
        }
        assert chosen.allowed == frozenset()
        assert chosen.strict

    def test_file(self, tmp_path):
        environ = self.environ(tmp_path)
        path = discovery.settings_path(environ)
        assert path == tmp_path / "phalanx" / "plugins.json"
        discovery.write_disabled(path, ["b", "a", "b"])
        assert path.read_text() == '{"disabled": ["a", "b"]}\n'
        assert discovery.selection(environ).disabled == {
            "a": "run 'phalanx plugin enable a'",
            "b": "run 'phalanx plugin enable b'",
        }

    def test_a_choice_that_cannot_be_stored(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "plugins.json"
        with pytest.raises(OutputError, match=r"the settings' folder .*file is a file; name a fol"):
            discovery.write_disabled(path, ["a"])
        path = tmp_path / "plugins.json"
        discovery.write_disabled(path, ["a"])

        def full(descriptor):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full; the choice of before stands"):
            discovery.write_disabled(path, ["b"])
        assert discovery.read_disabled(path) == ("a",)
        assert {one.name for one in tmp_path.iterdir()} == {"file", "plugins.json"}

    def test_home_without_xdg(self):
        path = discovery.settings_path({"HOME": "/users/ada"})
        assert str(path) == "/users/ada/.config/phalanx/plugins.json"

    def test_a_home_that_is_no_folder_holds_no_choice(self):
        assert discovery.selection({"HOME": "/dev/null"}).disabled == {}

    def test_a_choice_that_cannot_be_read(self, tmp_path):
        (tmp_path / "plugins.json").mkdir()
        with pytest.raises(ConfigError, match="cannot be read: Is a directory; set XDG_CONFIG_HOM"):
            discovery.read_disabled(tmp_path / "plugins.json")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"disabled": [1]}', '{"disabled": 3}'])
    def test_damaged_file(self, tmp_path, text):
        path = tmp_path / "plugins.json"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            discovery.read_disabled(path)
        assert str(caught.value) == (
            f'{path}: 1 problem\n  cannot be read; write {{"disabled": []}} into it, or delete it'
        )
