"""In which order a report is read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from phalanx.evaluation.findings import Check, Comparison, DefenseFindings, LedgerEntry
from phalanx.report import arrange, figures, words
from phalanx.report.model import Report


def test_the_summary_goes_by_verdict_then_by_accuracy(row: Any) -> None:
    best_first = (
        ("trusted", 0.1), ("caution", 0.5), ("caution", 0.3), ("screened", 0.6),
        ("incomplete", 0.9), ("unreliable", 0.95),
    )  # fmt: skip
    rows = [
        row(f"{verdict} {robust}", "worst", "worst", robust, verdict=verdict)
        for verdict, robust in best_first
    ]
    wanted = [one.defense for one in rows]
    for order in itertools.islice(itertools.permutations(rows), 0, 720, 37):
        ((threat, found),) = arrange.summary(Report(tuple(order)))
        assert threat == "linf:8/255"
        assert [one.defense for one in found] == wanted


def test_threats_are_not_mixed_and_the_first_one_orders_the_defenses(row: Any) -> None:
    rows = (
        row("a", "deployed", "pgd", 0.2),
        row("a", "worst", "worst", 0.2),
        row("b", "worst", "worst", 0.4),
        row("a", "worst", "worst", 0.9, threat="l2:1"),
        row("b", "worst", "worst", 0.8, threat="l2:1", verdict="trusted"),
    )
    found = arrange.summary(Report(rows))
    assert [threat for threat, _ in found] == ["linf:8/255", "l2:1"]
    assert [[one.defense for one in group] for _, group in found] == [["b", "a"], ["b", "a"]]
    assert arrange.defenses(Report(rows)) == ["b", "a"]
    assert [one.attack for one in arrange.rows(Report(rows))] == (
        ["worst", "worst", "pgd", "worst", "worst"]
    )


def test_the_papers_own_worst_is_nothing_to_compare_by(full: Report, hostile: str) -> None:
    assert [one.robust_accuracy for one in full.worst if one.defense == hostile] == [0.3017]
    pairs = arrange.beside(full, hostile)
    assert [one.gap for one in pairs] == [pytest.approx(0.3103), pytest.approx(0.2783), None]
    assert pairs[2].worst is None  # no worst case has its threat
    assert arrange.beside(full, "none") == []


def test_every_defense_that_is_named_is_there(row: Any, full: Report) -> None:
    found = Report(
        (row("measured", "worst", "worst", 0.5),),
        defenses=(DefenseFindings(defense="found"),),
        curves=(full.curves[0].model_copy(update={"defense": "curve"}),),
        transfers=(full.transfers[1].model_copy(update={"defense": "members"}),),
        examples=(full.examples[0].model_copy(update={"defense": "example"}),),
    )
    names = ["measured", "found", "curve", "members", "example"]
    assert arrange.defenses(found) == names
    assert [one for one in names if f"{one}</h2>" not in found.to_html()] == []
    assert arrange.masking(found, "measured") == "unknown"


def test_failing_checks_come_first_and_are_counted() -> None:
    statuses = ("pass", "not-run", "fail", "not-applicable", "warn", "pass")
    checks = [Check(id=f"{n}", status=status) for n, status in enumerate(statuses)]
    assert [one.id for one in arrange.checks(checks)] == ["2", "4", "1", "0", "5", "3"]
    assert words.tally(checks) == "1 failed, 1 warned, 1 not run, 2 passed, 1 not applicable"
    assert words.tally([]) == ""


def test_rows_on_which_a_check_bears() -> None:
    def check(n: int, *, on_all: bool = False) -> Check:
        rows = tuple(("expected", f"a{one}", "linf:0.1") for one in range(n))
        return Check(id="x", status="fail", reason="Why.", touches=rows, bears_on_all=on_all)

    assert words.said(check(0)) == "Why."
    assert words.said(check(0, on_all=True)) == "Why. Bears on every row."
    assert words.said(check(1)) == "Why. Bears on expected · a0 (linf:0.1)."
    assert words.bears(check(4)).count("linf:0.1") == 4
    assert words.bears(check(9)).endswith("expected · a2 (linf:0.1); 6 other rows.")
    assert words.said(check(1).model_copy(update={"status": "pass"})) == "Why."


def test_a_claim_shares_its_line_with_the_same_setting_alone() -> None:
    def entry(source: str, value: float, **rest: Any) -> LedgerEntry:
        return LedgerEntry(source=source, dataset="mnist", metric="mra", value=value, **rest)

    claim = entry("paper, Table 1", 90.0, setting="s")
    other = entry("paper, Table 2", 80.0, threat="linf:0.3")
    same = entry("reproduction", 70.0, setting="s")
    more = entry("reproduction", 60.0, setting="t")
    first, second = arrange.ledger([other, claim, more, same])
    assert (first.threat, first.reproduced) == ("", True)
    assert [(one.claim, one.reproduction) for one in first.lines] == [(claim, same), (None, more)]
    assert (second.threat, second.reproduced) == ("linf:0.3", False)
    assert [(one.claim, one.reproduction) for one in second.lines] == [(other, None)]


@pytest.mark.parametrize(
    ("ci95", "said"),
    [((0.01, 0.2), "the first"), ((-0.2, -0.01), "the second"), ((-0.1, 0.1), "not told apart")],
)
def test_who_is_better(ci95: tuple[float, float], said: str) -> None:
    one = Comparison(first="a", second="b", threat="linf:0.1", n=9, difference=0.0, ci95=ci95,
                     p_value=0.5, test="mcnemar")  # fmt: skip
    assert words.decided(one) == said


def test_numbers_as_text() -> None:
    assert [figures.size(n) for n in (None, 999, 1000, 4_938_268, 7 * 10**12)] == (
        ["–", "999 bytes", "1.0 kB", "4.9 MB", "7000.0 GB"]
    )
    assert figures.latency(0.00125, None) == "1.25 ms"
    assert figures.kept(5, None) == "5"
    assert figures.kept(5, 0) == "5"
    assert figures.p_value(0.0009) == "< 0.001"
    assert figures.passes(None, 2.5) == "– + 2.5"
    assert figures.passes(None, None) == "–"
    assert figures.points(-0.0123) == "-1.2"
    assert [figures.radius(eps, "linf") for eps in (0.0, 8 / 255, 0.1, 1.0, 0.0123456)] == (
        ["0", "8/255", "0.1", "1", "0.0123456"]
    )
    assert figures.radius(0.5, "l2") == "0.5"
    assert figures.radius(128 / 255, "l2") == "0.501961"
