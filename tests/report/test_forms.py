"""Markdown, LaTeX, comma-separated values and the terminal: whole, escaped, and they read back."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from phalanx import cli
from phalanx.cli.report import print_report
from phalanx.evaluation.rows import Row
from phalanx.report import latex, markdown, sheet, tables, words
from phalanx.report.model import Report

UNESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\|")
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


# ---------------------------------------------------------------- Markdown


def test_every_table_of_the_markdown_is_whole(full: Report) -> None:
    blocks = [block for block in full.to_markdown().split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 10
    for block in blocks:
        assert len({len(UNESCAPED.findall(line)) for line in block.splitlines()}) == 1, block


def test_the_markdown_says_what_the_page_says(full: Report) -> None:
    text = full.to_markdown()
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == [
        "Worst case", "Defenses against each other", "Security curves",
        "The paper's protocol beside the worst case", "Transfer", "Size and cost",
        "Diversity of members", "Checks", "Every attack through every view",
        "What papers claim, and what was reproduced", "Notes", "Could not be run", "Environment",
    ]  # fmt: skip
    worst = [line.split("|")[1].strip() for line in text.splitlines() if "| linf:8/255 |" in line]
    assert worst[:2] == ["none", "clm"]
    assert "Verdict “unreliable”:" in text
    assert "Masking “yes”:" in text
    assert "- Small & quick. Two lines; see https://example.org/a_b." in text


def test_a_small_report_has_no_empty_titles(report: Report) -> None:
    titles = re.findall(r"^## (.*)", report.to_markdown(), re.MULTILINE)
    assert titles == (
        [
            "Worst case",
            "Every attack through every view",
            "Notes",
            "Could not be run",
            "Environment",
        ]
    )


@given(PLAIN)
def test_what_markdown_would_read_is_escaped(text: str) -> None:
    escaped = markdown.escaped(text)
    assert re.sub(r"\\([^\w\s])|\\(?=_)", r"\1", escaped) == " ".join(text.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*(?:[|`*]|<[a-z/])", escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("conv_small", "conv_small"),
        ("_a_ b_", r"\_a\_ b\_"),
        ("a|b <i> & c < d", r"a\|b \<i> & c < d"),
        ("&lt;", r"\&lt;"),
        ("[x](y) [z]", r"[x\](y) [z]"),
        ("# a\nb", r"\# a b"),
        ("-45.5", "-45.5"),
    ],
)
def test_examples_of_escapes_in_markdown(text: str, escaped: str) -> None:
    assert markdown.escaped(text) == escaped


def test_a_line_with_another_number_of_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns, but a line of 1: "):
        tables.of("=a | :b", [("x",)])


# ---------------------------------------------------------------- LaTeX


def read_latex(text: str) -> str:
    """What escaped LaTeX sets, if it holds nothing but text and escapes."""
    commands = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<",
        "textgreater": ">", "textbar": "|", "textquotedbl": '"', "textperiodcentered": "·",
        "texttimes": "×",
    }  # fmt: skip
    out, at = "", 0
    forms = re.compile(r"\\(\w+)\{\}|\\([&%$#_{}])|\{([\[*`'])\}|-\{\}|--|([^\\{}$&#^_~%])")
    while at < len(text):
        found = forms.match(text, at)
        assert found, text[at:]
        command, sign, grouped, plain = found.groups()
        if found[0] == "--":
            out += "–"
        else:
            out += commands[command] if command else sign or grouped or plain or "-"
        at = found.end()
    return out


@given(st.text(st.characters(codec="latin-1", exclude_categories=("Cc", "Zl", "Zp")), max_size=40))
def test_any_text_survives_latex(text: str) -> None:
    assert read_latex(latex.escaped(text)) == " ".join(text.split())


def test_the_tables_are_balanced_and_whole(full: Report) -> None:
    text = full.to_latex()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", body) for word in ("begin", "end"))
    assert begun == ["table", "tabular", "longtable"]
    assert sorted(begun) == sorted(ended)
    bare = body.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    for columns, table in re.findall(
        r"\\begin\{(?:tabular|longtable)\}\{(\w+)\}(.*?)\\end\{(?:tabular|longtable)\}", body, re.S
    ):
        rows = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(columns) - 1}
        for line in rows:
            for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\")):
                read_latex(cell.strip())
        assert table.count(r"\toprule") == table.count(r"\midrule") == 1
        assert table.count(r"\bottomrule") == 1
    assert len(re.findall(r"^\S.* \\\\$", body, re.M)) == 2 + len(full.worst) + len(full.rows)


def test_the_worst_rows_of_the_latex_are_in_order(full: Report, report: Report) -> None:
    worst = full.to_latex().partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    assert [line.split(" & ")[-1] for line in worst.strip().splitlines()] == (
        [
            f"{masking} " + r"\\"
            for masking in ("no", "unknown", "unknown", "yes", "unknown", "unknown")
        ]
    )
    assert "Masking" not in report.to_latex()
    assert r"Clean (\%)" in report.to_latex()


# ---------------------------------------------------------------- comma-separated values


def read_back(line: dict[str, str]) -> Row:
    kept = {key: value for key, value in line.items() if value != ""}
    ci95 = (kept.pop("ci95_low"), kept.pop("ci95_high"))
    return Row.model_validate({**kept, "ci95": ci95})


def test_the_rows_read_back(full: Report) -> None:
    text = full.to_csv()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(lines[0]) == sheet.COLUMNS
    assert [read_back(line) for line in lines] == list(full.rows)
    assert text.count("robust_accuracy") == 1


def test_every_field_of_a_row_has_a_column() -> None:
    fields = set(Row.model_fields) - {"ci95"} | {"ci95_low", "ci95_high"}
    assert set(sheet.COLUMNS) == fields


def test_line_breaks_and_quotes_read_back(row: Any) -> None:
    one = row('a,"b"', "deployed", "pgd", 0.5, note='two\nlines, "quoted"')
    (line,) = csv.DictReader(io.StringIO(sheet.render([one]), newline=""))
    assert read_back(line) == one


# ---------------------------------------------------------------- the terminal


def test_the_terminal_has_the_same_order_and_the_sentences(
    full: Report, hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(full)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["VERDICT", "PROTOCOL"]
    shown = [line.split()[0] for line in lines[1 : 1 + len(full.rows)]]
    assert shown == ["none"] * 2 + ["clm"] * 2 + [full.rows[7].defense] * 4 + ["rls"] * 5
    said = lines[1 + len(full.rows) :]
    assert said == [
        "none, masking no: Trusted: all 10 required checks pass; no masking is found.",
        f"{full.rows[7].defense}, masking unknown: Screened: transfer has not run.",
        f"{hostile}, masking yes: Unreliable: black_box fails; transfer has not run; R&D <masks>.",
        "note: Small & quick. Two lines; see https://example.org/a_b.",
        f"could not be run: {full.rows[7].defense}, deployed, art/X (linf:8/255): pip a < b",
    ]


def test_without_a_sentence_the_terminal_gives_the_verdicts(
    full: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    found = full.defenses[2].model_copy(update={"sentence": ""})
    print_report(Report(full.rows, defenses=(found,)))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("masking unknown: screened (linf:8/255), caution (l2:0.5)")


@pytest.mark.parametrize("form", ["md", "tex", "csv"])
def test_each_form_is_printed_as_it_is_written(
    full: Report, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full.save(tmp_path)
    assert cli.main(["report", str(tmp_path), "--format", form]) == 0
    assert capsys.readouterr().out == (tmp_path / f"report.{form}").read_text()


def test_curves_of_defenses_that_mask_are_told_to_overstate(full: Report, hostile: str) -> None:
    told = words.overstated([("a", "no"), ("b", "yes"), ("c", "unknown"), ("d", "yes")])
    assert told == [
        "Masking is yes (b, d): gradients mislead this attack, and the curve overstates.",
        "Masking is unknown (c): the curve may overstate.",
    ]
    shown = [one.defense for one in full.curves]
    assert hostile in shown
    assert "gradients mislead this attack, and the curve overstates." in full.to_markdown()
    assert "gradients mislead this attack, and the curve overstates." in full.to_html()


def test_markdown_and_latex_have_the_draws_of_random_models(full: Report) -> None:
    drawn = next(row for row in full.rows if row.majority is not None)
    assert (drawn.majority, drawn.worst_draw) == (0.7, 0.5)
    assert "| Right in most draws | Worst draw |" in full.to_markdown()
    assert "| 70.0 % | 50.0 % |" in full.to_markdown()
    assert r"& 70.0 & 50.0 &" in full.to_latex()
    fixed = Report(rows=tuple(row for row in full.rows if row.majority is None))
    assert "Worst draw" not in fixed.to_markdown() + fixed.to_latex()
