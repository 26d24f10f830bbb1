"""Attacks as text: ``pgd:step=2/255,steps=40`` on a command line and in a report's rows."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_jsonable_python

from phalanx.config import UseAttack
from phalanx.errors import ConfigError
from phalanx.specs import Spec

_COMMA = re.compile(r",(?![^\[]*\])")  # not within a list


def attack_label(use: UseAttack) -> str:
    """The attack's name with the parameters that differ from the default, the threat left out."""
    pairs = [f"{name}={_text(value)}" for name, value in sorted(_changed(use))]
    return use.use + (":" + ",".join(pairs) if pairs else "")


def attack_identity(use: UseAttack) -> str:
    """Name and every parameter but the threat, as canonical JSON: what a stored cell answers to."""
    params = use.params.model_dump(mode="json", exclude={"threat"})
    return json.dumps([use.use, params], sort_keys=True, separators=(",", ":"))


def parse_attack(text: str) -> dict[str, Any]:
    """``name[:key=value,…]`` as a table for `phalanx.config.UseAttack`.

    A value is read as TOML where it is TOML (``40``, ``0.01``, ``true``), else as text (``2/255``).

    Raises:
        ConfigError: with each part that is not ``key=value``.
    """
    name, _, rest = text.partition(":")
    params: dict[str, Any] = {}
    problems = []
    for part in _COMMA.split(rest) if rest else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            problems.append(f"{part!r} is not of the form key=value, as in pgd:steps=40,step=2/255")
        elif key in params:
            problems.append(f"{key} is given twice")
        else:
            params[key] = _value(value)
    if problems:
        raise ConfigError(problems, source=f"attack {text!r}")
    return {"use": name.strip(), "params": params}


def _changed(use: UseAttack) -> Iterator[tuple[str, Any]]:
    """Parameters that are not at their default."""
    config: Spec = use.params
    family = "/" in use.use  # then `name` says again what stands behind the slash
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "threat" or (family and name == "name"):
            continue
        if field.is_required() or value != field.get_default(call_default_factory=True):
            yield name, value
    yield from (config.model_extra or {}).items()


def _text(value: Any) -> str:
    """A value as `parse_attack` reads it back."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return value
    return json.dumps(to_jsonable_python(value), separators=(",", ":"))


def _number(value: float) -> str:
    """The shortest text of a number; k/255 where it is one."""
    plain = f"{value:g}"
    if float(plain) == value:
        return plain
    k = round(value * 255)
    return f"{k}/255" if k / 255 == value else repr(value)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
