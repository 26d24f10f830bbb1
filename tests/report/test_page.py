"""The page as text: what it holds, that it is whole, escaped and asks for nothing."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from phalanx.evaluation.diversity import MEANINGS
from phalanx.evaluation.findings import DefenseFindings
from phalanx.report import figures, words
from phalanx.report.model import Report


@pytest.fixture(scope="module")
def text(full: Report) -> str:
    return full.to_html()


@pytest.fixture(scope="module")
def page(text: str, read: Any) -> Any:
    return read(text)


def part(text: str, start: str, end: str) -> str:
    """The page between two of its marks."""
    _, _, rest = text.partition(start)
    assert rest, start
    found, mark, _ = rest.partition(end)
    assert mark, end
    return found


@pytest.mark.parametrize("which", ["full", "report"])
def test_the_page_needs_nothing_from_outside(
    which: str, request: pytest.FixtureRequest, read: Any
) -> None:
    text = request.getfixturevalue(which).to_html()
    page = read(text)
    assert page.open == []
    assert {"script", "iframe", "object", "embed", "form", "base"}.isdisjoint(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
        for value in page.attributes.get(name, []):
            assert value.startswith(("data:", "#")), value
    assert not any(name.startswith("on") for name in page.attributes)
    assert "width=device-width, initial-scale=1" in page.attributes["content"]
    assert (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        in (page.attributes["content"])
    )


def test_every_anchor_has_its_place(page: Any) -> None:
    places = page.attributes["id"]
    assert len(places) == len(set(places))
    anchors = [value[1:] for value in page.attributes["href"] if value.startswith("#")]
    assert set(anchors) <= set(places)
    for named in page.attributes["aria-labelledby"]:
        assert set(named.split()) <= set(places)


def test_names_are_escaped_everywhere(text: str, page: Any, hostile: str) -> None:
    assert "<b>" not in text
    assert "<seven>" not in text
    assert "<whole>" not in text
    assert "<masks>" not in text
    assert page.text.count(hostile) > 10
    assert all("<" not in name for name in page.tags)


def test_every_row_and_its_words_are_there(page: Any, full: Report) -> None:
    for one in full.rows:
        assert one.defense in page.text
        assert one.attack in page.text
        assert figures.percent(one.robust_accuracy) in page.text
        assert figures.between(one) in page.text
    said = (
        "few & noisy",
        "pip a < b",
        "1 cell could not be run",
        "View one-draw",
        "Without a ball",
    )
    for one in (*said, *(found.sentence for found in full.defenses)):
        assert one in page.text
    assert "Right in most draws: 70.0 % of the images; worst draw: 50.0 %." in page.text
    assert "12.5 + 40" in page.text
    assert "limit" not in page.text  # it is None
    assert "https://example.org/a_b" in page.text  # text, no link


def test_only_meanings_that_occur_are_said(text: str, report: Report) -> None:
    for meaning in (*words.VERDICTS.values(), *words.MASKING.values()):
        assert meaning in text.replace("&#39;", "'")
    small = report.to_html()
    assert "Verdict “incomplete”:" in small
    assert "Verdict “trusted”" not in small
    assert "Masking" not in small


def test_the_summary_is_in_order_with_masking_and_sentence(read: Any, text: str) -> None:
    summary = part(text, '<table class="stack">', "</table>")
    labels = re.findall(r'<a href="#(defense-\d)">', summary)
    assert labels == ["defense-1", "defense-2", "defense-3", "defense-4"]
    verdicts = re.findall(r'class="badge (\w+)"', summary)
    assert verdicts == ["trusted", "screened", "screened", "unreliable"]
    assert re.findall(r'class="masking-(\w+)"', summary) == ["no", "unknown", "unknown", "yes"]
    assert read(summary).text.count("Unreliable: black_box fails; transfer has not run") == 1


def test_checks_stand_with_all_they_know(read: Any, text: str) -> None:
    chapter = part(text, '<h2 id="defense-4">', "</section>")
    ids = re.findall(r'scope="row">(\w+)</th><td data-label="Status">', chapter)
    assert ids == ["black_box", "unstable", "transfer", "stochastic", "eot_k"]
    shown = read(chapter.partition("</h2>")[2]).text
    for said in (
        "Checks: 1 failed, 1 warned, 1 not run, 1 passed, 1 not applicable",
        "0.0431",
        "11 of 256",
        "warns above 0.5 %, fails above 2 %",
        "Carlini et al. 2019, item 8",
        "Bears on expected · apgd-ce (linf:8/255); square (linf:8/255).",
        "Bears on every row.",
    ):
        assert said in shown
    folded = chapter.index("<details>\n<summary>All 5 checks")
    assert "black_box" in chapter[:folded]
    assert "stochastic" not in chapter[:folded]


def test_gap_facts_comparisons_claims_and_failures(page: Any) -> None:
    for said in (
        "+31.0", "+27.8",  # points of the paper's protocol above the worst case
        "1,234,567", "308,642 (25.0 %)", "4.9 MB", "1.25 ms (batch of 64)", "360 + 300.5",
        "-45.5", "-49.0 to -41.0", "< 0.001", "exact McNemar", "the second", "not told apart",
        "results/mnist_lenet5.json", "not-reproduced", "90.5", "34.1",
        "Could not be run", "Notes", f"entropy: {MEANINGS['entropy']}", "of_another_version",
    ):  # fmt: skip
        assert said in page.text


def test_examples_are_pictures_with_words(text: str, full: Report) -> None:
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]*)">', text)
    assert len(images) == 3 * len(full.examples)
    assert base64.b64decode(images[0][0]).startswith(b"\x89PNG")
    assert images[0][1] == "Image 4 without an attack, label &lt;seven&gt;"
    assert images[1][1] == "Image 4 attacked by apgd-ce, taken for 3"
    assert images[2][1] == "What the attack changed in image 4, 10 times as large"
    assert "image-rendering: pixelated" in text


def test_a_picture_that_is_no_base64_stays_within_its_attribute(full: Report, read: Any) -> None:
    bad = full.examples[0].model_copy(update={"clean": '"><script>alert(1)</script>'})
    page = read(Report(full.rows, examples=(bad,)).to_html())
    assert "script" not in page.tags


def test_a_small_report_shows_no_empty_sections(report: Report, read: Any) -> None:
    page = read(report.to_html())
    absent = (
        *("Security curves", "Transfer", "Size and cost", "Diversity", "Checks", "Claims"),
        *("Defenses against each other", "paper's protocol", "Adversarial examples"),
    )
    assert not [one for one in absent if one in page.text]
    assert "Compare defenses by their “worst” rows" in page.text


@pytest.mark.parametrize(
    "bare",
    [
        Report(()),
        Report((), defenses=(DefenseFindings(defense="x"),)),
        Report((), notes=("nothing ran",), environment={"data": None}),
    ],
)
def test_reports_without_rows_are_pages_too(bare: Report, read: Any) -> None:
    page = read(bare.to_html())
    assert page.open == []
    assert "Robustness report" in page.text
    for text in (bare.to_markdown(), bare.to_latex(), bare.to_csv()):
        assert text.endswith("\n")
