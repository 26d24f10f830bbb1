"""One tree of errors, as its docstring draws it; every one that a user can cause exits with 2."""

import inspect
import re

import pytest

from phalanx import errors


def classes():
    members = inspect.getmembers(errors, inspect.isclass)
    return [one for _, one in members if issubclass(one, Exception)]


def test_the_docstring_draws_the_tree():
    lines = re.findall(r"^ {4}([│ ├└─]*)(\w+)", errors.__doc__, re.MULTILINE)
    drawn, path = {}, []
    for indent, name in lines:
        path = [*path[: len(indent) // 3], name]
        drawn[name] = path[-2] if len(path) > 1 else None
    actual = {
        one.__name__: one.__bases__[0].__name__ if one.__bases__[0] in classes() else None
        for one in classes()
    }
    assert drawn == actual


@pytest.mark.parametrize("one", classes(), ids=lambda one: one.__name__)
def test_every_one_is_documented(one):
    assert one.__doc__


@pytest.mark.parametrize("one", classes(), ids=lambda one: one.__name__)
def test_exit_codes(one):
    if issubclass(one, errors.InputError):
        assert one.exit_code == 2
        assert issubclass(one, ValueError)
    elif issubclass(one, errors.PhalanxError):
        assert one.exit_code == 1
    else:
        assert issubclass(one, UserWarning)


def test_config_error_tells_all_problems():
    error = errors.ConfigError(["a: is wrong", "b.c: too"], source="run.toml")
    assert str(error) == "run.toml: 2 problems\n  a: is wrong\n  b.c: too"
    assert error.problems == ("a: is wrong", "b.c: too")
    assert str(errors.ConfigError(["x"])) == "config: 1 problem\n  x"


def test_plugin_error_names_its_plugin():
    error = errors.PluginLoadError("no", plugin="trs", dist="phalanx-trs", version="1")
    assert (str(error), error.plugin, error.dist, error.version) == (
        "no",
        "trs",
        "phalanx-trs",
        "1",
    )


def test_unknown_component_is_a_lookup_error_with_plain_text():
    error = errors.UnknownComponentError("unknown defense 'x'")
    assert isinstance(error, LookupError)
    assert str(error) == "unknown defense 'x'"
