"""Attacks as text: ``pgd:step=2/255,steps=40`` on a command line and in a report's rows."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from phalanx.config import Use, UseAttack
from phalanx.errors import ConfigError
from phalanx.specs import Spec, Threat


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

    A value is read as TOML where it is TOML (``40``, ``true``, ``{use = "snow", params = {…}}``),
    else as text (``2/255``, ``fog``).

    Raises:
        ConfigError: with each part that is not ``key=value``.
    """
    name, _, rest = text.partition(":")
    params: dict[str, Any] = {}
    problems = []
    for part in _parts(rest) if rest else []:
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


def _parts(text: str) -> list[str]:
    """The text at its commas, those within lists and tables left alone."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _changed(use: Use) -> Iterator[tuple[str, Any]]:
    """Parameters that are not at their default."""
    config: Spec = use.params
    family = "/" in use.use  # then `name` says again what stands behind the slash
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "threat" or (family and name == "name"):
            continue
        if field.is_required() or not _is(value, field.get_default(call_default_factory=True)):
            yield name, value
    yield from (config.model_extra or {}).items()


def _is(value: Any, default: Any) -> bool:
    """Whether a value is the default; that of a component is written as in a run file."""
    if isinstance(value, Use) and isinstance(default, str | Mapping):
        return _toml(value) == _toml(default)
    return bool(value == default)


def _text(value: Any) -> str:
    """A value as `parse_attack` reads it back."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Use):
        return _toml(value).removeprefix('"').removesuffix('"')  # a bare name needs no quotes
    return json.dumps(to_jsonable_python(value), separators=(",", ":"))


def _toml(value: Any) -> str:
    """A value within another component's parameters, as TOML."""
    if isinstance(value, Use):
        params = dict(_changed(value))
        return _toml({"use": value.use, "params": params} if params else value.use)
    if isinstance(value, Mapping):
        pairs = (f"{key}={_toml(inner)}" for key, inner in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_toml(inner) for inner in value)}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return json.dumps(str(value) if isinstance(value, Threat) else to_jsonable_python(value))


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
