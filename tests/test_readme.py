"""The README's table of defenses is what registry.toml says; its code runs.

After a change of registry.toml: ``python tests/test_readme.py`` writes the table anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import phalanx
from phalanx import catalog
from phalanx.specs import Kind

README = Path(__file__).parents[1] / "README.md"
MARKS = re.compile(r"(<!-- defenses: [^\n]*-->\n)(.*?)(<!-- end of defenses -->)", re.DOTALL)


def table() -> str:
    """The defenses of the catalog as a Markdown table, and what the other plugins bring as one."""
    found = [(plugin, one) for plugin in catalog.load().plugins for one in plugin.components]
    defenses = [_row(*pair) for pair in found if pair[1].kind == Kind.DEFENSE]
    others = [_row(*pair) for pair in found if pair[1].kind != Kind.DEFENSE]
    head = ["| {} | what it is | paper | install |", "|---|---|---|---|"]
    lines = [head[0].format("defense"), head[1], *defenses, ""]
    lines += [head[0].format("attack, pruner or perturbation"), head[1], *others]
    return "\n".join(lines) + "\n"


def _row(plugin: catalog.CatalogPlugin, component: catalog.CatalogComponent) -> str:
    paper = component.paper
    source = ""
    if paper is not None:
        link = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else paper.code
        where = paper.venue or f"arXiv {paper.arxiv}"
        source = f"[{where}]({link})" if link else where
    return f"| `{component.name}` | {component.summary} | {source} | `{plugin.install}` |"


def test_the_table_of_defenses_is_the_catalogs():
    found = MARKS.search(README.read_text())
    assert found is not None
    assert found[2] == table(), "run `python tests/test_readme.py`"


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    code, _ = code_blocks()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    views = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert views == ["deployed", "one-draw", "expected", "worst"]
    assert type(names["estimator"]).__mro__[1].__name__ == "PyTorchClassifier"


def test_what_the_readme_does_with_foreign_models_runs():
    _, code = code_blocks()
    torch.manual_seed(0)
    network, smooth = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    digits = TensorDataset(torch.rand(16, 1, 8, 8), torch.arange(16) % 10)
    names = {
        "phalanx": phalanx,
        "network": network,
        "smooth": smooth,
        "mean": [0.5],
        "std": [0.25],
        "loader": DataLoader(digits, batch_size=8),
        "classifier": PyTorchClassifier(
            network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 255)
        ),
    }
    lines = code.splitlines()
    exec(compile(lines[0], "README.md", "exec"), names)
    assert names["report"].worst[0].n == 16
    found = []
    for line in lines[1:]:
        exec(compile(line, "README.md", "exec"), names)
        found.append(tuple(names["model"].views()))
    plain = ("deployed",)
    assert found == [plain, ("deployed", "one-draw", "expected"), ("deployed", "surrogate"), plain]


@pytest.mark.parametrize("page", sorted(README.parent.glob("docs/*.md")))
def test_paths_that_the_pages_name_exist(page):
    named = re.findall(r"`((?:tests|core|plugins|docs)/[\w./-]+)`", page.read_text())
    missing = [path for path in named if not (README.parent / path).exists()]
    assert not missing


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(MARKS.sub(lambda m: m[1] + table() + m[3], text))
