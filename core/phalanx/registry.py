"""Looks components up by kind and name, and says what to do when one is not there.

A `Registry` holds the core's components, those of the plugins it loaded and those registered in
process. There is no registry at module level: `default_registry` makes and caches the one of what
is installed; a test makes its own.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import phalanx
from phalanx import builtin, catalog, discovery, plugins as loading
from phalanx.errors import (
    DuplicatePluginError,
    PhalanxError,
    PluginContractError,
    PluginHookWarning,
    PluginLoadError,
)
from phalanx.missing import explain
from phalanx.specs import ComponentSpec, Kind, Paper, Spec, Traits

SESSION = "session"
"""The plugin id under which components registered in process stand."""

_Component = TypeVar("_Component", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Registered:
    """A component with the plugin and the distribution that it comes from."""

    spec: ComponentSpec
    plugin: str
    dist: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class _InProcess:
    """The objects behind a component that was registered as a class, not by dotted strings."""

    factory: Callable[..., Any]
    config: type[Spec]


class Registry:
    """Components by kind and name.

    Args:
        plugins: Plugin modules (or objects) to load besides, each isolated.
        discover: Whether to load the plugins that are installed.
        selection: Which of the installed ones to load; absent is all of them.
    """

    def __init__(
        self,
        plugins: Sequence[Any] = (),
        *,
        discover: bool = True,
        selection: discovery.Selection | None = None,
    ) -> None:
        chosen = selection or discovery.Selection(disabled={})
        self._loaded = _load(plugins, chosen, discover=discover)
        if chosen.strict and self._loaded.failures:
            raise self._loaded.failures[0].exception()
        self._components: dict[tuple[Kind, str], Registered] = {}
        self._in_process: dict[tuple[Kind, str], _InProcess] = {}
        for spec in builtin.COMPONENTS:
            self._put(Registered(spec, discovery.CORE, "phalanx", phalanx.__version__))
        for one in self._loaded.plugins:
            for spec in one.components:
                self._put(Registered(spec, one.id, one.found.dist, one.found.version))

    @property
    def plugins(self) -> tuple[loading.LoadedPlugin, ...]:
        """The plugins that work."""
        return tuple(self._loaded.plugins)

    @property
    def failures(self) -> tuple[discovery.PluginFailure, ...]:
        """The plugins that did not load, and why."""
        return tuple(self._loaded.failures)

    @property
    def disabled(self) -> dict[str, str]:
        """Ids of installed plugins that were left out, each with what would bring it back."""
        return dict(self._loaded.disabled)

    def specs(self, kind: Kind | None = None) -> list[Registered]:
        """All components, or those of one kind, by kind and name."""
        order = list(Kind)
        found = [one for one in self._components.values() if kind in (None, one.spec.kind)]
        return sorted(found, key=lambda one: (order.index(one.spec.kind), one.spec.name))

    def find(self, kind: Kind, name: str) -> Registered:
        """A component by its name, by its family's (``art/DeepFool``) or as ``plugin/name``.

        Raises:
            UnknownComponentError: if there is none, with the nearest names and how to get it.
            PluginError: if it belongs to a plugin that did not load.
        """
        plugin, slash, rest = name.partition("/")
        for key in (name, f"{plugin}/*" if slash and rest else name):
            if (kind, key) in self._components:
                return self._components[kind, key]
        qualified = self._components.get((kind, rest))
        if qualified is not None and qualified.plugin == plugin:
            return qualified
        raise explain(
            kind,
            name,
            installed=[one.spec for one in self.specs()],
            failures=self.failures,
            disabled=self.disabled,
            known=catalog.load(),
        )

    def spec(self, kind: Kind, name: str) -> ComponentSpec:
        """The component's declaration; errors as `find`."""
        return self.find(kind, name).spec

    def config_class(self, kind: Kind, name: str) -> type[Spec]:
        """The config class of a component; imports only the module it lies in.

        Raises:
            PluginLoadError: if that module cannot be imported.
            PluginContractError: if it holds no such config class.
        """
        found = self.find(kind, name)
        in_process = self._in_process.get((kind, found.spec.name))
        if in_process is not None:
            return in_process.config
        config = _resolve(found, found.spec.config)
        if not (isinstance(config, type) and issubclass(config, Spec)):
            raise _broken(found, f"{found.spec.config!r} is not a config (a phalanx.api.Spec)")
        return config

    def factory(self, kind: Kind, name: str) -> Callable[..., Any]:
        """What builds the component; imports its module. Errors as `config_class`."""
        found = self.find(kind, name)
        in_process = self._in_process.get((kind, found.spec.name))
        if in_process is not None:
            return in_process.factory
        factory: Callable[..., Any] = _resolve(found, found.spec.factory)
        if not callable(factory):
            raise _broken(found, f"{found.spec.factory!r} cannot be called")
        return factory

    def family_arguments(self, kind: Kind, name: str) -> dict[str, Any]:
        """What a family's config gets from the name that was asked for: ``{"name": …}``."""
        family = self.spec(kind, name).family
        return {} if family is None else {"name": name.removeprefix(family)}

    def create(self, kind: Kind, name: str, config: Spec, *args: Any) -> Any:
        """Build a component from its validated config.

        Raises:
            PluginContractError: if the component's own code fails; names its plugin.
        """
        factory = self.factory(kind, name)
        with self.blamed(kind, name, "cannot be built"):
            return factory(config, *args)

    @contextmanager
    def blamed(self, kind: Kind, name: str, what: str) -> Iterator[None]:
        """Lay what the code of a component raises inside at its plugin's door.

        Raises:
            PluginContractError: for any exception that is not one of Phalanx.
        """
        try:
            yield
        except (PhalanxError, KeyboardInterrupt):
            raise
        except BaseException as error:  # isolation: a plugin's code may raise anything
            told = f"{what}: {discovery.describe(error)}; tell its authors, or leave it out"
            raise self.broken(kind, name, told) from error

    def broken(self, kind: Kind, name: str, what: str) -> PluginContractError:
        """The error for a component that does not do what its kind does."""
        return _broken(self.find(kind, name), what)

    def register(self, spec: ComponentSpec) -> None:
        """Add a component in process, by its dotted strings.

        Raises:
            DuplicatePluginError: if the name is taken. The same declaration may come again, as
                when a notebook's cell runs twice.
        """
        taken = self._components.get((spec.kind, spec.name))
        again = taken is not None and taken.plugin == SESSION
        if taken is not None and not (again and taken.spec.factory == spec.factory):
            raise DuplicatePluginError(
                f"the {spec.kind} {spec.name!r} is already registered by "
                f"{taken.plugin!r}: choose another name",
                plugin=SESSION,
            )
        self._in_process.pop((spec.kind, spec.name), None)
        self._put(Registered(spec, SESSION))

    def defense(
        self,
        name: str,
        *,
        config: type[Spec],
        summary: str = "",
        paper: Paper | None = None,
        traits: Traits | None = None,
    ) -> Callable[[_Component], _Component]:
        """Register the decorated class as a defense, in process.

        Args:
            name: The component's name, lower case with hyphens.
            config: Its config class, a subclass of `phalanx.api.DefenseConfig`.
            summary: One line; absent is the first line of the class's docstring.
            paper: Where the method was published.
            traits: What the evaluation needs to know of it.

        Raises:
            DuplicatePluginError: if the name is taken.
            PluginContractError: if `config` is not a config class.
        """

        def decorate(factory: _Component) -> _Component:
            lines = (factory.__doc__ or "").strip().splitlines() or [name]
            spec = ComponentSpec(
                kind=Kind.DEFENSE,
                name=name,
                factory=f"{factory.__module__}:{factory.__name__}",
                config=f"{config.__module__}:{config.__name__}",
                summary=summary or lines[0],
                paper=paper,
                traits=traits or Traits(),
            )
            self.register(spec)
            self._in_process[spec.kind, spec.name] = _InProcess(factory, config)
            return factory

        if not (isinstance(config, type) and issubclass(config, Spec)):
            raise PluginContractError(
                f"defense {name!r}: {config!r} is not a config (a phalanx.api.DefenseConfig)",
                plugin=SESSION,
            )
        return decorate

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an observer hook of every plugin; one that fails becomes a `PluginHookWarning`."""
        self.ask(hook, **arguments)

    def ask(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """What every plugin that implements a hook answers, each under the plugin's id.

        A plugin that fails is left out, with a `PluginHookWarning`.
        """
        manager = self._loaded.manager
        found: list[tuple[str, Any]] = []
        for one in self._loaded.plugins:
            others = [other for other in manager.get_plugins() if other is not one.plugin]
            try:
                answers = manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # isolation: a plugin may raise anything, to exit
                warnings.warn(
                    f"plugin {one.id!r} ({one.found.label}): {hook} failed and was left out: "
                    f"{discovery.describe(error)}",
                    PluginHookWarning,
                    stacklevel=3,
                )
            else:
                found += [(one.id, answer) for answer in answers]
        return found

    def _put(self, registered: Registered) -> None:
        self._components[registered.spec.kind, registered.spec.name] = registered


def _load(modules: Iterable[Any], chosen: discovery.Selection, *, discover: bool) -> loading.Loaded:
    """The installed plugins, then the given modules."""
    loaded = loading.load(
        discovery.scan() if discover else (),
        core_version=phalanx.__version__,
        disabled=chosen.disabled,
        allowed=chosen.allowed,
    )
    for module in modules:
        name = getattr(module, "__name__", type(module).__name__)
        plugin_id = name.partition(".")[0].removeprefix("phalanx_").replace("_", "-").lower()
        loading.add(loaded, discovery.FoundPlugin(plugin_id, name, "", ""), module)
    loading.refuse_clashes(loaded)
    return loaded


def _resolve(found: Registered, dotted: str) -> Any:
    try:
        return loading.resolve(dotted)
    except AttributeError as error:
        raise _broken(found, f"there is no {dotted!r}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # isolation: a plugin's module may raise anything
        text = f"{found.spec.kind} {found.spec.name!r}: {dotted!r} did not import"
        raise PluginLoadError(
            f"{text}: {discovery.describe(error)}",
            plugin=found.plugin,
            dist=found.dist,
            version=found.version,
        ) from error


def _broken(found: Registered, what: str) -> PluginContractError:
    label = f" ({found.dist} {found.version})" if found.dist else ""
    return PluginContractError(
        f"{found.spec.kind} {found.spec.name!r} of plugin {found.plugin!r}{label}: {what}",
        plugin=found.plugin,
        dist=found.dist,
        version=found.version,
    )


@functools.cache
def default_registry() -> Registry:
    """The registry of what is installed, as the user's environment and config file choose."""
    return Registry(selection=discovery.selection(os.environ))


def register(spec: ComponentSpec) -> None:
    """Add a component to the default registry, as `Registry.register`."""
    default_registry().register(spec)


def defense(
    name: str,
    *,
    config: type[Spec],
    summary: str = "",
    paper: Paper | None = None,
    traits: Traits | None = None,
) -> Callable[[_Component], _Component]:
    """Register the decorated class as a defense in the default registry, as `Registry.defense`."""
    return default_registry().defense(
        name, config=config, summary=summary, paper=paper, traits=traits
    )
