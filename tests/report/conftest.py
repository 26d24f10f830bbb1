"""A synthetic report that holds everything a report can hold, with names that need escapes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from phalanx.evaluation.findings import (
    Check,
    Comparison,
    Curve,
    CurvePoint,
    DefenseFindings,
    Example,
    LedgerEntry,
    ModelFacts,
    Transfer,
)
from phalanx.evaluation.rows import Failure, Row
from phalanx.report.model import Report

HOSTILE = 'rls <b>&|_"50%" $x^2$ #1 {~}\\'
"""A defense's name with everything that HTML, Markdown, LaTeX and CSV give a meaning."""
LONG = "mixture-of-experts-resnet18-w16-pruned-filters-8x-seed-3"
LINF, L2 = "linf:8/255", "l2:0.5"


def make_row(defense: str, view: str, attack: str, robust: float, **rest: object) -> Row:
    given = {
        "defense": defense,
        "view": view,
        "attack": attack,
        "threat": LINF,
        "clean_accuracy": 0.95,
        "robust_accuracy": robust,
        "n": 500,
        "ci95": (max(0.0, robust - 0.03), min(1.0, robust + 0.03)),
        "forwards": 40.0,
        "backwards": 40.0,
        **rest,
    }
    return Row.model_validate(given)


def png(size: int, *, grey: int, spot: int) -> str:
    """A grey square of `size` pixels with a bright spot, as base64 of a PNG file."""

    def part(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    lines = bytearray()
    for y in range(size):
        lines.append(0)
        lines += bytes(spot if (x + y) % 5 == 0 else grey for x in range(size))
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(lines))) + part(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def curve(defense: str, norm: str, shares: dict[float, float], view: str = "deployed") -> Curve:
    points = tuple(
        CurvePoint(eps=eps, accuracy=a, ci95=(max(0.0, a - 0.04), min(1.0, a + 0.04)))
        for eps, a in shares.items()
    )
    return Curve(defense=defense, norm=norm, view=view, attack="apgd-ce", n=200, points=points)


def findings() -> tuple[DefenseFindings, ...]:
    checks = (
        Check(id="stochastic", status="pass", value=0.0, n=5, threshold="fails above 1e-4",
              reason="Five forwards gave the same scores.", source="AutoAttack"),
        Check(id="eot_k", status="not-applicable", reason="The model is deterministic."),
        Check(id="black_box", status="fail", value=0.0431, count=11, n=256,
              threshold="warns above 0.5 %, fails above 2 %",
              reason="Square breaks 11 of 256 images that the gradient attacks leave <whole>.",
              source="Carlini et al. 2019, item 8",
              touches=(("expected", "apgd-ce", LINF), ("none", "square", LINF))),
        Check(id="transfer", status="not-run", reason="No source; give --surrogate."),
        Check(id="unstable", status="warn", value=0.612, threshold="warns above 0.5",
              reason="The margin loss changes much under noise.", source="IOAF",
              bears_on_all=True),
    )  # fmt: skip
    claims = (
        LedgerEntry(source="paper, Table 1", dataset="mnist", threat="linf:0.3", attack="pgd-100",
                    metric="mra", value=90.5, setting="CLM, LeNet-5"),
        LedgerEntry(source="paper, Table 2", dataset="cifar10", metric="clean_accuracy",
                    value=93.4, conditional=True),
        LedgerEntry(source="reproduction", dataset="mnist", threat="linf:0.3", attack="pgd-100",
                    metric="mra", value=34.1, setting="CLM, LeNet-5", status="partial",
                    evidence="results/mnist_lenet5.json"),
        LedgerEntry(source="reproduction", dataset="mnist", threat="linf:0.3", attack="pgd-100",
                    metric="mra", value=20.8, setting="another setting", status="not-reproduced"),
    )  # fmt: skip
    facts = ModelFacts(
        parameters=1_234_567,
        nonzero=308_642,
        bytes=4_938_268,
        latency=0.00125,
        latency_batch=64,
        training_forwards=360,
        training_backwards=300.5,
    )
    return (
        DefenseFindings(defense="none", masking="no", checks=checks[:2],
                        sentence="Trusted: all 10 required checks pass; no masking is found.",
                        facts=ModelFacts(parameters=61_706)),
        DefenseFindings(defense=HOSTILE, masking="yes", checks=checks, facts=facts, claims=claims,
                        sentence="Unreliable: black_box fails; transfer has not run; R&D <masks>.",
                        diversity={"entropy": 0.0312, "of_another_version": 0.114}),
        DefenseFindings(defense=LONG, sentence="Screened: transfer has not run.",
                        diversity={"entropy": 0.05}),
    )  # fmt: skip


def full_report() -> Report:
    """What `phalanx evaluate` would write at its fullest, in small."""
    rows = (
        make_row("none", "deployed", "pgd:step=2/255,steps=100", 0.0, verdict="trusted"),
        make_row("none", "worst", "worst", 0.0, verdict="trusted", conditional_accuracy=0.0),
        make_row(HOSTILE, "one-draw", "fgsm", 0.612, note="few & noisy", majority=0.7,
                 worst_draw=0.5, conditional_accuracy=0.644, protocol="paper"),
        make_row(HOSTILE, "expected", "apgd-ce", 0.312, verdict="unreliable"),
        make_row(HOSTILE, "worst", "worst", 0.3017, forwards=12.5, verdict="unreliable"),
        make_row(HOSTILE, "worst", "worst", 0.58, protocol="paper"),
        make_row(HOSTILE, "expected", "apgd-ce", 0.5, threat=L2, protocol="paper"),
        make_row(LONG, "deployed", 'natural:perturbation={use="fog_mixed",params={low=0.1}}', 0.9,
                 threat="none", forwards=1.0, backwards=0.0, protocol="adaptive"),
        make_row(LONG, "deployed", "apgd-ce", 0.455, verdict="screened"),
        make_row(LONG, "worst", "worst", 0.455, verdict="screened",
                 note="1 cell could not be run"),
        make_row("clm", "worst", "worst", 0.5, verdict="screened"),
        make_row("clm", "worst", "worst", 0.4, threat=L2),
        make_row(LONG, "worst", "worst", 0.6, threat=L2, verdict="caution"),
    )  # fmt: skip
    steps = [0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255]
    names = ("none", LONG, HOSTILE, "clm")
    curves = tuple(
        curve(name, "linf", {eps: 0.95 * 0.5 ** (eps * 255 / (2 + 3 * k)) for eps in steps})
        for k, name in enumerate(names)
    )
    curves += (
        curve("clm", "l2", {0.0: 0.95, 0.5: 0.6, 1.0: 0.2}, view="expected"),
        curve("clm", "l2", {0.0: 0.95, 0.5: 0.7, 2.0: 0.1}, view="one-draw"),
    )
    members = ("member 1", "member 2", "member 3")
    transfers = (
        Transfer(kind="models", threat=LINF, attack="apgd-ce", targets=names, sources=names,
                 accuracy=tuple(
                     tuple(None if (t, s) == (0, 3) else 0.05 + 0.06 * (4 * t + s) % 0.95
                           for s in range(4)) for t in range(4)), n=200),
        Transfer(kind="members", threat=LINF, defense=HOSTILE, targets=members, sources=members,
                 accuracy=((0.0, 0.9, 0.8), (0.7, 0.1, 1.0), (0.5, 0.45, None)), n=200),
    )  # fmt: skip
    comparisons = (
        Comparison(first="none", second=LONG, threat=LINF, n=500, difference=-0.455,
                   ci95=(-0.49, -0.41), p_value=1e-9, test="mcnemar"),
        Comparison(first=HOSTILE, second="clm", threat=LINF, n=500, difference=0.012,
                   ci95=(-0.02, 0.05), p_value=0.4321, test="sign-flip"),
    )  # fmt: skip
    pictures = {
        "clean": png(16, grey=90, spot=230),
        "adversarial": png(16, grey=110, spot=200),
        "difference": png(16, grey=128, spot=160),
    }
    examples = tuple(
        Example(defense=HOSTILE, view="expected", attack="apgd-ce", threat=LINF, row=row,
                label="<seven>", predicted="3", gain=10.0, **pictures)
        for row in (4, 17, 101)
    )  # fmt: skip
    failed = (
        Failure(defense=LONG, view="deployed", attack="art/X", threat=LINF, reason="pip a < b"),
    )
    environment = {"python": "3.11", "seed": 0, "limit": None, "data": "digits",
                   "protocol": "adaptive", "date": "2030-01-01T00:00:00+00:00"}  # fmt: skip
    return Report(
        rows,
        environment,
        failed,
        notes=("Small & quick.\nTwo lines; see https://example.org/a_b.",),
        defenses=findings(),
        transfers=transfers,
        curves=curves,
        comparisons=comparisons,
        examples=examples,
    )


def small_report() -> Report:
    """What evaluations wrote before they had findings."""

    def row(defense: str, view: str, attack: str, robust: float, **rest: object) -> Row:
        return make_row(defense, view, attack, robust, threat="linf:0.1", **rest)

    rows = (
        row("none", "deployed", "pgd:step=0.01,steps=100", 0.0),
        row("none", "worst", "worst", 0.0),
        row("clm <b>", "one-draw", "fgsm", 0.612, note="few & noisy", majority=0.7,
            worst_draw=0.5, conditional_accuracy=0.644),
        row("clm <b>", "expected", "fgsm", 0.312),
        row("clm <b>", "worst", "worst", 0.3017, forwards=12.5),
    )  # fmt: skip
    failed = (
        Failure(
            defense="none", view="deployed", attack="art/X", threat="linf:0.1", reason="pip a < b"
        ),
    )
    environment = {"python": "3.11", "seed": 0, "limit": None, "data": "digits", "date": "today"}
    return Report(rows, environment, failed, notes=("Small & quick.",))


class Page(HTMLParser):
    """Collects tags, attributes and text; every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.text = self.text.replace("\N{NO-BREAK SPACE}", " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def report() -> Report:
    return small_report()


@pytest.fixture(scope="session")
def read() -> Callable[[str], Page]:
    return Page


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    return make_row


@pytest.fixture(scope="session")
def full() -> Report:
    return full_report()


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE
