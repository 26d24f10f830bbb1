"""What all tests share: one thread, and a clean environment for plugins."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own list of disabled plugins."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the restored data sets; its tests are skipped only where it is not named."""
    return _named("PHALANX_DATA")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """The folder of the shared trained networks."""
    return _named("PHALANX_WEIGHTS")


def _named(variable: str) -> Path:
    value = os.environ.get(variable)
    if value is None:
        pytest.skip(f"{variable} is not set")
    folder = Path(value)
    assert folder.is_dir(), f"{variable} names {folder}, which is no folder"
    return folder
