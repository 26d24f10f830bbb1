"""``registry.toml``: valid, found in every kind of installation, and true to every plugin."""

import importlib
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import phalanx
from phalanx import api, catalog, discovery
from phalanx.runfile import problems_of

ROOT = Path(__file__).parents[1]
PROJECTS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
IDS = [path.name.replace("_", "-") for path in PROJECTS]

MINIMAL = """
schema = 1
[[plugin]]
id = "trs"
package = "phalanx-trs"
entry_point = "phalanx_trs.plugin"
api = ">=1.0,<2"
core = ">=0.1,<0.2"
status = "experimental"
"""


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def test_every_plugin_stands_in_it_once():
    known = catalog.load()
    assert [plugin.id for plugin in known.plugins] == IDS
    assert {plugin.path for plugin in known.plugins} == {f"plugins/{one.name}" for one in PROJECTS}


@pytest.mark.parametrize("folder", PROJECTS, ids=IDS)
def test_agrees_with_pyproject(folder):
    metadata = project(folder)
    [known] = [
        plugin for plugin in catalog.load().plugins if plugin.path == f"plugins/{folder.name}"
    ]
    assert metadata["name"] == known.package
    assert metadata["entry-points"]["phalanx.plugins"] == {known.id: known.entry_point}
    assert metadata["license"] == "MIT"
    [core] = [text for text in metadata["dependencies"] if re.match(r"phalanx\W", text)]
    assert SpecifierSet(core.removeprefix("phalanx")) == SpecifierSet(known.core)


@pytest.mark.parametrize("folder", PROJECTS, ids=IDS)
def test_no_plugin_requires_another(folder):
    others = {f"phalanx-{name}" for name in IDS}
    named = {re.split(r"[^\w-]", text)[0] for text in project(folder)["dependencies"]}
    assert not named & others


@pytest.mark.parametrize("folder", PROJECTS, ids=IDS)
def test_agrees_with_the_running_core(folder):
    [known] = [
        plugin for plugin in catalog.load().plugins if plugin.path == f"plugins/{folder.name}"
    ]
    assert phalanx.__version__ in SpecifierSet(known.core)
    assert ".".join(map(str, api.API_VERSION)) in SpecifierSet(known.api)


@pytest.mark.parametrize("folder", PROJECTS, ids=IDS)
def test_agrees_with_declared_components(folder):
    [known] = [
        plugin for plugin in catalog.load().plugins if plugin.path == f"plugins/{folder.name}"
    ]
    declared = importlib.import_module(known.entry_point).phalanx_components()
    assert [
        (one.kind, one.name, one.summary, one.paper, one.traits) for one in known.components
    ] == [(one.kind, one.name, one.summary, one.paper, one.traits) for one in declared]


def test_requirements_dev_installs_every_plugin():
    lines = (ROOT / "requirements-dev.txt").read_text().split("\n")
    assert {f"-e ./plugins/{one.name}" for one in PROJECTS} <= set(lines)


def test_claims_of_our_own_have_evidence():
    for plugin in catalog.load().plugins:
        for component in plugin.components:
            assert component.claims, f"{plugin.id}: what does its paper claim?"
            for claim in component.claims:
                assert claim.evidence == "" or (ROOT / claim.evidence).is_file()
                assert claim.status == "unverified" or claim.evidence


def test_found_in_an_editable_install():
    assert catalog.path() == ROOT / "registry.toml"


def test_found_in_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "phalanx"
    package.mkdir(parents=True)
    monkeypatch.setattr(catalog, "files", lambda name: tmp_path / "site-packages" / name)
    assert catalog.path() is None
    shutil.copy(ROOT / "registry.toml", package)
    assert catalog.path() == package / "registry.toml"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    assert wheel["force-include"] == {"registry.toml": "phalanx/registry.toml"}


def test_absent_catalog_is_empty(monkeypatch):
    monkeypatch.setattr(catalog, "path", lambda: None)
    assert catalog.load.__wrapped__() == catalog.Catalog()


def problems(text):
    with pytest.raises(ValueError, match="Catalog") as caught:
        catalog.read(text)
    return problems_of(caught.value)


def test_a_plugin_must_be_installable():
    assert problems(MINIMAL) == ["plugin.0: a plugin needs 'path', or 'published = true'"]


def test_unknown_keys_are_refused():
    assert problems(MINIMAL + 'path = "x"\nstate = "new"\n') == [
        "plugin.0.state: unknown key; did you mean 'status'? allowed: id, package, path, "
        "entry_point, api, core, status, published, maintainers, component"
    ]


def test_a_reproduction_needs_evidence():
    text = MINIMAL + (
        'path = "x"\n[[plugin.component]]\nkind = "defense"\nname = "trs"\nsummary = "One."\n'
        '[[plugin.component.claim]]\nsource = "reproduction"\ndataset = "mnist"\n'
        'metric = "clean_accuracy"\nvalue = 1.0\n'
    )
    assert problems(text) == [
        "plugin.0.component.0.claim.0: a reproduction needs 'evidence', the file with its result"
    ]


def test_installed_plugins_are_those_of_the_workspace():
    assert set(IDS) <= {one.id for one in discovery.scan()}
