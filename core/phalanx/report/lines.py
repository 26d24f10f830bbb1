"""Security curves: accuracy against the radius, all curves of a norm in one picture.

Curves are told apart by the shape of their points and the dashes of their lines too, so that the
picture can be read in grey.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from phalanx.evaluation.findings import Curve, CurvePoint, Masking
from phalanx.report import arrange, figures, lettering, tables, words
from phalanx.report.bars import WIDTH
from phalanx.report.tables import Table

COLOURS = 7
"""How many the style sheet has, as classes ``c0`` and on."""
_LEFT, _RIGHT, _TOP = 50, 24, 12
_PLOT = 200
"""Height of the plane."""
_AXIS = 40
"""Below it: the radii and what they are."""
_STEP = 20
"""Of the legend's lines."""
_NAMES = 46
"""Where the legend's names begin."""
_APART = 46
"""Between two radii whose names do not run into each other."""
_WIDE = 20.0
"""Largest over smallest radius from which the axis is of square roots."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5")
_SHAPES = (
    "M{x} {y}m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
    "M{x} {y}m-3.2 -3.2h6.4v6.4h-6.4z",
    "M{x} {y}m0 -4.2l4 7h-8z",
    "M{x} {y}m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "M{x} {y}m0 4.2l4 -7h-8z",
    "M{x} {y}m-3.5 -3.5l7 7m0 -7l-7 7",
)
"""Circle, square, triangle, diamond, triangle on its point, cross; 6 shapes and 7 colours."""


@dataclass(frozen=True)
class Line:
    """One curve of a picture.

    Attributes:
        label: its name, as in the legend.
        colour: class of the style sheet.
        dash: of its line; '' is solid.
        points: of a polyline.
        band: of the polygon that is its 95 % interval.
        marks: path of its points' shapes.
        y: of its line in the legend.
        key: path of its shape in the legend.
    """

    label: str
    colour: str
    dash: str
    points: str
    band: str
    marks: str
    y: int
    key: str


@dataclass(frozen=True)
class Lines:
    """The curves of one norm, and the same in words and as a table.

    `told` are the sentences that stand beneath, on curves that masking makes too high.
    """

    id: str
    title: str
    text: str
    axis: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    table: Table
    told: tuple[str, ...] = ()
    width: int = WIDTH
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = _TOP + _PLOT
    names: int = _NAMES

    @property
    def height(self) -> int:
        """Of plane, axis and legend."""
        return self.bottom + _AXIS + _STEP * len(self.lines) + 4

    @property
    def shares(self) -> list[tuple[float, str]]:
        """Places and names of the upright axis."""
        return [(_up(share / 4), f"{25 * share}") for share in range(5)]


def of_norm(
    name: str, norm: str, *, curves: Sequence[Curve], masked: Iterable[tuple[str, Masking]] = ()
) -> Lines:
    """The picture of one norm's curves.

    Args:
        name: the picture's id.
        norm: of the radii.
        curves: at least one.
        masked: the defense of each curve, and its masking.
    """
    radii = arrange.radii(curves)
    place, axis = _scale(radii)
    named = list(zip(labels(curves), curves, strict=True))
    told = [
        f"{label}: "
        + ", ".join(
            f"{figures.radius(point.eps, norm)}: {figures.percent(point.accuracy)}"
            for point in _ordered(curve)
        )
        for label, curve in named
    ]
    return Lines(
        id=name,
        title=f"Accuracy against the radius, {norm}",
        text="; ".join(told) + ".",
        axis=f"radius ({norm}{axis})",
        lines=tuple(
            _line(number, label, curve, place) for number, (label, curve) in enumerate(named)
        ),
        ticks=_named(norm, radii, place),
        table=tables.curves(norm, labels(curves), curves),
        told=tuple(words.overstated(masked)),
    )


def labels(curves: Sequence[Curve]) -> list[str]:
    """The defenses' names, with view and attack where a defense has several curves."""
    several = Counter(curve.defense for curve in curves)
    return [
        f"{curve.defense}, {words.of_curve(curve)}" if several[curve.defense] > 1 else curve.defense
        for curve in curves
    ]


def _line(number: int, label: str, curve: Curve, place: Callable[[float], float]) -> Line:
    points = [(place(point.eps), point) for point in _ordered(curve)]
    shape = _SHAPES[number % len(_SHAPES)]
    upper = [f"{x},{_up(point.ci95[1])}" for x, point in points]
    lower = [f"{x},{_up(point.ci95[0])}" for x, point in reversed(points)]
    y = _TOP + _PLOT + _AXIS + _STEP * number + 8
    return Line(
        label=lettering.shortened(label, WIDTH - _NAMES),
        colour=f"c{number % COLOURS}",
        dash=_DASHES[number % len(_DASHES)],
        points=" ".join(f"{x},{_up(point.accuracy)}" for x, point in points),
        band=" ".join(upper + lower),
        marks="".join(shape.format(x=x, y=_up(point.accuracy)) for x, point in points),
        y=y,
        key=shape.format(x=21, y=y),
    )


def _ordered(curve: Curve) -> list[CurvePoint]:
    return sorted(curve.points, key=lambda point: point.eps)


def _scale(radii: Sequence[float]) -> tuple[Callable[[float], float], str]:
    """Radius -> place on the axis, and what to say of the axis."""
    most = max(radii, default=0.0) or 1.0
    least = min((eps for eps in radii if eps > 0), default=most)
    roots = most > _WIDE * least

    def place(eps: float) -> float:
        share = math.sqrt(eps / most) if roots else eps / most
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    return place, ", square-root scale" if roots else ""


def _named(
    norm: str, radii: Sequence[float], place: Callable[[float], float]
) -> tuple[tuple[float, str], ...]:
    """The radii whose names fit beside each other; of a crowd the outer ones."""
    kept: list[float] = []
    for eps in radii:
        if not kept or place(eps) - place(kept[-1]) >= _APART:
            kept.append(eps)
    if radii and kept[-1] != radii[-1]:
        kept[-1] = radii[-1]
    return tuple((place(eps), figures.radius(eps, norm)) for eps in kept)


def _up(share: float) -> float:
    """An accuracy in [0, 1] as a place on the upright axis."""
    return round(_TOP + (1 - share) * _PLOT, 1)
