from __future__ import annotations

import pytest

from phalanx.errors import ConfigError, UnknownComponentError
from phalanx.evaluation.labels import attack_label, parse_attack
from phalanx.evaluation.protocol import load_protocol, protocol_names, resolve_attack, with_threat
from phalanx.registry import Registry
from phalanx.specs import L2, Linf


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(discover=False)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("fgsm", "fgsm"),
        ("pgd", "pgd"),
        ("pgd:steps=40", "pgd"),
        ("pgd:steps=100,step=0.01", "pgd:step=0.01,steps=100"),
        ("pgd:step=2/255,steps=40", "pgd:step=2/255"),
        ("pgd: start = clean", "pgd:start=clean"),
        ("apgd-ce:rho=0.5", "apgd-ce:rho=0.5"),
        ("art/DeepFool", "art/DeepFool"),
        ("art/DeepFool:max_iter=5,layers=[1, 2]", "art/DeepFool:layers=[1,2],max_iter=5"),
    ],
)
def test_labels_name_what_differs_and_read_back(text: str, label: str, registry: Registry) -> None:
    use = resolve_attack(parse_attack(text), threat=Linf(0.3), registry=registry)
    assert attack_label(use) == label
    again = resolve_attack(parse_attack(label), threat=Linf(0.3), registry=registry)
    assert again.params == use.params


def test_the_threat_comes_from_outside_unless_it_is_named(registry: Registry) -> None:
    use = resolve_attack({"use": "pgd"}, threat=Linf(0.3), registry=registry)
    assert str(use.params.threat) == "linf:0.3"  # type: ignore[attr-defined]
    own = parse_attack("pgd:threat=l2:0.5")
    named = resolve_attack(own, threat=Linf(0.3), registry=registry)
    assert named.params.threat == L2(0.5)  # type: ignore[attr-defined]
    assert attack_label(named) == "pgd"
    assert with_threat(named, Linf(0.1)).params.threat == Linf(0.1)  # type: ignore[attr-defined]
    assert resolve_attack(use, threat=L2(1.0), registry=registry).params.threat == L2(1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pgd:steps", "'steps' is not of the form key=value, as in pgd:steps=40,step=2/255"),
        ("pgd:steps=1,steps=2", "steps is given twice"),
    ],
)
def test_what_is_no_attack(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_attack(text)
    assert str(caught.value) == f"attack {text!r}: 1 problem\n  {problem}"


def test_unknown_names_and_keys(registry: Registry) -> None:
    with pytest.raises(UnknownComponentError, match="did you mean"):
        resolve_attack({"use": "pdg"}, registry=registry)
    with pytest.raises(ConfigError) as caught:
        resolve_attack(parse_attack("pgd:step_size=3"), registry=registry, source="--attack pgd")
    assert "--attack pgd: 1 problem" in str(caught.value)
    assert "step_size: unknown key; did you mean" in str(caught.value)


def test_the_shipped_protocols(registry: Registry) -> None:
    assert protocol_names(registry) == ("adaptive", "quick", "standard", "union")
    quick = load_protocol("quick", threat=Linf(0.3), registry=registry)
    assert quick.limit == 500
    assert [attack_label(use) for use in quick.attacks] == [
        "fgsm",
        "pgd",
        "apgd-ce:steps=50",
        "square:queries=500",
    ]
    standard = load_protocol("standard", threat=Linf(0.3), registry=registry)
    assert standard.limit is None
    assert [attack_label(use) for use in standard.attacks] == [
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]
    assert {str(use.params.threat) for use in standard.attacks} == {"linf:0.3"}  # type: ignore[attr-defined]
    written = {use.use: use.params.model_dump() for use in standard.attacks}
    assert written["apgd-t"]["targets"] == written["fab-t"]["targets"] == 9
    assert written["square"]["queries"] == 5000


def test_an_unknown_protocol(registry: Registry) -> None:
    with pytest.raises(UnknownComponentError) as caught:
        load_protocol("quik", registry=registry)
    expected = "unknown protocol 'quik'; did you mean 'quick'? known: adaptive, quick, standard, "
    expected += "union"
    assert str(caught.value) == expected


def test_a_nested_attack_at_its_default_is_left_out() -> None:
    whole = pytest.importorskip("phalanx_ensemble_attacks.config").MemberTransferConfig
    asked = resolve_attack({"use": "member-transfer"}, threat=Linf(0.1))
    assert isinstance(asked.params, whole)
    assert attack_label(asked) == "member-transfer"
    other = {"use": "member-transfer", "params": {"attack": "fgsm"}}
    assert attack_label(resolve_attack(other, threat=Linf(0.1))) == "member-transfer:attack=fgsm"
