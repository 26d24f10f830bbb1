"""Numbers as text, the same in all forms of a report."""

from __future__ import annotations

from phalanx.evaluation.findings import Check, CurvePoint
from phalanx.evaluation.rows import Row

ABSENT = "–"
"""Where there is no number."""


def percent(share: float) -> str:
    """0.934 as ``93.4 %``."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares as points with a sign: ``+3.2``."""
    return f"{100 * difference:+.1f}"


def of_clean_correct(row: Row) -> str:
    """The accuracy among images that are right without an attack; a dash where none is."""
    share = row.conditional_accuracy
    return ABSENT if share is None else percent(share)


def between(found: Row) -> str:
    """The interval as ``91.2 – 95.1 %``."""
    lo, hi = found.ci95
    return f"{100 * lo:.1f} – {100 * hi:.1f} %"


def with_interval(point: CurvePoint) -> str:
    """Accuracy and interval in per cent, without saying so in each: ``80.1 (75.1 – 84.0)``."""
    lo, hi = point.ci95
    return f"{100 * point.accuracy:.1f} ({100 * lo:.1f} – {100 * hi:.1f})"


def from_to(ci95: tuple[float, float]) -> str:
    """An interval of a difference, in points: ``-1.2 to +4.0``."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def count(passes: float) -> str:
    """Passes per image, whole where they are whole."""
    return f"{passes:.0f}" if passes == round(passes) else f"{passes:.1f}"


def passes(forwards: float | None, backwards: float | None) -> str:
    """``40 + 40``; a dash where neither is known."""
    if forwards is None and backwards is None:
        return ABSENT
    both = (ABSENT if one is None else count(one) for one in (forwards, backwards))
    return " + ".join(both)


def integer(number: int | None) -> str:
    """1234567 as ``1,234,567``."""
    return ABSENT if number is None else f"{number:,}"


def kept(nonzero: int | None, parameters: int | None) -> str:
    """Non-zeros with their share: ``250,000 (25.0 %)``."""
    if nonzero is None or not parameters:
        return integer(nonzero)
    return f"{nonzero:,} ({percent(nonzero / parameters)})"


def size(number: int | None) -> str:
    """Bytes in the unit that suits: ``4.7 MB``."""
    if number is None:
        return ABSENT
    scale = 0
    while scale < 3 and number >= 1000 ** (scale + 1):
        scale += 1
    unit = ("bytes", "kB", "MB", "GB")[scale]
    return f"{number} {unit}" if scale == 0 else f"{number / 1000**scale:.1f} {unit}"


def latency(seconds: float | None, batch: int | None) -> str:
    """``1.25 ms (batch of 64)``."""
    if seconds is None:
        return ABSENT
    of = "" if batch is None else f" (batch of {batch})"
    return f"{1000 * seconds:.3g} ms{of}"


def p_value(p: float) -> str:
    """Three decimals, or below what they can say."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value(number: float | None) -> str:
    """A statistic of no known unit, to four digits."""
    return ABSENT if number is None else f"{number:.4g}"


def of(check: Check) -> str:
    """How many of how many images or draws a check speaks of: ``3 of 256``."""
    if check.count is None:
        return ABSENT if check.n is None else f"n = {check.n}"
    return str(check.count) if check.n is None else f"{check.count} of {check.n}"


def radius(eps: float, norm: str) -> str:
    """A radius as it is usually written: ``8/255`` for L-inf where it is one, else ``0.5``."""
    k = round(eps * 255)
    if norm == "linf" and 0 < k < 255 and abs(eps * 255 - k) < 1e-6 and len(f"{eps:g}") > 4:
        return f"{k}/255"
    return f"{eps:g}"


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())
