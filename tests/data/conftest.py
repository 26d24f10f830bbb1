"""Folders of photos, as a fixture, since test modules are imported without their folder."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def photos():
    """The module photos.py beside this file."""
    spec = importlib.util.spec_from_file_location("photos", Path(__file__).with_name("photos.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
