"""Stage 1 of plugin loading: what is installed, by metadata alone, and what the user left out.

Nothing of a plugin is imported here. The user's choice of plugins lies in one JSON file,
``plugins.json``, which ``phalanx plugin disable`` and ``enable`` write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from phalanx.errors import (
    ConfigError,
    IncompatiblePluginError,
    PluginContractError,
    PluginError,
    PluginLoadError,
)
from phalanx.specs import ComponentSpec
from phalanx.storage import check_output, keeping, reason_of, write_atomically

GROUP = "phalanx.plugins"
CORE = "core"
"""The id under which the core's own components stand; no plugin may claim it."""

Stage = Literal["scan", "check", "import", "register", "components"]
_ID = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """An installed plugin as its distribution's metadata declares it; nothing is imported.

    `requires` holds the distribution's requirements on the core, `location` the folder it lies in.
    """

    id: str
    target: str
    dist: str
    version: str
    requires: tuple[str, ...] = ()
    location: str = ""

    @property
    def label(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.dist} {self.version}".strip() or self.target


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A plugin that did not load: at which stage, and why."""

    found: FoundPlugin
    stage: Stage
    error: BaseException
    components: tuple[ComponentSpec, ...] = ()

    @property
    def id(self) -> str:
        """The plugin's id."""
        return self.found.id

    def __str__(self) -> str:
        reason = describe(self.error).rstrip(".")
        return (
            f"plugin {self.id!r} ({self.found.label}) did not load: {reason}. "
            f"Run 'phalanx doctor {self.id}', or 'phalanx plugin disable {self.id}'."
        )

    def exception(self) -> PluginError:
        """What to raise for it: a `PluginError` whose message is the whole line, cause chained."""
        kind = type(self.error) if isinstance(self.error, PluginError) else PluginLoadError
        raised = kind(str(self), plugin=self.id, dist=self.found.dist, version=self.found.version)
        raised.__cause__ = self.error
        return raised


def describe(error: BaseException) -> str:
    """Type and text of an exception, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ---------------------------------------------------------------- stage 1: scan


def scan(entries: Iterable[EntryPoint] | None = None) -> list[FoundPlugin]:
    """All installed plugins by metadata alone, identical duplicates merged, in order of id."""
    if entries is None:
        entries = entry_points(group=GROUP)
    found: dict[tuple[str, str, str], FoundPlugin] = {}
    for entry in entries:
        dist = entry.dist
        name = "" if dist is None else dist.metadata["Name"] or "unnamed"
        key = (entry.name, entry.value, canonicalize_name(name))
        if key not in found:
            found[key] = FoundPlugin(
                id=entry.name,
                target=entry.value,
                dist=name,
                version="" if dist is None else dist.version or "",
                requires=() if dist is None else _core_requirements(dist.requires or ()),
                location="" if dist is None else str(dist.locate_file("")),
            )
    return sorted(found.values(), key=lambda plugin: (plugin.id, plugin.dist))


def _core_requirements(requires: Sequence[str]) -> tuple[str, ...]:
    named = re.compile(r"phalanx(?![\w.-])", re.IGNORECASE)
    return tuple(text for text in requires if named.match(text))


def check(found: FoundPlugin, core_version: str) -> None:
    """Refuse a plugin whose id is not one or whose distribution wants another core.

    Raises:
        PluginContractError: if the id is reserved or malformed.
        IncompatiblePluginError: if the distribution requires another version of the core.
    """
    about = {"plugin": found.id, "dist": found.dist, "version": found.version}
    if found.id == CORE or not _ID.fullmatch(found.id):
        raise PluginContractError(
            f"{found.id!r} cannot be a plugin's id: an id has lower-case letters, digits and "
            f"hyphens, and {CORE!r} is taken",
            **about,
        )
    for text in found.requires:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if not wanted.specifier.contains(core_version, prereleases=True):
            raise IncompatiblePluginError(
                f"it needs phalanx{wanted.specifier}, and this is phalanx {core_version}", **about
            )


# ---------------------------------------------------------------- the user's choice


@dataclass(frozen=True, slots=True)
class Selection:
    """Which plugins to load: `disabled` maps an id to what would bring it back.

    `allowed` names the only ones to load; None is all. `strict` raises the first failure.
    """

    disabled: Mapping[str, str]
    allowed: frozenset[str] | None = None
    strict: bool = False


def selection(environ: Mapping[str, str]) -> Selection:
    """The user's choice from ``PHALANX_DISABLE``, ``_PLUGINS``, ``_STRICT`` and the config file.

    Args:
        environ: The environment; passed in, so that nothing else depends on it.

    Raises:
        ConfigError: if the config file cannot be read.
    """
    disabled = {
        name: f"run 'phalanx plugin enable {name}'"
        for name in read_disabled(settings_path(environ))
    }
    for name in _ids(environ.get("PHALANX_DISABLE", "")):
        disabled[name] = f"take {name} out of PHALANX_DISABLE"
    allowed = environ.get("PHALANX_PLUGINS")
    return Selection(
        disabled=disabled,
        allowed=None if allowed is None else frozenset(_ids(allowed)),
        strict=environ.get("PHALANX_STRICT", "") not in ("", "0"),
    )


def _ids(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def settings_path(environ: Mapping[str, str]) -> Path:
    """Where the user's choice of plugins lies: under XDG_CONFIG_HOME, else ``~/.config``."""
    home = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home(), ".config")
    return Path(home, "phalanx", "plugins.json")


def read_disabled(path: Path) -> tuple[str, ...]:
    """The ids of the plugins that the user disabled, sorted.

    Raises:
        ConfigError: if the file is there but cannot be read, or is not what `write_disabled`
            writes.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        disabled = stored["disabled"]
        if not all(isinstance(name, str) for name in disabled):
            raise TypeError("an id is not text")
    except (FileNotFoundError, NotADirectoryError):  # a HOME that is /dev/null holds no choice
        return ()
    except OSError as error:
        problem = f"cannot be read: {reason_of(error)}; set XDG_CONFIG_HOME to another folder"
        raise ConfigError([problem], source=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        problem = 'cannot be read; write {"disabled": []} into it, or delete it'
        raise ConfigError([problem], source=str(path)) from error
    return tuple(sorted(disabled))


def write_disabled(path: Path, disabled: Iterable[str]) -> None:
    """Store the ids of the disabled plugins, atomically.

    Raises:
        OutputError: if the file cannot be written.
        StorageError: if the disk is full.
    """
    check_output(
        path.parent, "the settings' folder", way_out="set PHALANX_DISABLE, or XDG_CONFIG_HOME"
    )
    text = json.dumps({"disabled": sorted(set(disabled))})
    with keeping("the choice of before stands"):
        write_atomically(path, f"{text}\n".encode())
