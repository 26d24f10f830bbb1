"""``--set`` as nested tables."""

import pytest

from phalanx.cli.common import parse_set, run_kept
from phalanx.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-0.1", -0.1),
        ("1e-3", 1e-3),
        ("true", True),
        ('["crop", "flip"]', ["crop", "flip"]),
        ('{ name = "sgd", lr = 0.1 }', {"name": "sgd", "lr": 0.1}),
        ('"8/255"', "8/255"),
        ("8/255", "8/255"),
        ("linf:0.1", "linf:0.1"),
        ("pdd+deg", "pdd+deg"),
        ("", ""),
        ("a=b", "a=b"),
        ("5\nseed = 3", "5\nseed = 3"),
    ],
)
def test_values(text, value):
    assert parse_set([f"a.b={text}"]) == {"a": {"b": value}}


def test_many():
    assert parse_set(["a.b=1", "a.c.d=2", "e=x", "a.b=3"]) == {
        "a": {"b": 3, "c": {"d": 2}},
        "e": "x",
    }


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_set(["a", "=1", "a..b=1", "x=1", "x.y=2", "z.y=1", "z=2"])
    assert str(caught.value) == (
        "--set: 5 problems\n"
        "  'a' is not of the form key.path=value\n"
        "  '=1' is not of the form key.path=value\n"
        "  'a..b=1' is not of the form key.path=value\n"
        "  'x.y=2' contradicts an earlier --set\n"
        "  'z=2' contradicts an earlier --set"
    )


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no checkpoint had been written, so nothing is kept in {}"),
        ({"state.json": "{"}, "no checkpoint had been written, so nothing is kept in {}"),
        (
            {"state.json": '{"running": null, "finished": []}'},
            "no checkpoint had been written, so nothing is kept in {}",
        ),
        (
            {"state.json": '{"running": {"epoch": 1}, "finished": []}'},
            "the last checkpoint is kept; go on with: phalanx train '{0}'/config.json --resume "
            "--out '{0}'",
        ),
        (
            {"state.json": '{"running": null, "finished": [1]}', "manifest.json": "{}"},
            "the run in {0} is finished: phalanx evaluate '{0}' --out '{0}'/report",
        ),
    ],
)
def test_what_an_interrupted_training_leaves(tmp_path, files, told):
    folder = tmp_path / "my run"  # the line can be pasted into a shell
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    assert run_kept(folder) == told.format(folder)
