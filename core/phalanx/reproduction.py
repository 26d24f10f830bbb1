"""What of a paper can be trained again, as data: a plugin's ``reproductions.toml``.

It maps a name (``table2``) to runs of recipes, at the paper's setting (scale ``paper``) and at one
that a CPU manages (``cpu``), and says which claim of the ledger (`phalanx.catalog`) is answered by
which row of which run. No result stands in it. The file and the recipes lie in the plugin's
package where it was installed from a wheel, and beside it in an editable install.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from phalanx.catalog import Catalog
from phalanx.config import RunConfig
from phalanx.errors import ConfigError, UnknownComponentError
from phalanx.registry import Registry
from phalanx.runfile import config_error_from_validation, merge, read_run
from phalanx.specs import AnyThreat, Spec

FILE, RECIPES = "reproductions.toml", "recipes"


class ScaleName(StrEnum):
    """The scales a reproduction may have."""

    PAPER = "paper"
    CPU = "cpu"


# ---------------------------------------------------------------- the declaration


class ClaimFields(Spec):
    """Fields that pick claims of a component; those that are given must fit, `setting` in part."""

    component: str | None = Field(None, description="Absent: the reproduction's own.")
    source: str | None = None
    dataset: str | None = None
    threat: AnyThreat | None = None
    attack: str | None = None
    metric: str | None = None
    value: float | None = None
    setting: str | None = Field(None, description="A part of the claim's setting.")

    def given(self) -> dict[str, Any]:
        """The fields of a claim that were given."""
        names = ClaimFields.model_fields.keys() & self.model_fields_set
        return {name: getattr(self, name) for name in names}


class Answer(ClaimFields):
    """One claim, and the row of a report that answers it."""

    by: str | None = Field(None, description="Row's attack as a report has it; absent: claim's.")
    under: AnyThreat | None = Field(None, description="Row's threat; absent: the claim's.")
    view: str | None = Field(None, description="Row's view; absent: the group's.")
    note: str = Field("", description="What a reader has to know of this number, in one sentence.")
    incomparable: str = Field("", description="Why number and claim are not of the same thing.")


class Answers(Spec):
    """The claims that one run answers."""

    run: str
    claim: ClaimFields = Field(ClaimFields(), description="Fields that all rows below share.")
    view: str = "deployed"
    scales: tuple[ScaleName, ...] = Field((), description="Absent: all that have the run.")
    over: tuple[str, ...] = Field((), description="Runs that a gain is measured against.")
    rows: tuple[Answer, ...]


class Run(Spec):
    """A recipe to be trained."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Its folder within DIR.")
    recipe: str = Field(
        pattern=r"^([a-z0-9][a-z0-9-]*/)?[\w.-]+\.toml$",
        description="File among the plugin's recipes, or plugin/file of another one.",
    )
    init: str = Field("", description="Id of the earlier run whose weights it begins with.")
    set_: dict[str, Any] = Field(
        {},
        alias="set",
        description="Laid over the recipe; a table with another 'use' replaces the recipe's.",
    )


class Scale(Spec):
    """Runs in the order in which they are trained."""

    differs: str = Field("", description="From the paper's setting, in words.")
    takes: str = Field("", description="How long it took, and where that was measured.")
    runs: tuple[Run, ...] = Field(alias="run")

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if not self.runs:
            raise ValueError("a scale needs 'run', what is trained")
        before: list[str] = []
        for run in self.runs:
            if run.id in before:
                raise ValueError(f"two runs are called {run.id!r}")
            if run.init and run.init not in before:
                raise ValueError(
                    f"run {run.id!r} begins with {run.init!r}, which is no run before it"
                )
            before.append(run.id)
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the runs."""
        return tuple(run.id for run in self.runs)


class Reproduction(Spec):
    """A table of a paper, or a part of one, to be trained again."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    component: str = Field(description="The defense whose claims are answered.")
    title: str = Field(description="What it reproduces, in one line.")
    paper: Scale | None = None
    cpu: Scale | None = None
    answers: tuple[Answers, ...]

    @property
    def scales(self) -> dict[ScaleName, Scale]:
        """The scales that there are."""
        both = {ScaleName.PAPER: self.paper, ScaleName.CPU: self.cpu}
        return {name: scale for name, scale in both.items() if scale is not None}

    def scales_of(self, answers: Answers) -> tuple[ScaleName, ...]:
        """Where these claims are answered."""
        have = [name for name, scale in self.scales.items() if answers.run in scale.ids]
        return tuple(name for name in have if not answers.scales or name in answers.scales)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.scales:
            raise ValueError("a reproduction needs 'paper' or 'cpu', its runs")
        if self.cpu is not None and not self.cpu.differs:
            raise ValueError("cpu needs 'differs': what is not as in the paper")
        if not any(group.rows for group in self.answers):
            raise ValueError("a reproduction needs 'answers' with 'rows', the claims it is held to")
        for group in self.answers:
            found = self.scales_of(group)
            if not found or set(group.scales) - set(found):
                asked = ", ".join(group.scales) or "any scale"
                raise ValueError(f"no run is called {group.run!r} at {asked}")
            for scale in found:
                if absent := set(group.over) - set(self.scales[scale].ids):
                    raise ValueError(f"no run is called {min(absent)!r} at {scale}")
        return self


class Reproductions(Spec):
    """A plugin's whole file."""

    version: Literal[1] = Field(1, alias="schema")
    all: tuple[Reproduction, ...] = Field((), alias="reproduction")

    @model_validator(mode="after")
    def _have_names(self) -> Self:
        names = [one.name for one in self.all]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two reproductions are called {twice[0]!r}")
        return self


# ---------------------------------------------------------------- finding it


@dataclass(frozen=True)
class Declared:
    """A reproduction and the plugin it belongs to."""

    plugin: str
    reproduction: Reproduction

    @property
    def name(self) -> str:
        """As it is asked for: ``pdd/table2``."""
        return f"{self.plugin}/{self.reproduction.name}"


@dataclass(frozen=True)
class Found:
    """What the loaded plugins offer.

    Attributes:
        reproductions: in the plugins' order, then their files'.
        homes: plugin -> the folder that its recipes lie in a folder of.
        failures: plugin -> what is wrong with its file.
    """

    reproductions: tuple[Declared, ...]
    homes: Mapping[str, Path]
    failures: Mapping[str, ConfigError]


def home_of(module: str) -> Path | None:
    """The folder of a plugin's reproductions and recipes, from the name of its thin module.

    That is its package, or the project around its package in an editable install.
    """
    try:
        package = Path(str(files(module.partition(":")[0].rpartition(".")[0] or module)))
    except (ModuleNotFoundError, TypeError, ValueError):  # a lone module, or an object of a test
        return None
    project = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    places = (
        place
        for place in (package, *project)
        if (place / FILE).is_file() or (place / RECIPES).is_dir()
    )
    return next(places, None)


def read(path: Path) -> Reproductions:
    """A plugin's file.

    Raises:
        ConfigError: with every problem.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return Reproductions.model_validate(table)
    except ValidationError as error:
        raise config_error_from_validation(error, str(path)) from error
    except ValueError as error:  # of TOML or UTF-8
        raise ConfigError([f"is not TOML: {error}"], source=str(path)) from error


def found_in(registry: Registry) -> Found:
    """The reproductions of the plugins that a registry loaded; a broken file hides its own only."""
    homes = {one.id: home_of(one.found.target) for one in registry.plugins}
    known = {plugin: home for plugin, home in homes.items() if home is not None}
    declared: list[Declared] = []
    failures: dict[str, ConfigError] = {}
    for plugin, home in known.items():
        if not (home / FILE).is_file():
            continue
        try:
            declared += [Declared(plugin, one) for one in read(home / FILE).all]
        except ConfigError as error:
            failures[plugin] = error
    return Found(tuple(declared), known, failures)


def choose(name: str, found: Found, catalog: Catalog) -> Declared:
    """The reproduction of that name; a table's name alone will do where one plugin has it.

    Raises:
        UnknownComponentError: if there is none, with the nearest names or how to get its plugin.
        ConfigError: if its plugin's file is wrong.
    """
    whole = [one for one in found.reproductions if one.name == name]
    part = [one for one in found.reproductions if one.reproduction.name == name]
    if len(whole or part) == 1:
        return (whole or part)[0]
    plugin = name.partition("/")[0]
    if plugin in found.failures:
        raise found.failures[plugin]
    names = [one.name for one in part or found.reproductions]
    own = [one for one in names if one.startswith(f"{plugin}/")]
    near = names if part else difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    home = next((one for one in catalog.plugins if one.id == plugin), None)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif own:
        hint = f"{plugin} has {', '.join(map(repr, own))}"
    elif home is not None and plugin not in found.homes:
        hint = f"it would be in {home.package}, which is not there: {home.install}"
    else:
        hint = "`phalanx reproduce` lists what there is"
    raise UnknownComponentError(f"no reproduction is called {name!r}; {hint}")


# ---------------------------------------------------------------- run files


def recipe_of(run: Run, plugin: str, homes: Mapping[str, Path], catalog: Catalog) -> Path:
    """The recipe's file.

    Raises:
        UnknownComponentError: if it is of a plugin that is not there.
        ConfigError: if there is no such file.
    """
    owner, slash, name = run.recipe.rpartition("/")
    owner = owner if slash else plugin
    if owner not in homes:
        known = next((one for one in catalog.plugins if one.id == owner), None)
        hint = f": {known.install}" if known is not None else ""
        raise UnknownComponentError(
            f"run {run.id!r} is trained by recipe {name} of plugin {owner!r}, which is not "
            f"there{hint}"
        )
    path = homes[owner] / RECIPES / name
    if not path.is_file():
        known_names = sorted(one.name for one in path.parent.glob("*.toml"))
        near = difflib.get_close_matches(name, known_names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError([f"run {run.id}: there is no {path}{hint}"], source=FILE)
    return path


def table_of(path: Path) -> dict[str, Any]:
    """A recipe as it is written.

    Raises:
        ConfigError: if it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"is not TOML: {error}"], source=str(path)) from error


def laid_over(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over a recipe as by ``--set``; another component brings its own settings alone.

    So ``defense = { use = "none", … }`` over a recipe of PDD keeps none of PDD's settings.
    """
    kept = dict(table)
    for key, value in over.items():
        below = kept.get(key)
        if not (isinstance(value, Mapping) and isinstance(below, Mapping)):
            continue
        if value.get("use", below.get("use")) != below.get("use"):
            kept.pop(key)
    return merge(kept, over)


def configs_of(
    declared: Declared,
    scale: ScaleName,
    *,
    out: Path,
    homes: Mapping[str, Path],
    catalog: Catalog,
    registry: Registry,
) -> dict[str, RunConfig]:
    """Each run's id and resolved config, in order; a run's folder is `out` / id.

    Raises:
        ConfigError: if a recipe is missing or wrong.
        UnknownComponentError: if a recipe's plugin is not there.
    """
    result = {}
    for run in declared.reproduction.scales[scale].runs:
        path = recipe_of(run, declared.plugin, homes, catalog)
        table = laid_over(table_of(path), run.set_)
        if run.init:
            table["init"] = {"from": str((out / run.init).absolute())}
        elif "init" in table:
            told = f"run {run.id}: {path.name} has [init], so say which run it begins with: init"
            raise ConfigError([told], source=f"reproduction {declared.name}")
        try:
            result[run.id] = read_run(table, registry=registry)
        except ConfigError as error:
            raise ConfigError(error.problems, source=f"{path} as run {run.id}") from error
    return result


def datasets(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """The data sets that the runs are of, each once."""
    return tuple(dict.fromkeys(config.data.use for config in configs))
