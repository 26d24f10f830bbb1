"""Threats, tasks and component specs: what they take, what they refuse, and with which words."""

import pytest
from hypothesis import given, strategies as st
from pydantic import TypeAdapter, ValidationError

from phalanx.runfile import problems_of
from phalanx.specs import (
    L1,
    L2,
    AnyThreat,
    ComponentSpec,
    Epsilon,
    Kind,
    Linf,
    NoBall,
    Preprocessing,
    Spec,
    Task,
    Union,
    parse_threat,
)

THREAT = TypeAdapter(AnyThreat)
HOW = "a threat is written as norm:epsilon with norm linf, l2 or l1, such as linf:8/255; found "


def problems(call, *arguments, **keywords):
    with pytest.raises(ValidationError) as caught:
        call(*arguments, **keywords)
    return problems_of(caught.value)


def component(**changes):
    given = {
        "kind": "defense",
        "name": "mine",
        "factory": "a.b:C",
        "config": "a.b:D",
        "summary": "One.",
        **changes,
    }
    return ComponentSpec(**given)


class TestThreats:
    @pytest.mark.parametrize(
        ("text", "threat"),
        [
            ("linf:8/255", Linf("8/255")),
            ("Linf:0.3", Linf(0.3)),
            (" l2:0.5 ", L2(0.5)),
            ("l1:12", L1(12)),
            ("none", NoBall()),
            ("linf:0.1+l2:1", Union(parts=(Linf(0.1), L2(1)))),
        ],
    )
    def test_text(self, text, threat):
        assert THREAT.validate_python(text) == threat
        assert THREAT.validate_python(str(threat)) == threat
        assert THREAT.validate_python(threat) is threat

    @pytest.mark.parametrize(
        ("threat", "text"),
        [
            (Linf("8/255"), "linf:8/255"),
            (Linf("0.5/255"), "linf:0.5/255"),
            (Linf(0.3), "linf:0.3"),
            (Linf(0.1234567), "linf:0.1234567"),
            (L2(128 / 255), "l2:128/255"),
            (Union(parts=(Linf(0.1), L1(2))), "linf:0.1+l1:2"),
            (NoBall(), "none"),
        ],
    )
    def test_written(self, threat, text):
        assert str(threat) == text
        assert THREAT.dump_python(threat) == text

    @given(st.floats(0, 1))
    def test_linf_is_read_back_exactly(self, eps):
        assert THREAT.validate_python(str(Linf(eps))) == Linf(eps)

    @given(st.floats(min_value=1e-300, max_value=1e300))
    def test_l2_is_read_back_exactly(self, eps):
        assert THREAT.validate_python(str(L2(eps))) == L2(eps)

    @pytest.mark.parametrize("value", ["linf", "linf8", "l3:1", "", 8, None, {"eps": 1}])
    def test_no_threat(self, value):
        assert problems(THREAT.validate_python, value) == [f"{HOW}{value!r}"]
        with pytest.raises(ValueError, match="a threat is written as"):
            parse_threat(value)

    @pytest.mark.parametrize("eps", ["9", "256/255", "-0.1", "nan", "1/0", "many"])
    def test_linf_outside_the_box(self, eps):
        [problem] = problems(Linf, eps)
        assert problem.startswith("eps: should be ")
        assert repr(eps) in problem or eps in ("256/255", "nan")

    @pytest.mark.parametrize("eps", ["0", "-1", "1/0"])
    def test_l2_must_be_positive(self, eps):
        assert problems(L2, eps)[0].startswith("eps: should be ")

    def test_epsilon(self):
        adapter = TypeAdapter(Epsilon)
        assert adapter.validate_python("8/255") == 8 / 255
        assert adapter.validate_python(1) == 1.0

    def test_frozen_and_hashable(self):
        with pytest.raises(ValidationError):
            Linf(0.1).eps = 0.2
        assert len({Linf(0.1), Linf(0.1), L2(0.1)}) == 2


class TestSpec:
    class Inner(Spec):
        members: int = 3

    class Outer(Spec):
        inner: "TestSpec.Inner | None" = None
        size: int

    def test_unknown_key_names_the_nearest(self):
        assert problems(self.Inner, memberz=1) == [
            "memberz: unknown key; did you mean 'members'? allowed: members"
        ]
        assert problems(self.Inner, zzz=1) == ["zzz: unknown key; allowed: members"]
        assert problems(NoBall, eps=1) == ["eps: unknown key; allowed: none"]

    def test_all_problems_at_once(self):
        assert problems(
            Task, name="x", shape=(1, 2), classes=1, train_size=0, mean=(), extra=1
        ) == [
            "shape.2: this key is required",
            "classes: should be greater than or equal to 2, found 1",
            "std: this key is required",
            "extra: unknown key; allowed: name, shape, classes, train_size, mean, std, "
            "class_names, preprocessing",
        ]

    def test_table_expected(self):
        assert problems(Task.model_validate, 3) == ["should be a table of keys, found 3"]


class TestComponentSpec:
    def test_declares(self):
        assert component().kind is Kind.DEFENSE
        assert component().family is None
        assert component(name="art/*").family == "art/"

    @pytest.mark.parametrize("name", ["Trs", "a_b", "a/b", "*", "-a", "", "a/*b"])
    def test_names(self, name):
        assert problems(component, name=name)[0].startswith("name: ")

    @pytest.mark.parametrize("dotted", ["a.b", "a:b.c", ":C", "a:", "1a:B", "a-b:C"])
    def test_dotted(self, dotted):
        assert problems(component, factory=dotted)[0].startswith("factory: ")

    def test_kind(self):
        assert problems(component, kind="defence") == [
            "kind: should be 'defense', 'attack', 'perturbation' or 'pruner', found 'defence'"
        ]


def test_preprocessing_defaults():
    assert Preprocessing(size=(224, 224)).interpolation == "bicubic"


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("how", "text"),
        [
            (
                {"size": (224, 224), "crop_pct": 0.875},
                "shorter side resized to 256 (bicubic), centre 224 x 224 cut out",
            ),
            (
                {"size": (32, 64), "crop_mode": "squash", "interpolation": "bilinear"},
                "both sides resized to 32 x 64 (bilinear), centre 32 x 64 cut out",
            ),
            (
                {"size": (48, 48), "crop_mode": "border", "fill": (1, 2, 3)},
                "longer side resized to 48 (bicubic), centre 48 x 48 cut out, borders filled with "
                "(1, 2, 3)",
            ),
        ],
    )
    def test_in_words(self, how, text):
        assert str(Preprocessing(**how)) == text

    def test_an_unknown_filter(self):
        told = problems(Preprocessing, size=(8, 8), interpolation="cubic")
        assert told == [
            "interpolation: should be 'nearest', 'box', 'bilinear', 'hamming', 'bicubic' or "
            "'lanczos', found 'cubic'"
        ]


@pytest.mark.parametrize("eps", ["inf", float("inf"), float("nan")])
def test_an_endless_radius_is_none(eps):
    with pytest.raises(ValidationError):
        L2(eps)
