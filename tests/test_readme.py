"""The README's table of defenses is what registry.toml says; its code runs.

After a change of registry.toml: ``python tests/test_readme.py`` writes the table anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phalanx import catalog

README = Path(__file__).parents[1] / "README.md"
MARKS = re.compile(r"(<!-- defenses: [^\n]*-->\n)(.*?)(<!-- end of defenses -->)", re.DOTALL)


def table() -> str:
    """The defenses of the catalog as a Markdown table."""
    lines = ["| defense | what it is | paper | install |", "|---|---|---|---|"]
    for plugin in catalog.load().plugins:
        for component in plugin.components:
            paper = component.paper
            source = ""
            if paper is not None:
                link = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else paper.code
                where = f"{paper.venue or 'arXiv ' + paper.arxiv}"
                source = f"[{where}]({link})"
            lines.append(
                f"| `{component.name}` | {component.summary} | {source} | `{plugin.install}` |"
            )
    return "\n".join(lines) + "\n"


def test_the_table_of_defenses_is_the_catalogs():
    found = MARKS.search(README.read_text())
    assert found is not None
    assert found[2] == table(), "run `python tests/test_readme.py`"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    views = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert views == ["deployed", "one-draw", "expected", "worst"]
    assert type(names["estimator"]).__mro__[1].__name__ == "PyTorchClassifier"


@pytest.mark.parametrize("page", sorted(README.parent.glob("docs/*.md")))
def test_paths_that_the_pages_name_exist(page):
    named = re.findall(r"`((?:tests|core|plugins|docs)/[\w./-]+)`", page.read_text())
    missing = [path for path in named if not (README.parent / path).exists()]
    assert not missing


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(MARKS.sub(lambda m: m[1] + table() + m[3], text))
