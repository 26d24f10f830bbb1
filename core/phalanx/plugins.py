"""Loads plugins one by one, each isolated, so that one bad plugin never takes the host down.

`load` checks the wanted core version, imports the thin module, registers its hooks and asks for
its components. Whatever a plugin does wrong becomes a `PluginFailure` that names it, and every
other plugin goes on. pluggy's own entry-point loader is not used: it stops at the first failure
and silently takes the first of two equal names. Finding plugins is `phalanx.discovery`.
"""

from __future__ import annotations

import difflib
import importlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from phalanx import builtin, hookspecs
from phalanx.discovery import GROUP, FoundPlugin, PluginFailure, Stage, check
from phalanx.errors import DuplicatePluginError, PluginContractError
from phalanx.specs import ComponentSpec
from phalanx.timelimit import TimeLimit, limited

IMPORT_SECONDS = 5.0
"""Limit of a plugin's thin import and of asking for its components."""


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin whose module is imported and registered; `seconds` is what its import took."""

    found: FoundPlugin
    plugin: Any
    components: tuple[ComponentSpec, ...]
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """The plugin's id."""
        return self.found.id


@dataclass(slots=True)
class Loaded:
    """What loading left behind: the plugin manager, the plugins that work and those that do not."""

    manager: pluggy.PluginManager
    plugins: list[LoadedPlugin] = field(default_factory=list)
    failures: list[PluginFailure] = field(default_factory=list)
    disabled: dict[str, str] = field(default_factory=dict)
    """Ids of installed plugins that were left out, with what would bring each back."""


def load(
    found: Iterable[FoundPlugin],
    *,
    core_version: str,
    disabled: Mapping[str, str] | None = None,
    allowed: Collection[str] | None = None,
) -> Loaded:
    """Load plugins one by one, each isolated.

    Args:
        found: What `scan` returned.
        core_version: The running core's version, held against each plugin's requirement.
        disabled: Ids to leave out, each with what would bring it back.
        allowed: Only these ids are loaded; None is all, an empty collection none.

    Returns:
        The plugins that work, sorted by id, and the failures of the others.
    """
    loaded = new()
    claims: defaultdict[str, list[FoundPlugin]] = defaultdict(list)
    for one in found:
        if one.id in (disabled or {}):
            loaded.disabled[one.id] = (disabled or {})[one.id]
        elif allowed is not None and one.id not in allowed:
            loaded.disabled[one.id] = f"add {one.id} to PHALANX_PLUGINS, or unset it"
        else:
            claims[one.id].append(one)
    for claimants in claims.values():
        if len(claimants) > 1:
            _refuse_ids(loaded, claimants)
        else:
            _load_one(loaded, claimants[0], core_version)
    refuse_clashes(loaded)
    return loaded


def new() -> Loaded:
    """A manager that knows the hooks and the core's own components, and nothing else."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return Loaded(manager)


def add(loaded: Loaded, found: FoundPlugin, plugin: Any, seconds: float = 0.0) -> None:
    """Register one plugin object and ask for its components, rolled back if it fails."""
    stage: Stage = "register"
    try:
        _check_hooks(loaded.manager, found, plugin)
        loaded.manager.register(plugin, name=found.id)
        stage = "components"
        components = limited(IMPORT_SECONDS, lambda: _components(loaded.manager, found, plugin))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # isolation: a plugin's code may raise anything
        _fail(loaded, PluginFailure(found, stage, _told(error, "phalanx_components")), plugin)
    else:
        loaded.plugins.append(LoadedPlugin(found, plugin, components, seconds))


def refuse_clashes(loaded: Loaded) -> None:
    """Refuse every plugin that claims a core component's name, or one that another claims."""
    claims: defaultdict[tuple[str, str], list[LoadedPlugin]] = defaultdict(list)
    for one in loaded.plugins:
        for spec in one.components:
            claims[spec.kind, spec.name].append(one)
    core = {(spec.kind, spec.name) for spec in builtin.COMPONENTS}
    refused: dict[str, str] = {}
    for (kind, name), claimants in claims.items():
        labels = [f"plugin {one.id!r} ({one.found.label})" for one in claimants]
        if (kind, name) in core:
            labels.insert(0, "the core")
        if len(labels) > 1:
            text = f"{' and '.join(labels)} both register the {kind} {name!r}"
            refused.update({one.id: text for one in claimants if one.id not in refused})
    for one in [one for one in loaded.plugins if one.id in refused]:
        loaded.plugins.remove(one)
        error = DuplicatePluginError(
            refused[one.id], plugin=one.id, dist=one.found.dist, version=one.found.version
        )
        failure = PluginFailure(one.found, "components", error, one.components)
        _fail(loaded, failure, one.plugin)


def _load_one(loaded: Loaded, found: FoundPlugin, core_version: str) -> None:
    stage: Stage = "check"
    start = time.perf_counter()
    try:
        check(found, core_version)
        stage = "import"
        plugin = limited(IMPORT_SECONDS, EntryPoint(found.id, found.target, GROUP).load)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # isolation: a plugin's code may raise anything
        _fail(loaded, PluginFailure(found, stage, _told(error, "its import")), None)
    else:
        add(loaded, found, plugin, time.perf_counter() - start)


def _told(error: BaseException, what: str) -> BaseException:
    """The error as a user should read it: running out of time in words."""
    if isinstance(error, TimeLimit):
        return TimeoutError(f"timed out: {what} did not end within {IMPORT_SECONDS:g} s")
    return error


def _refuse_ids(loaded: Loaded, claimants: Sequence[FoundPlugin]) -> None:
    labels = " and ".join(one.label for one in claimants)
    for one in claimants:
        error = DuplicatePluginError(
            f"{labels} both claim the id {one.id!r}: uninstall one of them",
            plugin=one.id,
            dist=one.dist,
            version=one.version,
        )
        _fail(loaded, PluginFailure(one, "scan", error), None)


def _fail(loaded: Loaded, failure: PluginFailure, plugin: Any) -> None:
    if plugin is not None and loaded.manager.is_registered(plugin):
        loaded.manager.unregister(plugin)
    loaded.failures.append(failure)


def _check_hooks(manager: pluggy.PluginManager, found: FoundPlugin, plugin: Any) -> None:
    """Refuse a misspelt hook, which pluggy would accept silently."""
    known = [name for name in vars(hookspecs) if name.startswith("phalanx_")]
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; hooks: {', '.join(known)}"
            raise PluginContractError(f"there is no hook {name!r}{hint}", plugin=found.id)


def _components(
    manager: pluggy.PluginManager, found: FoundPlugin, plugin: Any
) -> tuple[ComponentSpec, ...]:
    others = [other for other in manager.get_plugins() if other is not plugin]
    answers = manager.subset_hook_caller("phalanx_components", remove_plugins=others)()
    about = {"plugin": found.id, "dist": found.dist, "version": found.version}
    components: list[ComponentSpec] = []
    for answer in answers:
        if not isinstance(answer, Iterable) or isinstance(answer, str | bytes | Mapping):
            raise PluginContractError(
                f"phalanx_components returned {type(answer).__name__}, "
                f"not an iterable of ComponentSpec",
                **about,
            )
        for spec in answer:
            if not isinstance(spec, ComponentSpec):
                raise PluginContractError(
                    f"phalanx_components gave {type(spec).__name__} where a ComponentSpec belongs",
                    **about,
                )
            components.append(spec)
    keys = [(spec.kind, spec.name) for spec in components]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise PluginContractError(f"it registers the {twice[0]} {twice[1]!r} twice", **about)
    return tuple(components)


def resolve(dotted: str) -> Any:
    """The object that ``module:Name`` names.

    Raises:
        ImportError: if the module cannot be imported.
        AttributeError: if the module has no such name.
    """
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
