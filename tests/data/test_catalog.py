import subprocess
import sys
from pathlib import Path

import pytest

from phalanx.data import catalog, default_root
from phalanx.errors import DataError
from phalanx.specs import Linf


def test_names():
    assert list(catalog.names()) == [
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "svhn",
    ]


@pytest.mark.parametrize("name", catalog.names())
def test_entries_are_whole(name):
    known = catalog.info(name)
    channels = known.shape[0]
    assert len(known.mean) == len(known.std) == channels
    assert len(known.class_names) == len(set(known.class_names)) == known.classes
    assert not known.md5 or len(known.md5) == len(known.files)


@pytest.mark.parametrize(
    ("name", "threat"),
    [
        ("digits", Linf(0.1)),
        ("mnist", Linf(0.3)),
        ("fashion_mnist", Linf(0.1)),
        ("cifar10", Linf("8/255")),
        ("cifar100", Linf("8/255")),
        ("svhn", Linf("8/255")),
        ("nothing", None),
    ],
)
def test_default_threats(name, threat):
    assert catalog.default_threat(name) == threat


def test_unknown_name():
    with pytest.raises(DataError) as error:
        catalog.info("mnits")
    assert str(error.value) == (
        "no data set is called 'mnits'; did you mean 'mnist'? known: digits, mnist, "
        "fashion_mnist, cifar10, cifar100, svhn"
    )


def test_default_root(monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", "/somewhere")
    assert default_root() == Path("/somewhere")
    monkeypatch.delenv("PHALANX_DATA")
    assert default_root() == Path.home() / ".cache" / "phalanx" / "data"


def test_import_is_torch_free():
    code = (
        "import sys, phalanx.data as d; d.default_threat('mnist'); "
        "sys.exit(bool({'torch', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_attribute():
    import phalanx.data

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = phalanx.data.nothing
