"""Looks components up by kind and name. (First version: grows with plugins.py.)"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points
from typing import Any

from phalanx.errors import UnknownComponentError
from phalanx.specs import ComponentSpec, Kind, Spec


class Registry:
    """Components by kind and name."""

    def __init__(self) -> None:
        self._specs: dict[tuple[Kind, str], ComponentSpec] = {}
        from phalanx import builtin

        for spec in builtin.phalanx_components():
            self.register(spec)
        for entry in entry_points(group="phalanx.plugins"):
            for spec in entry.load().phalanx_components():
                self.register(spec)

    def register(self, spec: ComponentSpec) -> None:
        """Add a component."""
        self._specs[spec.kind, spec.name] = spec

    def spec(self, kind: Kind, name: str) -> ComponentSpec:
        """The component's declaration."""
        for key in ((kind, name), (kind, name.partition("/")[0] + "/*")):
            if key in self._specs:
                return self._specs[key]
        raise UnknownComponentError(f"unknown {kind} {name!r}")

    def config_class(self, kind: Kind, name: str) -> type[Spec]:
        """The config class of a component."""
        config: type[Spec] = _resolve(self.spec(kind, name).config)
        return config

    def family_arguments(self, kind: Kind, name: str) -> dict[str, Any]:
        """What a family's config gets from the name that was asked for."""
        family = self.spec(kind, name).family
        return {} if family is None else {"name": name.removeprefix(family)}

    def create(self, kind: Kind, name: str, config: Spec, *args: Any) -> Any:
        """Build a component from its validated config."""
        return _resolve(self.spec(kind, name).factory)(config, *args)


def _resolve(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def default_registry() -> Registry:
    """The registry of what is installed."""
    return Registry()
