"""Geometry of the pictures, and that each says in words what it shows."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, strategies as st

from phalanx.evaluation.findings import Curve, CurvePoint, Transfer
from phalanx.report import lettering, lines, maps
from phalanx.report.model import Report


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def test_each_picture_says_in_words_what_it_shows(report: Report) -> None:
    shown = pictures(report.to_html())
    assert len(shown) == 3  # overview and one for each defense
    for picture in shown:
        assert 'role="img"' in picture
        (labelled,) = re.findall(r'aria-labelledby="([^"]+)"', picture)
        for name in labelled.split():
            assert f'id="{name}"' in picture
    assert "none under linf:0.1: clean 95.0 %, worst 0.0 %" in shown[0]
    clm = shown[1]  # the better of two incomplete ones stands first
    words = "clean 95.0 %; one-draw · fgsm 61.2 % (58.2 – 64.2 %); expected · fgsm 31.2 %"
    assert words in clm
    assert len(re.findall(r'<rect class="attack"', clm)) == 2
    assert len(re.findall(r'class="whisker"', clm)) == 3
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="12"', clm)]
    assert widths == pytest.approx([278 * a for a in (0.95, 0.612, 0.312, 0.3017)], abs=0.06)


def test_a_report_of_everything_has_its_pictures(full: Report) -> None:
    shown = pictures(full.to_html())
    # overview, 2 norms, 2 matrices, 7 pairs of a defense and a threat
    assert len(shown) == 1 + 2 + 2 + 8
    assert "clm: 0: 95.0 %, 1/255: 89.2 %" in shown[1]
    assert "member 3 on examples for member 1 50.0 %, member 2 45.0 %, member 3 –" in shown[-1]


def line_of(shares: dict[float, float], defense: str = "a", view: str = "deployed") -> Curve:
    points = tuple(CurvePoint(eps=e, accuracy=a, ci95=(a, a)) for e, a in shares.items())
    return Curve(defense=defense, norm="linf", view=view, attack="pgd", n=10, points=points)


def test_a_curve_goes_from_the_axis_to_the_right_edge() -> None:
    picture = lines.of_norm("c", "linf", curves=[line_of({0.2: 0.0, 0.0: 1.0, 0.1: 0.5})])
    (curve,) = picture.lines
    left, right, top, bottom = picture.left, picture.right, picture.top, picture.bottom
    places = [[float(place) for place in point.split(",")] for point in curve.points.split()]
    middle = [(left + right) / 2, (top + bottom) / 2]
    assert places == [[left, top], middle, [right, bottom]]
    assert picture.axis == "radius (linf)"
    assert [name for _, name in picture.ticks] == ["0", "0.1", "0.2"]
    (line,) = picture.table.lines
    assert line == ("a", "10", "100.0 (100.0 – 100.0)", "50.0 (50.0 – 50.0)", "0.0 (0.0 – 0.0)")


def test_radii_far_apart_stand_on_a_square_root_axis() -> None:
    picture = lines.of_norm("c", "linf", curves=[line_of({0.0: 1.0, 0.01: 0.5, 1.0: 0.0})])
    places = [float(one.split(",")[0]) for one in picture.lines[0].points.split()]
    whole = picture.right - picture.left
    assert [place - picture.left for place in places] == pytest.approx([0, whole / 10, whole])
    assert picture.axis == "radius (linf, square-root scale)"
    assert [name for _, name in picture.ticks] == ["0", "1"]  # 0.01 would run into 0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12, unique=True))
def test_names_of_radii_stand_apart_and_the_largest_has_one(radii: list[float]) -> None:
    picture = lines.of_norm("c", "linf", curves=[line_of(dict.fromkeys(radii, 0.5))])
    places = [place for place, _ in picture.ticks]
    assert all(b - a >= 46 for a, b in itertools.pairwise(places))
    assert all(picture.left <= place <= picture.right for place in places)
    if max(radii) > 0:
        assert places[-1] == picture.right


def test_curves_differ_without_colour_and_are_named_apart() -> None:
    curves = [line_of({0.0: 1.0}, f"d{number}") for number in range(30)]
    curves.append(line_of({0.0: 1.0}, "d0", view="expected"))
    picture = lines.of_norm("c", "linf", curves=curves)
    shapes = [re.sub(r"M[\d.]+ [\d.]+", "", one.marks) for one in picture.lines]
    looks = {(one.dash, shape) for one, shape in zip(picture.lines, shapes, strict=True)}
    assert len(looks) == 30  # 5 dashes and 6 shapes
    assert picture.lines[0].label == "d0, deployed · pgd"
    assert picture.lines[30].label == "d0, expected · pgd"
    assert picture.lines[1].label == "d1"
    ends = [one.y for one in picture.lines]
    assert max(ends) + 8 <= picture.height


def test_a_matrix_has_a_number_in_each_cell() -> None:
    matrix = Transfer(kind="models", threat="linf:0.1", targets=("a", "b"), sources=("a", "b", "c"),
                      accuracy=((0.0, 0.5, None), (1.0, 0.25, 0.125)), n=10)  # fmt: skip
    picture = maps.of_transfer("m", matrix)
    assert [cell.text for cell in picture.cells] == ["0.0", "50.0", "–", "100.0", "25.0", "12.5"]
    assert [cell.shade for cell in picture.cells] == [0.0, 0.4, None, 0.8, 0.2, 0.1]
    places = {(cell.x, cell.y) for cell in picture.cells}
    assert len(places) == 6
    assert max(x for x, _ in places) + picture.cell_width <= picture.width
    assert max(y for _, y in places) + picture.cell_height <= picture.height
    assert picture.table.lines[1] == ("b", "100.0 %", "25.0 %", "12.5 %")
    assert picture.title == "Transfer between models under linf:0.1, 10 images"


@given(st.text(max_size=80), st.floats(15.0, 400.0))
def test_a_shortened_text_fits_and_keeps_its_ends(text: str, room: float) -> None:
    short = lettering.shortened(text, room)
    assert lettering.width(short) <= room
    assert short == text or any(
        letter == "…" and text.startswith(short[:at]) and text.endswith(short[at + 1 :])
        for at, letter in enumerate(short)
    )


def test_what_fits_is_left_alone_and_ends_tell_names_apart() -> None:
    assert lettering.shortened("clm", 100) == "clm"
    names = [f"resnet18-pruned-filters-8x-seed-{seed}" for seed in (1, 2)]
    short = [lettering.shortened(name, 140) for name in names]
    assert short[0] != short[1]
    assert all(name.startswith("resnet18") for name in short)
