"""Protocols from files of anybody's: what is read, what is refused, whose thresholds count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phalanx.errors import ConfigError, InputError
from phalanx.evaluation.protocol import load_protocol
from phalanx.registry import Registry
from phalanx.specs import Linf

EIGHT = Linf("8/255")


def test_a_protocol_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nattacks = [{ use = "fgsm" }]\n')
    found = load_protocol(str(file), threat=EIGHT, registry=Registry(discover=False))
    assert re.fullmatch(r"mine \(mine\.toml, [0-9a-f]{12}\)", found.name)
    assert [one.use for one in found.attacks] == ["fgsm"]
    assert found.attacks[0].params.threat == EIGHT  # type: ignore[attr-defined]


def test_a_threshold_that_is_not_named_stays(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[thresholds]\ngrad_fd = { warn = 0.9 }\nexcluded = 0.1\n')
    found = load_protocol(file, registry=Registry(discover=False)).thresholds
    assert (found.grad_fd.warn, found.grad_fd.fail) == (0.9, 0.7)
    assert [*found.changes()] == ["grad_fd warns below 0.9, fails below 0.7", "excluded at 0.1"]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, InputError, "the protocol {} cannot be read: No such file or directory"),
        (b"\xff", InputError, "the protocol {} cannot be read: it is no text in UTF-8"),
        (b"name =", ConfigError, "protocol '{}': 1 problem\n  is not TOML: "),
        (b"name = 'a'\nlimt = 3", ConfigError, "unknown key; did you mean 'limit'?"),
        (
            b"name = 'a'\n[thresholds]\nblack_box = { warn = 0.5, fail = 0.1 }",
            ConfigError,
            "warns from 0.5 on, so it cannot fail at 0.1",
        ),
        (
            b"name = 'a'\n[thresholds]\ngrad_fd = { warn = 0.5 }",
            ConfigError,
            "warns below 0.5, so it cannot fail below 0.7",
        ),
        (
            b"name = 'a'\n[thresholds]\nunstable = { fail = 0.1 }",
            ConfigError,
            "warns above 0.5, so it cannot fail above 0.1",
        ),
        (
            b"name = 'a'\n[thresholds]\nbudget = { fail = 1.0 }",
            ConfigError,
            "budget cannot be changed: an example outside its ball breaks no image",
        ),
    ],
)
def test_a_file_that_is_no_protocol_is_refused(
    tmp_path: Path, content: bytes | None, kind: type[Exception], message: str
) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(kind) as error:
        load_protocol(str(file), registry=Registry(discover=False))
    assert message.format(file) in str(error.value)
