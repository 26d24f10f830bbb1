"""``phalanx show``: a component's keys and defaults, its paper, what is claimed for it.

Of a trained run it shows size and latency instead (`phalanx.cli.show_run`).
"""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from phalanx import catalog
from phalanx.cli.common import absence, echo, echo_json, load_registry
from phalanx.errors import PluginError, UnknownComponentError
from phalanx.specs import Kind, Paper, Spec, Threat, Traits

if TYPE_CHECKING:
    from phalanx.catalog import CatalogComponent, CatalogPlugin
    from phalanx.registry import Registered, Registry


def command(
    component: Annotated[
        str,
        typer.Argument(
            metavar="NAME|RUN",
            help="A component's name, plugin/name or art/ClassName; or a run folder or its weights "
            "file. Of a folder that is called like a component, write ./NAME.",
        ),
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="Where two kinds of component share the name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Show a component: its keys with type and default, paper, traits and claims.

    Or a trained run: parameters and those not zero, bytes on disk, and the latency of its model,
    measured now.

    Examples:
        phalanx show pdd
        phalanx show art/DeepFool
        phalanx show clm --json
        phalanx show runs/pdd
    """
    registry, path = load_registry(), Path(component)
    told = _print
    if kind is None and _is_path(component) and not _is_known(registry, component):
        from phalanx.cli import show_run

        shown, told = show_run.describe(path), show_run.show
    else:
        shown = _component(registry, component, kind)
    if as_json:
        echo_json(shown)
    else:
        told(shown)


def _component(registry: Registry, name: str, kind: Kind | None) -> dict[str, Any]:
    """As `describe`; of what may have been meant as a path, the error says that it is none."""
    try:
        return describe(registry, name, kind)
    except UnknownComponentError as error:
        plugins = {plugin.id for plugin in catalog.load().plugins}
        if kind is None and "/" in name and name.partition("/")[0] not in plugins:
            raise UnknownComponentError(f"{error}; and no run lies in {name}") from error
        raise


def _is_path(text: str) -> bool:
    """Whether something lies there, or would if it were not misspelt."""
    return text.startswith((".", "/")) or text.endswith(".safetensors") or Path(text).exists()


def _is_known(registry: Registry, name: str) -> bool:
    """Whether a component is called so, installed or not."""
    for kind in Kind:
        if catalog.load().find(kind, name) is not None:
            return True
        try:
            registry.find(kind, name)
        except UnknownComponentError:
            continue
        except PluginError:  # a broken plugin's
            return True
        return True
    return False


def describe(registry: Registry, name: str, kind: Kind | None = None) -> dict[str, Any]:
    """All that is known of a component, as data.

    Raises:
        UnknownComponentError: if there is none of that name, in the catalog neither.
        PluginError: if it belongs to a plugin that did not load.
    """
    for one in [kind] if kind is not None else list(Kind):
        home = catalog.load().find(one, name)
        try:
            return _installed(registry, registry.find(one, name), name)
        except UnknownComponentError:
            if home is not None:
                return _not_installed(registry, home, one, name)
    likely = kind if kind is not None else _likely_kind(registry, name)
    if likely is None:
        raise UnknownComponentError(f"unknown component {name!r}; 'phalanx list' names them all")
    return _installed(registry, registry.find(likely, name), name)


def _likely_kind(registry: Registry, name: str) -> Kind | None:
    """The kind of the component whose name is nearest."""
    kinds = {one.name: one.kind for plugin in catalog.load().plugins for one in plugin.components}
    kinds |= {one.spec.name: one.spec.kind for one in registry.specs()}
    near = difflib.get_close_matches(name.rpartition("/")[2], kinds, n=1)
    return kinds[near[0]] if near else None


def _installed(registry: Registry, found: Registered, name: str) -> dict[str, Any]:
    spec = found.spec
    home = catalog.load().find(spec.kind, spec.name)
    known = home.component(spec.kind, spec.name) if home is not None else None
    return {
        "kind": spec.kind,
        "name": name if spec.family else spec.name,
        "plugin": found.plugin,
        "package": found.dist,
        "version": found.version,
        "installed": True,
        "summary": spec.summary,
        "factory": spec.factory,
        "fields": fields_of(registry.config_class(spec.kind, name)),
        **_background(spec.paper, spec.traits, known),
    }


def _not_installed(
    registry: Registry, plugin: CatalogPlugin, kind: Kind, name: str
) -> dict[str, Any]:
    known = plugin.component(kind, name)
    assert known is not None  # the catalog found the plugin by it
    state, remedy = absence(registry, plugin)
    return {
        "kind": kind,
        "name": name,
        "plugin": plugin.id,
        "package": plugin.package,
        "installed": False,
        "state": state,
        "install": remedy,
        "summary": known.summary,
        **_background(known.paper, known.traits, known),
    }


def _background(
    paper: Paper | None, traits: Traits, known: CatalogComponent | None
) -> dict[str, Any]:
    return {
        "paper": paper.model_dump(mode="json") if paper is not None else None,
        "traits": traits.model_dump(mode="json"),
        "threat_models": [str(threat) for threat in known.threat_models] if known else [],
        "claims": [one.model_dump(mode="json") for one in known.claims] if known else [],
    }


# ---------------------------------------------------------------- fields


def fields_of(config: type[BaseModel]) -> list[dict[str, Any]]:
    """Name, type, default and description of each key of a config; `required` ones first."""
    rows = [
        {
            "name": field.alias or name,
            "type": type_name(field.annotation),
            "required": field.is_required(),
            "default": None if field.is_required() else _plain(field),
            "description": field.description or "",
        }
        for name, field in config.model_fields.items()
    ]
    return sorted(rows, key=lambda row: not row["required"])


def _plain(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Threat):
        return str(default)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json", exclude_defaults=True)
    return list(default) if isinstance(default, tuple) else default


def type_name(annotation: Any) -> str:
    """A type as a user writes its values: ``int``, ``'a' or 'b'``, ``attack``, ``threat``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        names = [type_name(one) for one in arguments if one is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if origin in (tuple, list):
        inner = dict.fromkeys(type_name(one) for one in arguments if one is not Ellipsis)
        return f"list of {', '.join(inner)}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, Threat):
        return "threat"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        kind = getattr(annotation, "kind", None)
        return str(kind) if kind is not None else "table"
    return str(getattr(annotation, "__name__", annotation))


# ---------------------------------------------------------------- text


def _print(shown: dict[str, Any]) -> None:
    package = " ".join(part for part in (shown["package"], shown.get("version")) if part)
    echo(f"{shown['name']}  ({shown['kind']}, plugin {shown['plugin']}, {package})")
    echo(f"  {shown['summary']}")
    if not shown["installed"]:
        echo(f"\n{shown['state'].capitalize()}: {shown['install']}")
    if shown["paper"]:
        paper = shown["paper"]
        rest = [paper["venue"], f"arXiv:{paper['arxiv']}" if paper["arxiv"] else "", paper["code"]]
        echo(f"\nPaper: {paper['title']}. {', '.join(part for part in rest if part)}".rstrip(". "))
    traits = [name.replace("_", " ") for name, value in shown["traits"].items() if value]
    echo(f"Traits: {', '.join(traits) or 'none'}")
    if shown.get("fields"):
        echo("\nKeys:")
        for row in shown["fields"]:
            default = "required" if row["required"] else f"default {_text(row['default'])}"
            echo(f"  {row['name']}: {row['type']}, {default}")
            if row["description"]:
                echo(f"      {row['description']}")
    if shown["claims"]:
        echo("\nClaims (not our measurements unless the status says so):")
        for claim in shown["claims"]:
            echo(f"  {_claim(claim)}")


def _text(default: Any) -> str:
    return "absent" if default is None else repr(default)


def _claim(claim: dict[str, Any]) -> str:
    against = " ".join(part for part in (claim["attack"], claim["threat"] or "") if part)
    setting = f" [{claim['setting']}]" if claim["setting"] else ""
    conditional = ", of clean-correct images" if claim["conditional"] else ""
    under = f" under {against}" if against else ""
    return (
        f"{claim['dataset']}: {claim['metric']} {claim['value']:g}{under}{setting}{conditional} "
        f"({claim['source']}; {claim['status']})"
    )
