"""The house's directions: who may import whom, read from the sources without running them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "phalanx"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

LAYERS = (
    {"errors"},
    {"specs", "storage", "timelimit"},
    {"hookspecs", "builtin", "discovery", "catalog", "plugins", "missing", "registry"},
    {
        "attack",
        "combine",
        "config",
        "defense",
        "perturbation",
        "phase",
        "pruner",
        "randomness",
        "regularizer",
    },
    {"attacks", "data", "nn", "reproduction", "runfile"},
    {"art", "training"},
    {"evaluation"},
    {"claims", "report"},
    {"cli", "testing", "api"},
)
"""A module imports from its own layer and from those above it in this list."""

LATE = {
    ("defense", "art.estimator"): "as_art() is the one door from a model to ART",
    ("evaluation.evaluate", "report.model"): "evaluate() hands its rows back as a report",
}
"""Imports within a function that go the other way, each with its reason."""

HEAVY = ("torch", "torchvision", "timm", "art", "lightning_fabric", "sklearn")
STDLIB = sys.stdlib_module_names


def layer_of(module):
    part = module.partition(".")[0]
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def module_name(path):
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path, *, package):
    """(imported module or name, whether within a function), TYPE_CHECKING blocks left out."""

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are written in full"
                if child.module == package:
                    yield from ((f"{package}.{alias.name}", late) for alias in child.names)
                else:
                    yield child.module, late
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, late or inner)

    yield from walk(ast.parse(path.read_text()), False)


SOURCES = sorted(path for path in CORE.rglob("*.py") if path.parent != CORE or path.stem != "api")


def ids(path):
    return str(path.relative_to(ROOT))


def test_every_module_has_a_layer():
    names = {module_name(path).partition(".")[0] for path in SOURCES} - {""}
    assert names <= set().union(*LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_run_one_way(path):
    module = module_name(path)
    if module == "":
        return  # the package itself resolves its names lazily
    wrong = []
    for name, late in imports(path, package="phalanx"):
        if not name.startswith("phalanx."):
            continue
        imported = name.removeprefix("phalanx.")
        allowed = late and (module, imported) in LATE
        if layer_of(imported) > layer_of(module) and not allowed:
            wrong.append(imported)
    assert wrong == []


def test_every_exemption_is_used():
    used = {
        (module_name(path), name.removeprefix("phalanx."))
        for path in SOURCES
        for name, late in imports(path, package="phalanx")
        if late
    }
    assert set(LATE) <= used


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=ids)
def test_the_core_never_imports_a_plugin(path):
    assert not [name for name, _ in imports(path, package="phalanx") if name.startswith("phalanx_")]


@pytest.mark.parametrize(
    "path",
    [path for folder in PLUGINS for path in sorted(folder.glob("phalanx_*/**/*.py"))],
    ids=ids,
)
def test_plugins_import_the_api_alone(path):
    own = next(part for part in path.parts if part.startswith("phalanx_"))
    allowed = {own, "torch", "pydantic", *STDLIB}
    if path.name == "plugin.py":
        allowed -= {"torch"}
    wrong = [
        name
        for name, _ in imports(path, package=own)
        if name != "phalanx.api" and name.partition(".")[0] not in allowed
    ]
    assert wrong == []


def loaded_by(code):
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import phalanx",
        "import phalanx.api",
        "from phalanx.api import ComponentSpec, DefenseConfig, hookimpl",
        "import phalanx; phalanx.default_registry().specs()",
        "import phalanx.cli",
        "from phalanx.data import catalog",
        "from phalanx.runfile import read_run; read_run({'defense': 'pgd-at'})",
        *(f"import phalanx_{folder.name}.plugin" for folder in PLUGINS),
        *(f"import phalanx_{folder.name}.config" for folder in PLUGINS),
    ],
)
def test_imports_nothing_heavy(code):
    assert not loaded_by(code) & set(HEAVY)
