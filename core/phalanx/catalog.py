"""``registry.toml``, the curated index of known plugins, as frozen models.

It is read, never executed: it tells a component that is known but not installed from one that
does not exist, and keeps what each paper claims beside what was reproduced.
"""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from phalanx.specs import AnyThreat, Kind, Paper, Spec, Status, Traits


class Claim(Spec):
    """A number that a paper claims for its method, or that somebody reproduced.

    `value` is in the metric's own unit, accuracies in per cent; `conditional` says that it counts
    only the images which the model classifies correctly when clean.
    """

    source: str = Field(description="Table of the paper, or 'reproduction'.")
    dataset: str
    threat: AnyThreat | None = Field(None, description="Absent for clean accuracy.")
    attack: str = Field("", description="Absent for clean accuracy.")
    metric: str
    value: float
    conditional: bool = False
    setting: str = Field("", description="What the table's row says besides.")
    evidence: str = Field("", description="File with the result, for a reproduction.")
    status: Literal["unverified", "reproduced", "partial", "not-reproduced"] = "unverified"

    @model_validator(mode="after")
    def _has_evidence(self) -> Self:
        if self.source == "reproduction" and not self.evidence:
            raise ValueError("a reproduction needs 'evidence', the file with its result")
        return self


class CatalogComponent(Spec):
    """A component of a known plugin, as its own `ComponentSpec` declares it."""

    kind: Kind
    name: str
    summary: str
    paper: Paper | None = None
    threat_models: tuple[AnyThreat, ...] = ()
    traits: Traits = Traits()
    claims: tuple[Claim, ...] = Field((), alias="claim")


class CatalogPlugin(Spec):
    """A known plugin: its distribution, where its sources lie, and the ranges it is made for."""

    id: str
    package: str
    path: str = Field("", description="Folder in the workspace; absent for third parties.")
    entry_point: str
    api: str = Field(description="Range of phalanx.api.API_VERSION.")
    core: str = Field(description="Range of the core's version.")
    status: Status
    published: bool = Field(default=False, description="Whether the package index has it.")
    maintainers: tuple[str, ...] = ()
    components: tuple[CatalogComponent, ...] = Field((), alias="component")

    @model_validator(mode="after")
    def _can_be_installed(self) -> Self:
        if not (self.path or self.published):
            raise ValueError("a plugin needs 'path', or 'published = true'")
        return self

    @property
    def install(self) -> str:
        """The line that installs it: by name only where the name is known to be its own."""
        return f"pip install {self.package if self.published else './' + self.path}"

    def has(self, kind: Kind, name: str) -> bool:
        """Whether it has that component."""
        return self.component(kind, name) is not None

    def component(self, kind: Kind, name: str) -> CatalogComponent | None:
        """Its component of that kind and name, if it has one."""
        fits = [one for one in self.components if (one.kind, one.name) == (kind, name)]
        return fits[0] if fits else None


class Catalog(Spec):
    """The whole index."""

    version: Literal[1] = Field(1, alias="schema")
    plugins: tuple[CatalogPlugin, ...] = Field((), alias="plugin")

    def find(self, kind: Kind, name: str) -> CatalogPlugin | None:
        """The known plugin that has that component, if one has."""
        return next((plugin for plugin in self.plugins if plugin.has(kind, name)), None)


def path() -> Path | None:
    """Where ``registry.toml`` lies: in the installed package, or at the repository's root."""
    package = Path(str(files("phalanx")))
    places = (package / "registry.toml", package.parents[1] / "registry.toml")
    return next((place for place in places if place.is_file()), None)


def read(text: str) -> Catalog:
    """A catalog from the text of a ``registry.toml``.

    Raises:
        ValueError: if it is not TOML, or not a catalog.
    """
    return Catalog.model_validate(tomllib.loads(text))


@functools.cache
def load() -> Catalog:
    """The catalog that came with this installation; empty where none did."""
    place = path()
    return Catalog() if place is None else read(place.read_text(encoding="utf-8"))
