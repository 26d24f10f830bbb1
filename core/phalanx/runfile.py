"""Run files (TOML, JSON, Python, ``--set``) into one validated `RunConfig`, and its hash.

All problems of a config are told at once, each with its file, its key path and what is allowed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from phalanx.config import FOLDER, TIMM, EvaluationConfig, InitConfig, RunConfig, Use
from phalanx.errors import ConfigError
from phalanx.specs import AnyThreat, Linf, Spec, Threat

if TYPE_CHECKING:
    from phalanx.registry import Registry

_HASHED = ("seed", "data", "defense", "init", "training")
_NOT_HASHED = {
    "training": {"threads"},
    "data": {"root", "workers", "skip_unreadable"},
}
"""Keys that say how fast or where, not what: threads and a folder's files stand in the record."""


# ---------------------------------------------------------------- reading


def read_run(
    source: str | Path | Mapping[str, Any] | RunConfig,
    *,
    overrides: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> RunConfig:
    """A validated run from a TOML file, a mapping or a config, with `overrides` laid over it.

    An attack's absent threat becomes the data set's default; in ``[evaluation]``, that of
    ``evaluation.threat`` where it is given.

    Args:
        source: Path of a run file (TOML, or JSON by its suffix), or its content as a mapping or
            a `RunConfig`.
        overrides: Nested mapping, as `phalanx.cli.common.parse_set` makes it.
        registry: Where names of components are looked up; absent is the default registry.

    Raises:
        ConfigError: with every problem, if the file cannot be read or the config is wrong.
    """
    if isinstance(source, str | Path):
        name, given = str(source), _from_its_folder(_load(Path(source)), Path(source).parent)
    else:
        name, given = "config", _plain(source)
    data = merge(given, _plain(overrides or {}))
    if registry is None:
        from phalanx.registry import default_registry

        registry = default_registry()
    threat, problems = _default_threat(data)
    context = {"registry": registry, "threat": threat}
    run: RunConfig | None = None
    evaluation: EvaluationConfig | None = None
    try:
        trained = {key: value for key, value in data.items() if key != "evaluation"}
        run = RunConfig.model_validate(trained, context=context)
    except ValidationError as error:
        problems += problems_of(error)
    try:
        evaluated = data.get("evaluation", {})
        judged = {"registry": registry, "threat": _evaluation_threat(evaluated) or threat}
        evaluation = EvaluationConfig.model_validate(evaluated, context=judged)
    except ValidationError as error:
        problems += problems_of(error, prefix="evaluation")
    if evaluation is not None:
        problems += _protocol_problems(evaluation.protocol, registry)
    if problems or run is None or evaluation is None:
        raise ConfigError(problems, source=name)
    return run.model_copy(update={"evaluation": evaluation})


def _load(path: Path) -> dict[str, Any]:
    """The content of a run file: TOML, or the JSON that a run folder keeps."""
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        loaded = json.loads(text) if is_json else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(["there is no such file"], source=str(path)) from None
    except IsADirectoryError:
        raise ConfigError(["is a folder, not a run file"], source=str(path)) from None
    except ValueError as error:  # of TOML, JSON or UTF-8
        kind = "JSON" if is_json else "TOML"
        raise ConfigError([f"is not {kind}: {error}"], source=str(path)) from error
    if not isinstance(loaded, dict):
        raise ConfigError(["is not a table of keys"], source=str(path))
    return loaded


def _from_its_folder(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run file's content, the files of ``[init]`` looked for from the run file's folder."""
    table = data.get("init")
    given = table.get("from") if isinstance(table, Mapping) else None
    found: Any
    if isinstance(given, str):
        found = _placed(given, folder)
    elif isinstance(given, list):
        found = [_placed(one, folder) if isinstance(one, str) else one for one in given]
    else:
        return data  # absent, or the config's own validation tells it
    return merge(data, {"init": {"from": found}})


def _placed(source: str, folder: Path) -> str:
    return source if source in ("", TIMM) or source.startswith("~") else str(folder / source)


def protocol_files(registry: Registry) -> dict[str, Traversable]:
    """Name -> file of the protocols that are there, the core's first."""
    found = _tomls(files("phalanx").joinpath("evaluation", "protocols"), "")
    for plugin in registry.plugins:
        package = str(getattr(plugin.plugin, "__name__", "")).partition(".")[0]
        if package:
            with contextlib.suppress(ModuleNotFoundError, TypeError):  # a plugin of one module
                found |= _tomls(files(package).joinpath("protocols"), f"{plugin.id}/")
    return found


def protocol_names(registry: Registry | None = None) -> tuple[str, ...]:
    """The protocols that are there: the core's, then plugins' as ``clm/paper``."""
    if registry is None:
        from phalanx.registry import default_registry

        registry = default_registry()
    return tuple(protocol_files(registry))


def _tomls(folder: Traversable, prefix: str) -> dict[str, Traversable]:
    if not folder.is_dir():
        return {}
    there = sorted((one for one in folder.iterdir()), key=lambda one: one.name)
    return {
        prefix + one.name.removesuffix(".toml"): one for one in there if one.name.endswith(".toml")
    }


def _protocol_problems(name: str, registry: Registry) -> list[str]:
    """What is wrong with a protocol's name."""
    known = protocol_names(registry)
    if name in known:
        return []
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return [f"evaluation.protocol: unknown protocol {name!r}; {hint}known: {', '.join(known)}"]


def _plain(value: Any) -> Any:
    """Mappings and specs as fresh dictionaries with what was set; anything else unchanged."""
    if isinstance(value, Threat):
        return value
    if isinstance(value, Spec):
        return {key: _plain(getattr(value, key)) for key in sorted(value.model_fields_set)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, table by table; ``"pgd"`` counts as ``{use = "pgd"}`` in between."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, str):
            below = {"use": below}
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _default_threat(data: Mapping[str, Any]) -> tuple[Threat | None, list[str]]:
    """The data set's default threat, and what is wrong with the data set's name."""
    from phalanx.data import catalog

    table = data.get("data", {})
    name = table.get("use", "digits") if isinstance(table, Mapping) else None
    if not isinstance(name, str):
        return None, []  # the config's own validation tells it
    known = list(catalog.names())
    if name == FOLDER:
        return None, []
    if name not in known:
        known = [*known, FOLDER]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        problem = f"data.use: unknown data set {name!r}; {hint}known: {', '.join(known)}"
        return Linf("8/255"), [problem]  # a threat, so that nothing else complains of its absence
    return catalog.default_threat(name), []


def _evaluation_threat(table: Any) -> Threat | None:
    if not isinstance(table, Mapping) or table.get("threat") is None:
        return None
    try:
        threat: Threat = TypeAdapter(AnyThreat).validate_python(table["threat"])
    except ValidationError:
        return None  # the config's own validation tells it
    return threat


# ---------------------------------------------------------------- problems


def problems_of(error: ValidationError, *, prefix: str = "") -> list[str]:
    """Every problem of a failed validation, as ``key.path: what is wrong``, each told once."""
    problems: dict[str, None] = {}
    for line in error.errors(include_url=False):
        keys = [*([prefix] if prefix else []), *(str(key) for key in line["loc"])]
        where = ".".join(keys)
        message = line["msg"].removeprefix("Value error, ")
        problems[f"{where}: {message}" if where else message] = None
    return list(problems)


def config_error_from_validation(
    error: ValidationError, source: str, prefix: str = ""
) -> ConfigError:
    """A failed validation as one `ConfigError`.

    Args:
        error: What pydantic raised.
        source: The file, or what else the config came from.
        prefix: Key path of the validated part within its source.
    """
    return ConfigError(problems_of(error, prefix=prefix), source=source)


# ---------------------------------------------------------------- the hash


def config_hash(config: RunConfig, *, registry: Registry | None = None) -> str:
    """The 16 hex digits that name what is trained: seed, data, defense, warm start and training.

    A key at its default does not enter, so that a key added later leaves old runs valid;
    ``[evaluation]``, ``training.threads``, and where and how a folder is read do not enter either.

    Args:
        config: A validated run.
        registry: Where the names in defaults are looked up; absent is the default registry.
    """
    context: dict[str, Any] = {"threat": _default_threat({"data": {"use": config.data.use}})[0]}
    if registry is not None:
        context["registry"] = registry
    canonical = _canonical(config, context)
    hashed = {key: canonical[key] for key in _HASHED if key in canonical}
    if config.init is not None:
        hashed["init"] = _origin(config.init)
    for part, left_out in _NOT_HASHED.items():
        kept = {key: value for key, value in hashed.pop(part, {}).items() if key not in left_out}
        if kept:
            hashed[part] = kept
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _origin(init: InitConfig) -> str | list[str]:
    """What a warm start begins with: the files' hashes where they are known, never their places."""
    digests = init.sha256 or ("",) * len(init.sources)
    told = [
        digest or (source if source == TIMM else Path(source).name)
        for source, digest in zip(init.sources, digests, strict=True)
    ]
    return told[0] if isinstance(init.from_, str) else told


def _canonical(value: Any, context: Mapping[str, Any]) -> Any:
    """`value` as JSON data without keys at their defaults."""
    if isinstance(value, Threat):
        return str(value)
    if isinstance(value, Use):
        params = _canonical(value.params, context)
        return {"use": value.use, **({"params": params} if params else {})}
    if isinstance(value, Spec):
        fields = type(value).model_fields
        pairs = {name: (field, getattr(value, name)) for name, field in fields.items()}
        return {
            name: _canonical(inner, context)
            for name, (field, inner) in pairs.items()
            if not _at_default(field, inner, context)
        }
    if isinstance(value, Mapping):
        holds_specs = any(isinstance(inner, Spec) for inner in value.values())
        table = {str(key): _canonical(inner, context) for key, inner in value.items()}
        return list(table.items()) if holds_specs else table  # the order of phases' patterns counts
    if isinstance(value, list | tuple):
        return [_canonical(inner, context) for inner in value]
    return value


def _at_default(field: FieldInfo, value: Any, context: Mapping[str, Any]) -> bool:
    if field.is_required():
        return False
    default = field.get_default(call_default_factory=True)
    if value == default:
        return True
    if isinstance(default, Spec) or default is None:
        return bool(_canonical(value, context) == _canonical(default, context))
    # a default written as text or a table ("8/255", {"use": "pgd"}) counts as it validates
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[kind, *field.metadata]
    validated = TypeAdapter(kind).validate_python(default, context=dict(context))
    return bool(_canonical(value, context) == _canonical(validated, context))
