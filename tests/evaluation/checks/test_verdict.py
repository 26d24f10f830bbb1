from __future__ import annotations

import pytest
from hypothesis import assume, given, settings, strategies as st

from phalanx.evaluation.checks import (
    FOR_ENSEMBLES,
    FOR_STOCHASTIC,
    FREE,
    REQUIRED,
    TABLE,
    AttackFacts,
    masking_of,
    sentence,
    severest,
    verdicts,
    with_touches,
)
from phalanx.evaluation.checks.table import base_id, made, not_applicable, not_run
from phalanx.evaluation.checks.verdict import MASKS, PRECEDENCE, key_of
from phalanx.evaluation.findings import Check, Status
from phalanx.evaluation.rows import Row

CHANCE = 0.1
LINF = "linf:8/255"


def row(attack: str, accuracy: float, *, view: str = "deployed", threat: str = LINF) -> Row:
    return Row(
        defense="d",
        view="worst" if attack == "worst" else view,
        attack=attack,
        threat=threat,
        clean_accuracy=0.95,
        robust_accuracy=accuracy,
        n=256,
        ci95=(max(0.0, accuracy - 0.03), min(1.0, accuracy + 0.03)),
        forwards=1.0,
        backwards=1.0,
    )


ROWS = (
    row("apgd-ce", 0.55),
    row("apgd-dlr", 0.53),
    row("square", 0.56),
    row("worst", 0.50),
)
FACTS = {
    "apgd-ce": AttackFacts(gradient=True, loss="ce"),
    "apgd-dlr": AttackFacts(gradient=True, loss="dlr"),
    "square": AttackFacts(gradient=False),
}


def facts_of(rows):
    return {key_of(one): FACTS[one.attack] for one in rows if one.attack != "worst"}


def passed(**changed: Status | None) -> list[Check]:
    """All required and free checks, passed but for some; None leaves one out."""
    names = {name: name for name in REQUIRED | FREE}
    del names["grad_bad"]
    statuses: dict[str, Status | None] = dict.fromkeys(names, "pass")
    statuses |= {"grad_bad:ce": "pass", "grad_bad:dlr": "pass", "grad_bad:margin": "pass"}
    statuses |= {name.replace("__", ":"): status for name, status in changed.items()}
    return [made(name, status, "Told.") for name, status in statuses.items() if status]


def said(checks, rows=ROWS, **more) -> list[str]:
    found = verdicts(rows, checks, facts=facts_of(rows), chance=CHANCE, **more)
    return [one.verdict for one in found]


def test_all_passed_is_trusted() -> None:
    assert said(passed()) == ["trusted"] * 4


@pytest.mark.parametrize("name", ["logits", "black_box", "one_step", "unstable", "grad_bad__ce"])
def test_a_warning_is_caution_for_every_row(name: str) -> None:
    assert said(passed(**{name: "warn"})) == ["caution"] * 4


@pytest.mark.parametrize("name", ["one_step", "silent", "loss_rank", "ensemble_dominance"])
def test_a_failure_of_a_check_that_informs_is_caution(name: str) -> None:
    assert said(passed(**{name: "fail"})) == ["caution"] * 4


@pytest.mark.parametrize("name", ["stochastic", "batch_dependence", "budget"])
def test_three_failures_touch_every_row(name: str) -> None:
    assert said(passed(**{name: "fail"})) == ["unreliable"] * 4


@pytest.mark.parametrize(
    "name", ["grad_fd", "grad_deployed", "dynamic", "unbounded", "converged_steps"]
)
def test_failures_that_touch_gradient_rows(name: str) -> None:
    """Square at .56 does not reach the worst row's .50 +- .03, so nobody vouches for it."""
    assert said(passed(**{name: "fail"})) == ["unreliable", "unreliable", "caution", "unreliable"]
    near = (*ROWS[:2], row("square", 0.52), ROWS[3])
    assert said(passed(**{name: "fail"}), near) == [
        "unreliable",
        "unreliable",
        "caution",
        "caution",
    ]


def test_a_loss_without_gradient_touches_its_attacks_alone() -> None:
    assert said(passed(grad_bad__ce="fail")) == ["unreliable", "caution", "caution", "caution"]
    assert said(passed(grad_bad__dlr="fail")) == ["caution", "unreliable", "caution", "unreliable"]
    assert said(passed(grad_bad__margin="fail")) == ["caution"] * 4
    # together they leave no gradient row, and Square does not reach the worst one
    both = passed(grad_bad__ce="fail", grad_bad__dlr="fail")
    assert said(both) == ["unreliable", "unreliable", "caution", "unreliable"]


@pytest.mark.parametrize("name", ["black_box", "transfer", "ensemble_reweight"])
def test_failures_that_touch_rows_above_the_worst(name: str) -> None:
    """.55 and .56 are above .53, the end of the worst row's interval; .53 is not."""
    assert said(passed(**{name: "fail"})) == ["unreliable", "caution", "unreliable", "caution"]
    alone = (ROWS[0], ROWS[2], ROWS[3])
    assert said(passed(**{name: "fail"}), alone) == ["unreliable"] * 3


def test_draws_touch_their_view() -> None:
    rows = (row("apgd-ce", 0.52), row("apgd-ce", 0.53, view="expected"), row("worst", 0.5))
    needed = REQUIRED | FOR_STOCHASTIC
    assert said(passed(eot_k="fail"), rows, required=needed) == [
        "unreliable",
        "caution",
        "caution",
    ]
    assert said(passed(eot_k="pass"), rows, required=needed) == ["trusted"] * 3
    assert said(passed(), rows, required=needed) == ["screened"] * 3


def test_a_number_at_chance_is_unreliable_by_what_bears_on_every_row_alone() -> None:
    rows = (row("apgd-ce", 0.55), row("apgd-dlr", 0.1), row("worst", 0.1))
    assert said(passed(grad_fd="fail"), rows) == ["unreliable", "caution", "caution"]
    assert said(passed(grad_fd="fail", black_box=None), rows) == [
        "unreliable",
        "screened",
        "screened",
    ]
    for check in ("stochastic", "batch_dependence", "budget"):
        assert said(passed(**{check: "fail"}), rows) == ["unreliable"] * 3


# ---------------------------------------------------------------- what has not run


def free_only(**changed: Status) -> list[Check]:
    statuses = dict.fromkeys(FREE, "pass") | changed
    return [made(name, status, "Told.") for name, status in statuses.items()]


def test_free_checks_alone_are_screened() -> None:
    assert said(free_only()) == ["screened"] * 4
    assert said(free_only(logits="warn")) == ["screened"] * 4
    assert said(free_only(stochastic="fail")) == ["unreliable"] * 4


@pytest.mark.parametrize("name", sorted(FREE))
def test_without_a_free_check_nothing_was_screened(name: str) -> None:
    assert said([]) == ["incomplete"] * 4
    assert said(passed(**{name: "not-run"})) == ["incomplete"] * 4
    assert said(passed(**{name: None})) == ["incomplete"] * 4


@pytest.mark.parametrize("status", ["not-run", None])
@pytest.mark.parametrize("name", sorted(REQUIRED - FREE - {"transfer", "grad_bad"}))
def test_a_required_check_that_has_not_run_is_screened(name: str, status: Status | None) -> None:
    assert said(passed(**{name: status})) == ["screened"] * 4
    assert said(passed(grad_bad__ce="not-run")) == ["screened"] * 4


def test_transfer_without_a_source_caps_at_caution() -> None:
    assert said(passed(transfer="not-run")) == ["caution"] * 4
    assert said(passed(transfer=None)) == ["screened"] * 4


def test_a_missing_adaptive_attack_is_incomplete() -> None:
    assert said(passed(adaptive="not-run")) == ["incomplete"] * 4
    assert said(passed(adaptive="not-run", budget="fail")) == ["unreliable"] * 4
    assert said(passed(adaptive="not-applicable")) == ["trusted"] * 4
    assert said(passed(adaptive="warn")) == ["caution"] * 4


@pytest.mark.parametrize("name", sorted(REQUIRED - {"grad_bad"}))
def test_not_applicable_counts_as_passed(name: str) -> None:
    assert said(passed(**{name: "not-applicable"})) == ["trusted"] * 4


def test_ensembles_need_their_check() -> None:
    needed = REQUIRED | FOR_ENSEMBLES
    assert said(passed(), required=needed) == ["screened"] * 4
    assert said(passed(ensemble_reweight="pass"), required=needed) == ["trusted"] * 4


# ---------------------------------------------------------------- several threats


def test_a_check_of_one_threat_speaks_of_its_rows() -> None:
    both = f"{LINF}+l2:0.5"
    rows = (
        *ROWS,
        row("apgd-ce", 0.6, threat="l2:0.5"),
        row("worst", 0.6, threat="l2:0.5"),
        row("worst", 0.5, threat=both),
    )
    checks = [*passed(black_box=None), made("black_box@l2:0.5", "pass", "Told.")]
    found = said([*checks, made(f"black_box@{LINF}", "fail", "Told.")], rows)
    assert found == [
        "unreliable",
        "caution",
        "unreliable",
        "caution",
        "trusted",
        "trusted",
        "caution",
    ]
    found = said([*checks, made(f"black_box@{LINF}", "not-run", "Told.")], rows)
    assert found == [*["screened"] * 4, "trusted", "trusted", "screened"]
    found = said([*passed(), made("budget@l2:0.5", "fail", "Told.")], rows)
    assert found == [*["trusted"] * 4, *["unreliable"] * 3]


def test_rows_of_unknown_attacks_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no attack of the rows \[\('deployed', 'square', "):
        verdicts(ROWS, passed(), facts={**facts_of(ROWS[:2])}, chance=CHANCE)


def test_the_severest() -> None:
    assert severest(["trusted", "screened", "caution"]) == "screened"
    assert severest(["incomplete", "unreliable"]) == "unreliable"


# ---------------------------------------------------------------- touches, masking, sentence


def test_failed_checks_tell_their_rows() -> None:
    checks = passed(grad_fd="fail", stochastic="fail", black_box="warn")
    found = {one.id: one for one in with_touches(ROWS, checks, facts=facts_of(ROWS))}
    assert [key[1] for key in found["grad_fd"].touches] == ["apgd-ce", "apgd-dlr", "worst"]
    assert not found["grad_fd"].bears_on_all
    assert len(found["stochastic"].touches) == 4
    assert found["stochastic"].bears_on_all
    assert found["black_box"].touches == ()


@pytest.mark.parametrize("name", sorted(MASKS))
def test_masking_is_said_of_the_defense(name: str) -> None:
    name = "grad_bad__ce" if name == "grad_bad" else name
    assert masking_of(passed()) == "no"
    assert masking_of(passed(**{name: "fail"})) == "yes"
    assert masking_of(passed(**{name: "warn"})) == "no"
    unknown = "no" if name in ("grad_deployed", "ensemble_reweight") else "unknown"
    assert masking_of(passed(**{name: "not-run"})) == unknown


def test_other_failures_do_not_mask() -> None:
    assert masking_of(passed(budget="fail", converged_steps="fail", chance="fail")) == "no"
    assert masking_of(passed(converged_steps="not-run", eot_k="not-run")) == "no"
    assert masking_of(passed(), required=REQUIRED | FOR_ENSEMBLES) == "unknown"
    assert masking_of([]) == "unknown"
    assert masking_of(free_only(dynamic="fail")) == "yes"


def test_sentences() -> None:
    assert sentence("trusted", passed(), masking="no") == (
        "Trusted: all 10 required checks pass; no masking was found."
    )
    checks = passed(grad_bad__ce="fail", grad_fd="fail", one_step="warn", transfer="not-run")
    assert sentence("unreliable", checks, masking="yes") == (
        "Unreliable: grad_bad:ce and grad_fd fail; one_step warns; transfer has not run; "
        "gradients are masked."
    )
    assert sentence("screened", free_only(), masking="unknown") == (
        "Screened: black_box, converged_steps, grad_bad, grad_fd, transfer and unbounded have not "
        "run; whether gradients are masked is unknown."
    )
    assert sentence("incomplete", passed(adaptive="not-run"), masking="no") == (
        "Incomplete: adaptive has not run; no masking was found."
    )
    # a check that only informs is not missed
    assert "noise_gain" not in sentence("trusted", passed(noise_gain="not-run"), masking="no")


def test_checks_are_made_from_the_table() -> None:
    found = not_run("grad_bad:ce@l2:0.5", "Why.", n=3, threshold="x")
    assert (found.source, found.status, found.n) == (TABLE["grad_bad"].source, "not-run", 3)
    assert not_applicable("eot_k", "Why.").status == "not-applicable"
    assert base_id("grad_bad:ce@linf:8/255") == "grad_bad"
    with pytest.raises(KeyError):
        made("unheard", "pass", "")


def test_the_table_is_the_packages() -> None:
    from phalanx.evaluation import checks

    assert checks.__doc__ is not None
    for name, entry in TABLE.items():
        assert f"``{name}" in checks.__doc__
        assert entry.source
        assert name == "grad_bad" or callable(getattr(checks, name))
    assert set(TABLE) >= REQUIRED | FREE | MASKS
    assert set(checks.Thresholds.model_fields) >= set(TABLE) - {"dynamic"}


# ---------------------------------------------------------------- properties

STATUSES: tuple[Status, ...] = ("pass", "warn", "fail", "not-run", "not-applicable")
_PLAIN = REQUIRED | FREE | FOR_ENSEMBLES | {"one_step", "adaptive", "grad_deployed"}
NAMES = [*sorted(_PLAIN - {"grad_bad"}), "grad_bad:ce", "grad_bad:dlr"]
WORSE = {
    "not-applicable": ("warn", "fail", "not-run"),
    "pass": ("warn", "fail", "not-run"),
    "warn": ("fail", "not-run"),
}


@st.composite
def reports(draw):
    statuses = {name: draw(st.sampled_from(STATUSES)) for name in NAMES}
    if draw(st.booleans()):  # else hardly any report would be trusted
        statuses = {n: s if s in ("pass", "warn") else "pass" for n, s in statuses.items()}
    accuracies = [draw(st.floats(0.0, 0.9)) for _ in range(3)]
    lowest = min(accuracies)
    rows = [row(attack, value) for attack, value in zip(FACTS, accuracies)]
    rows.append(row("worst", draw(st.sampled_from([lowest, 0.95 * lowest, 0.6 * lowest]))))
    return statuses, tuple(rows)


def from_statuses(statuses):
    return [made(name, status, "Told.") for name, status in statuses.items()]


@given(reports(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_verdict_never_improves_when_a_check_gets_worse(report, data) -> None:
    statuses, rows = report
    can_worsen = [name for name in NAMES if statuses[name] in WORSE]
    assume(can_worsen)
    name = data.draw(st.sampled_from(can_worsen))
    worse = {**statuses, name: data.draw(st.sampled_from(WORSE[statuses[name]]))}
    before, after = said(from_statuses(statuses), rows), said(from_statuses(worse), rows)
    for one, other in zip(before, after):
        assert PRECEDENCE.index(other) <= PRECEDENCE.index(one)


@given(reports())
@settings(max_examples=50, deadline=None)
def test_nothing_at_chance_is_unreliable_and_nothing_trusted_has_a_failure(report) -> None:
    statuses, rows = report
    found = said(from_statuses(statuses), rows)
    for one, verdict in zip(rows, found):
        if "fail" in {statuses[name] for name in ("stochastic", "batch_dependence", "budget")}:
            assert verdict == "unreliable"
        elif one.robust_accuracy <= CHANCE:
            assert verdict != "unreliable"
        if {"warn", "fail"} & set(statuses.values()):
            assert verdict != "trusted"
