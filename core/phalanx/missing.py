"""What to say when a component is not there: the nearest names, and how to get it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from phalanx.catalog import Catalog, CatalogPlugin
from phalanx.discovery import PluginFailure
from phalanx.errors import PhalanxError, UnknownComponentError
from phalanx.specs import ComponentSpec, Kind


def explain(
    kind: Kind,
    name: str,
    *,
    installed: Sequence[ComponentSpec],
    failures: Sequence[PluginFailure],
    disabled: Mapping[str, str],
    known: Catalog,
) -> PhalanxError:
    """The error to raise for a component that the registry does not have.

    Args:
        kind: The kind that was asked for.
        name: The name that was asked for, bare or as ``plugin/name``.
        installed: The components that are there.
        failures: The plugins that did not load.
        disabled: The plugins that were left out, each with what would bring it back.
        known: The catalog.
    """
    owner, _, bare = name.rpartition("/")
    owners = [owner] if owner else [one.id for one in known.plugins if one.has(kind, name)]
    for failure in failures:
        declared = any((spec.kind, spec.name) == (kind, bare) for spec in failure.components)
        if failure.id in [*owners, name] or declared:
            return failure.exception()
    for one in [*owners, name]:
        if one in disabled:
            return UnknownComponentError(
                f"{kind} {name!r} is in the plugin {one!r}, which is disabled: {disabled[one]}"
            )
    home = known.find(kind, bare)
    if home is not None and owner in ("", home.id):
        return UnknownComponentError(f"unknown {kind} {name!r}; {_where(home)}")
    other = [spec.kind for spec in installed if spec.name == name]
    if other:
        return UnknownComponentError(f"unknown {kind} {name!r}; {name!r} is of kind {other[0]}")
    absent = {*disabled, *(failure.id for failure in failures)}
    nearest = _nearest(kind, bare, installed, known, absent)
    return UnknownComponentError(f"unknown {kind} {name!r}; {nearest}")


def _nearest(
    kind: Kind,
    name: str,
    installed: Sequence[ComponentSpec],
    known: Catalog,
    absent: Collection[str],
) -> str:
    """The nearest name, with its install line unless its plugin is `absent` for another reason."""
    here = [spec.name for spec in installed if spec.kind == kind]
    elsewhere = [
        component.name
        for plugin in known.plugins
        for component in plugin.components
        if component.kind == kind
    ]
    near = difflib.get_close_matches(name, dict.fromkeys([*here, *elsewhere]), n=1)
    if not near:
        return f"known: {', '.join(sorted(here)) or 'none'}"
    home = known.find(kind, near[0])
    if near[0] in here or home is None or home.id in absent:
        return f"did you mean {near[0]!r}?"
    return f"did you mean {near[0]!r}? {_where(home)}"


def _where(home: CatalogPlugin) -> str:
    return f"it is in {home.package}: {home.install}"
