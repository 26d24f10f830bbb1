"""Tiny distributions on a path of their own, each broken in its own way."""

import os
import subprocess
import sys
import textwrap

import pytest

SPEC = """
from phalanx.api import ComponentSpec, Kind, hookimpl

def spec(name):
    return ComponentSpec(
        kind=Kind.DEFENSE, name=name, factory="{module}.x:X", config="{module}.x:C", summary="One."
    )
"""


class Site:
    """A folder that stands in for site-packages, and the command line run with it on the path."""

    def __init__(self, folder):
        self.folder = folder / "site"
        self.config = folder / "config"
        self.folder.mkdir()

    def add(self, dist, plugin, code, *, requires=(), version="0.2.1", spec=False):
        """Install a distribution with one plugin module."""
        module = dist.replace("-", "_")
        (self.folder / module).mkdir()
        (self.folder / module / "__init__.py").touch()
        head = SPEC.replace("{module}", module) if spec else ""
        text = head + textwrap.dedent(code)
        (self.folder / module / "plugin.py").write_text(text)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {dist}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(f"[phalanx.plugins]\n{plugin} = {module}.plugin\n")

    def run(self, *arguments, **environ):
        """``phalanx ARGUMENTS`` in a subprocess that sees these distributions."""
        full = {k: v for k, v in os.environ.items() if not k.startswith("PHALANX_")}
        full |= {
            "PYTHONPATH": str(self.folder),
            "XDG_CONFIG_HOME": str(self.config),
            "OMP_WAIT_POLICY": "passive",
            **environ,
        }
        return subprocess.run(
            [sys.executable, "-P", "-m", "phalanx.cli", *arguments],
            capture_output=True,
            text=True,
            env=full,
            timeout=120,
            check=False,
        )


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)
