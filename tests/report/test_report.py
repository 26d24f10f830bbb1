from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from phalanx.errors import ArtifactError
from phalanx.evaluation.rows import Failure, Row
from phalanx.report.model import Report


def row(defense: str, view: str, attack: str, robust: float, **rest: object) -> Row:
    given = {
        "defense": defense,
        "view": view,
        "attack": attack,
        "threat": "linf:0.1",
        "clean_accuracy": 0.95,
        "robust_accuracy": robust,
        "n": 500,
        "ci95": (max(0.0, robust - 0.03), min(1.0, robust + 0.03)),
        "forwards": 40.0,
        "backwards": 40.0,
        **rest,
    }
    return Row.model_validate(given)


@pytest.fixture
def report() -> Report:
    rows = (
        row("none", "deployed", "pgd:step=0.01,steps=100", 0.0),
        row("none", "worst", "worst", 0.0),
        row(
            "clm <b>",
            "one-draw",
            "fgsm",
            0.612,
            note="few & noisy",
            majority=0.7,
            worst_draw=0.5,
            conditional_accuracy=0.644,
        ),
        row("clm <b>", "expected", "fgsm", 0.312),
        row("clm <b>", "worst", "worst", 0.3017, forwards=12.5),
    )
    failed = (
        Failure(
            defense="none", view="deployed", attack="art/X", threat="linf:0.1", reason="pip a < b"
        ),
    )
    environment = {"python": "3.11", "seed": 0, "limit": None, "data": "digits", "date": "today"}
    return Report(rows, environment, failed, notes=("Small & quick.",))


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_schema_of_the_json(report: Report) -> None:
    value = json.loads(json.dumps(report.to_json()))
    assert list(value) == ["schema", "rows", "environment", "failed", "notes"]
    assert value["schema"] == 1
    assert value["rows"][0] == {
        "defense": "none",
        "view": "deployed",
        "attack": "pgd:step=0.01,steps=100",
        "threat": "linf:0.1",
        "clean_accuracy": 0.95,
        "robust_accuracy": 0.0,
        "n": 500,
        "ci95": [0.0, 0.03],
        "forwards": 40.0,
        "backwards": 40.0,
        "verdict": "incomplete",
    }
    optional = {"note", "conditional_accuracy", "majority", "worst_draw"}
    assert set(value["rows"][2]) - set(value["rows"][0]) == optional
    assert value["failed"][0]["reason"] == "pip a < b"
    assert list(Report(report.rows).to_json()) == ["schema", "rows", "environment", "failed"]


def test_json_reads_back_and_newer_keys_are_left_out(report: Report) -> None:
    value = json.loads(json.dumps(report.to_json()))
    assert Report.from_json(value) == report
    value["defenses"] = [{"defense": "none", "masking": "no"}]
    value["rows"][0]["later"] = 1
    assert Report.from_json(value) == report


def test_three_files_are_written_and_read(report: Report, tmp_path: Path) -> None:
    page = report.save(tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "report.html"
    names = ["report.html", "report.json", "report.md"]
    assert sorted(path.name for path in page.parent.iterdir()) == names
    assert Report.load(page.parent) == report


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is missing; give the folder that `phalanx evaluate --out` wrote"),
        ('{"schema": 1, "rows": [', "is damaged: "),
        ("[]", "is no report of Phalanx: it has no rows"),
        ('{"schema": 2, "rows": []}', "has schema 2, this version reads 1"),
        ('{"schema": 1, "rows": [{"defense": "a"}]}', "is damaged: "),
        ('{"schema": 1, "rows": 3}', "is damaged: "),
    ],
)
def test_what_is_no_report(content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ArtifactError) as caught:
        Report.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'report.json'} {told}")


def test_the_page_needs_nothing_from_outside(report: Report) -> None:
    text = report.to_html()
    assert not re.search(r"https?:", text)
    assert "<script" not in text
    assert "url(" not in text
    page = Page(text)
    assert page.open == []
    assert {"script", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert page.attributes["href"] == ["data:,"]
    assert "src" not in page.attributes
    assert "width=device-width, initial-scale=1" in page.attributes["content"]
    assert "@media print" in text


def test_the_page_holds_every_row_and_escapes_names(report: Report) -> None:
    text = report.to_html()
    page = Page(text)
    assert "<b>" not in text
    for one in report.rows:
        assert one.defense in page.text
        assert one.attack in page.text
        assert f"{100 * one.robust_accuracy:.1f} %" in page.text
        assert f"{100 * one.ci95[0]:.1f} – {100 * one.ci95[1]:.1f} %" in page.text
    for said in ("few & noisy", "pip a < b", "Small & quick.", "View one-draw", "View expected"):
        assert said in page.text
    assert "Right in most draws: 70.0 % of the images; worst draw: 50.0 %." in page.text
    assert "12.5 + 40" in page.text
    assert page.text.count("64.4 %") == 1
    assert page.text.count("Of clean-correct") == 5 + 1  # each view's table, and what it means
    assert "limit" not in page.text  # it is None


def test_the_page_says_what_to_compare_and_what_the_verdict_means(report: Report) -> None:
    for text in (Page(report.to_html()).text, report.to_markdown()):
        assert "Compare defenses by their “worst” rows" in text
        assert "Verdict “incomplete”:" in text


def test_each_picture_says_in_words_what_it_shows(report: Report) -> None:
    text = report.to_html()
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 3  # overview and one for each defense
    for picture in pictures:
        assert 'role="img"' in picture
        (labelled,) = re.findall(r'aria-labelledby="([^"]+)"', picture)
        for name in labelled.split():
            assert f'id="{name}"' in picture
    assert "none under linf:0.1: clean 95.0 %, worst 0.0 %" in pictures[0]
    words = "clean 95.0 %; one-draw · fgsm 61.2 % (58.2 – 64.2 %); expected · fgsm 31.2 %"
    assert words in pictures[2]
    assert len(re.findall(r'<rect class="attack"', pictures[2])) == 2
    assert len(re.findall(r'class="whisker"', pictures[2])) == 3
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="12"', pictures[2])]
    assert widths == pytest.approx([332 * a for a in (0.95, 0.612, 0.312, 0.3017)], abs=0.06)


def test_markdown_has_every_row_and_whole_tables(report: Report) -> None:
    text = report.to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    worst, every = lines[:4], lines[4:]
    assert {line.count("|") for line in worst} == {11}
    assert {line.count("|") for line in every} == {12}
    assert len(lines) == 2 * 2 + 2 + 5
    assert "| clm <b> | one-draw | fgsm | linf:0.1 | 95.0 % | 61.2 % | 64.4 % |" in text
    assert "| none | worst | worst | linf:0.1 | 95.0 % | 0.0 % | – |" in text
    assert "- none, deployed · art/X (linf:0.1): pip a < b" in text
    assert "- Small & quick." in text
