"""Protocols: named lists of attacks, each a TOML file.

The core's lie beside this module; a plugin's in the folder ``protocols`` of its package, under the
plugin's id: ``clm/paper``; anybody's own is named by its path, ``mine.toml``. Entries of ``also``
are for some models or views only, and are left out, with a note, where the plugin that has their
attack is not installed.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from phalanx.config import AttackConfig, UseAttack
from phalanx.errors import ConfigError, InputError, UnknownComponentError
from phalanx.evaluation.checks.thresholds import DEFAULTS, Thresholds
from phalanx.evaluation.findings import Tier
from phalanx.registry import Registry, default_registry
from phalanx.runfile import (
    config_error_from_validation,
    protocol_files,
    protocol_names as protocol_names,
)
from phalanx.specs import Spec, Threat

SUFFIX = ".toml"
"""Of a protocol that is named by its file."""


class Extra(Spec):
    """An attack for some models, or on some of their views."""

    attack: dict[str, Any] = Field(description="use and params, as in `attacks`.")
    only: Literal["stochastic", "deterministic", "ensembles", "averages"] | None = Field(
        None,
        description="Models it is for: random ones or not, those with members, those that serve "
        "(or expect) an average of members, of random ones without the view deployed, which is "
        "none; absent: all.",
    )
    views: tuple[str, ...] = Field((), description="Views it runs on; absent: every one.")


class Protocol(Spec):
    """A named list of attacks; each is run on each view of a model."""

    name: str
    checks: Tier = Field(
        "free", description="Validity checks that follow: those that cost nothing, core, or all."
    )
    thresholds: Thresholds = Field(
        DEFAULTS, description="When checks warn and fail, where not as the core says."
    )

    @field_validator("thresholds")
    @classmethod
    def _budget_is_fixed(cls, given: Thresholds) -> Thresholds:
        if given.budget != DEFAULTS.budget:
            raise ValueError(
                "budget cannot be changed: an example outside its ball breaks no image, whatever "
                "the excess"
            )
        return given

    also: tuple[Extra, ...] = Field((), description="Attacks for some models or views.")
    plugins: bool = Field(
        default=False, description="Run the plugin's adaptive attacks and paper's protocol too."
    )
    limit: PositiveInt | None = Field(
        None, description="First N test images, unless a limit is given; absent: all of them."
    )
    attacks: tuple[UseAttack, ...] = Field((), description="In the order in which they are run.")


def load_protocol(
    name: str | Path, *, threat: Threat | None = None, registry: Registry | None = None
) -> Protocol:
    """A protocol by its name, or from a file.

    Args:
        name: one of `protocol_names`, or the path of a file that ends in ``.toml``; a file's name
            and the beginning of its SHA-256 stand behind the protocol's own name.
        threat: of every attack that names none itself.
        registry: where the attacks are looked up; absent is the default registry.

    Raises:
        UnknownComponentError: if there is none of that name; names the nearest one.
        ConfigError: if its file is wrong.
        InputError: if there is no such file.
    """
    name = str(name)
    if name.endswith(SUFFIX):
        text = _text_of(Path(name))
        found = _parsed(text, repr(name), threat, registry)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return found.model_copy(update={"name": f"{found.name} ({Path(name).name}, {digest})"})
    known = protocol_files(registry or default_registry())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownComponentError(f"unknown protocol {name!r}; {hint}known: {', '.join(known)}")
    return _parsed(known[name].read_text(encoding="utf-8"), repr(name), threat, registry)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(f"the protocol {path} cannot be read: {reason}") from error


def _parsed(text: str, shown: str, threat: Threat | None, registry: Registry | None) -> Protocol:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"is not TOML: {error}"], source=f"protocol {shown}") from error
    try:
        return Protocol.model_validate(table, context=_context(threat, registry))
    except ValidationError as error:
        raise config_error_from_validation(error, f"protocol {shown}") from error


def resolve_attack(
    given: UseAttack | Mapping[str, Any],
    *,
    threat: Threat | None = None,
    registry: Registry | None = None,
    source: str = "attack",
) -> UseAttack:
    """An attack with its validated config, at `threat` if it names none itself.

    Args:
        given: a table such as `phalanx.evaluation.labels.parse_attack` makes, or a `UseAttack`.
        threat: the default one.
        registry: where the name is looked up; absent is the default registry.
        source: what the attack came from, for errors.

    Raises:
        UnknownComponentError: if there is no such attack; names the nearest ones.
        ConfigError: with every key that is wrong.
    """
    table = {"use": given.use, "params": given.params} if isinstance(given, UseAttack) else given
    context = _context(threat, registry)
    context["registry"].config_class(UseAttack.kind, table["use"])
    try:
        return UseAttack.model_validate(table, context=context)
    except ValidationError as error:
        raise config_error_from_validation(error, source) from error


def with_threat(use: UseAttack, threat: Threat) -> UseAttack:
    """The same attack at another threat, whatever it named itself; one that can have none stays."""
    params = use.params
    if isinstance(params, AttackConfig):
        return use.model_copy(update={"params": params.at(threat)})
    return use.model_copy(update={"params": params.model_copy(update={"threat": threat})})


def _context(threat: Threat | None, registry: Registry | None) -> dict[str, Any]:
    return {"threat": threat, "registry": registry or default_registry()}
