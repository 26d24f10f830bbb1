"""Broken plugins in a real path: the others go on, and the broken ones are named with the fix."""

import json
from pathlib import Path

import pytest

PLUGINS = sorted(
    found.parent.name.replace("_", "-")
    for found in Path(__file__).parents[2].glob("plugins/*/pyproject.toml")
)
"""All of ours; requirements-dev.txt installs them."""

COMPONENTS = """
@hookimpl
def phalanx_components():
    return [spec({name!r})]
"""

BROKEN = {
    "import-error": (
        "import foo_that_is_not_there",
        "ModuleNotFoundError: No module named 'foo_that_is_not_there'",
    ),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "bad-signature": (
        """
        from phalanx.api import hookimpl

        @hookimpl
        def phalanx_components(surprise):
            return []
        """,
        "PluginValidationError: Plugin 'bad-signature' for hook 'phalanx_components' hookimpl "
        "definition: phalanx_components(surprise) Argument(s) {'surprise'} are declared in the "
        "hookimpl but can not be found in the hookspec",
    ),
    "misspelt-hook": (
        """
        from phalanx.api import hookimpl

        @hookimpl
        def phalanx_componets():
            return []
        """,
        "PluginContractError: there is no hook 'phalanx_componets'; did you mean "
        "'phalanx_components'?",
    ),
    "wrong-return": (
        """
        from phalanx.api import hookimpl

        @hookimpl
        def phalanx_components():
            return ["trs"]
        """,
        "PluginContractError: phalanx_components gave str where a ComponentSpec belongs",
    ),
    "no-list": (
        """
        from phalanx.api import hookimpl

        @hookimpl
        def phalanx_components():
            return 3
        """,
        "PluginContractError: phalanx_components returned int, not an iterable of ComponentSpec",
    ),
    "hook-raises": (
        """
        from phalanx.api import hookimpl

        @hookimpl
        def phalanx_components():
            raise RuntimeError("not today")
        """,
        "RuntimeError: not today",
    ),
}

BROKEN["other-base"] = ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd")


def line(plugin, reason, dist=None):
    return (
        f"plugin {plugin!r} ({dist or 'phalanx-' + plugin} 0.2.1) did not load: {reason}. "
        f"Run 'phalanx doctor {plugin}', or 'phalanx plugin disable {plugin}'."
    )


def installed(result):
    return {row["name"]: row["plugin"] for row in json.loads(result.stdout) if row["installed"]}


def test_every_broken_plugin_is_named_and_the_others_go_on(site):
    for plugin, (code, _) in BROKEN.items():
        site.add(f"phalanx-{plugin}", plugin, code)
    result = site.run("list", "--json")
    assert result.returncode == 0
    assert installed(result).items() >= {"pdd": "pdd", "clm": "clm", "none": "core"}.items()
    expected = [line(plugin, reason) for plugin, (_, reason) in BROKEN.items()]
    assert sorted(result.stderr.splitlines()) == sorted(expected)


def test_an_endless_import_ends_and_what_is_printed_is_no_result(site):
    site.add("phalanx-endless", "endless", "print('here')\nwhile True: pass")
    result = site.run("list", "--json")
    assert result.returncode == 0
    assert installed(result).items() >= {"pdd": "pdd", "clm": "clm", "none": "core"}.items()
    reason = "TimeoutError: timed out: its import did not end within 5 s"
    assert result.stderr.splitlines() == ["here", line("endless", reason)]
    assert site.run("plugin", "disable", "endless").returncode == 0
    assert site.run("list").stderr == ""


def test_doctor_on_a_plugin_of_the_future_and_one_that_prints(site):
    future = "from phalanx.api import HologramDefense"
    site.add("phalanx-future-api", "future-api", future)
    site.add("phalanx-loud", "loud", "import atexit; print('{}'); atexit.register(print, 'bye')")
    result = site.run("doctor", "future-api", "loud")
    assert result.returncode == 1
    assert "ImportError: cannot import name 'HologramDefense' from 'phalanx.api'" in result.stdout
    assert (
        "fix: install a version of phalanx-future-api that is made for phalanx 0.1.0; until then"
    ) in result.stdout
    assert "loud (phalanx-loud 0.2.1): ok\n" in result.stdout


def test_doctor_names_each_with_its_fix_and_exits_1(site):
    for plugin, (code, _) in BROKEN.items():
        site.add(f"phalanx-{plugin}", plugin, code)
    result = site.run("doctor", *BROKEN)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for plugin, (_, reason) in BROKEN.items():
        assert f"{plugin} (phalanx-{plugin} 0.2.1): broken\n  problem: {reason}\n" in result.stdout
        assert f"until then: phalanx plugin disable {plugin}\n" in result.stdout
    assert (
        "fix: install phalanx-import-error again, with its dependencies; "
        "until then: phalanx plugin disable import-error\n"
    ) in result.stdout
    assert "fix: tell the authors of phalanx-exits 0.2.1; until then" in result.stdout


def test_doctor_survives_a_plugin_that_kills_its_process(site):
    site.add("phalanx-killer", "killer", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    result = site.run("doctor", "killer", "--json")
    assert result.returncode == 1
    [finding] = json.loads(result.stdout)["plugins"]
    assert finding["problems"] == ["its process ended with signal 11: no message"]


def test_disable_silences_a_broken_plugin_and_enable_brings_it_back(site):
    site.add("phalanx-bad", "bad", "import foo_that_is_not_there")
    disabled = site.run("plugin", "disable", "bad")
    assert disabled.returncode == 0
    path = site.config / "phalanx" / "plugins.json"
    assert disabled.stdout == (
        f"disabled 'bad' in {path}; 'phalanx plugin enable bad' brings it back\n"
    )
    quiet = site.run("list")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert site.run("plugin", "enable", "bad").stdout == "enabled 'bad'\n"
    assert "plugin 'bad' (phalanx-bad 0.2.1) did not load" in site.run("list").stderr


def test_two_distributions_with_one_id_are_both_refused(site):
    site.add("phalanx-one", "twin", COMPONENTS.format(name="one"), spec=True)
    site.add("phalanx-two", "twin", COMPONENTS.format(name="two"), spec=True)
    result = site.run("list", "--json")
    assert result.returncode == 0
    assert not {"one", "two"} & set(installed(result))
    reason = (
        "DuplicatePluginError: phalanx-one 0.2.1 and phalanx-two 0.2.1 both claim the id 'twin': "
        "uninstall one of them"
    )
    assert result.stderr.splitlines() == [
        line("twin", reason, "phalanx-one"),
        line("twin", reason, "phalanx-two"),
    ]
    doctor = site.run("doctor", "twin")
    assert doctor.returncode == 1
    assert "fix: pip uninstall phalanx-one; until then" in doctor.stdout
    assert "fix: pip uninstall phalanx-two; until then" in doctor.stdout


def test_core_names_are_never_shadowed(site):
    site.add("phalanx-shadow", "shadow", COMPONENTS.format(name="none"), spec=True)
    result = site.run("list", "--json")
    assert installed(result)["none"] == "core"
    reason = (
        "DuplicatePluginError: the core and plugin 'shadow' (phalanx-shadow 0.2.1) both register "
        "the defense 'none'"
    )
    assert result.stderr.splitlines() == [line("shadow", reason)]
    assert site.run("doctor", "shadow").returncode == 1


def test_two_plugins_with_one_component_are_both_refused(site):
    site.add("phalanx-left", "left", COMPONENTS.format(name="same"), spec=True)
    site.add("phalanx-right", "right", COMPONENTS.format(name="same"), spec=True)
    result = site.run("list", "--json")
    assert "same" not in installed(result)
    assert {"pdd", "clm"} <= set(installed(result))
    reason = (
        "DuplicatePluginError: plugin 'left' (phalanx-left 0.2.1) and plugin 'right' "
        "(phalanx-right 0.2.1) both register the defense 'same'"
    )
    assert result.stderr.splitlines() == [line("left", reason), line("right", reason)]
    shown = site.run("show", "same")
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1] == f"error: {line('left', reason)}"


def test_a_plugin_for_another_core_is_not_imported(site):
    site.add("phalanx-future", "future", "raise SystemExit(9)", requires=["phalanx>=9"])
    site.add("phalanx-extra", "extra", "x = 1", requires=["phalanx>=9; extra == 'new'"])
    result = site.run("list")
    reason = "IncompatiblePluginError: it needs phalanx>=9, and this is phalanx 0.1.0"
    assert (result.returncode, result.stderr.splitlines()) == (0, [line("future", reason)])
    doctor = site.run("doctor", "future")
    assert doctor.returncode == 1
    assert (
        "fix: install a version of phalanx-future that is made for phalanx 0.1.0; until then"
    ) in doctor.stdout


def test_components_of_a_failed_plugin_tell_why(site):
    site.add("phalanx-bad", "bad", "import foo_that_is_not_there")
    result = site.run("show", "bad")
    assert result.returncode == 1
    reason = BROKEN["import-error"][1]
    assert result.stderr.splitlines()[-1] == f"error: {line('bad', reason)}"


def test_strict_raises_the_first_failure(site):
    site.add("phalanx-bad", "bad", "import foo_that_is_not_there")
    result = site.run("list", PHALANX_STRICT="1")
    assert result.returncode == 1
    assert result.stderr == f"error: {line('bad', BROKEN['import-error'][1])}\n"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"PHALANX_PLUGINS": ""}, set()),
        ({"PHALANX_PLUGINS": "pdd"}, {"pdd"}),
        ({"PHALANX_DISABLE": ",".join(set(PLUGINS) - {"pdd"})}, {"pdd"}),
    ],
)
def test_environment_chooses_plugins(site, environ, names):
    rows = json.loads(site.run("list", "defense", "--json", **environ).stdout)
    third_party = [row for row in rows if row["plugin"] != "core"]
    assert {row["name"] for row in third_party if row["installed"]} == names
    assert {row["name"] for row in third_party} >= {"pdd", "clm"}
    assert all(row["state"] == "disabled" for row in third_party if not row["installed"])


def test_disabled_plugin_says_how_to_enable_it(site):
    result = site.run("show", "clm/clm", PHALANX_DISABLE="clm")
    assert (result.returncode, result.stderr) == (
        2,
        "error: defense 'clm/clm' is in the plugin 'clm', which is disabled: "
        "take clm out of PHALANX_DISABLE\n",
    )


def test_slow_import_is_named(site):
    site.add("phalanx-slow", "slow", "import time; time.sleep(1.1)")
    result = site.run("list")
    assert result.returncode == 0
    assert "plugin 'slow' (phalanx-slow 0.2.1) took 1." in result.stderr
    assert "s to import: its plugin module should import nothing heavy" in result.stderr


def test_help_and_version_import_no_plugin(site):
    site.add("phalanx-exits", "exits", "raise SystemExit(3)")
    for arguments in (["--help"], ["--version"], ["list", "--help"], ["plugin", "list"]):
        result = site.run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
