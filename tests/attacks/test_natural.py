"""A perturbation in an attack's place: what it asks, what it keeps, what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from pydantic import Field, ValidationError

from phalanx import default_registry
from phalanx.attack import Targeted
from phalanx.attacks.config import NaturalConfig, PGDConfig
from phalanx.attacks.natural import NaturalAttack
from phalanx.config import PerturbationConfig, UseAttack
from phalanx.errors import ConfigError, PluginContractError, ThreatModelError
from phalanx.evaluation.protocol import resolve_attack, with_threat
from phalanx.perturbation import Perturbation
from phalanx.randomness import generator
from phalanx.specs import ComponentSpec, Kind, Linf, NoBall
from phalanx.testing import ConformanceError, check_component


class ShadeConfig(PerturbationConfig):
    """How dark."""

    depth: float = Field(0.5, description="Largest factor that is taken away.")
    cut: bool = Field(default=False, description="Lose a row of pixels.")


class Shade(Perturbation[ShadeConfig]):
    """Every image times a random factor."""

    def __call__(self, x, *, generator):
        factor = 1 - self.config.depth * torch.rand((len(x), 1, 1, 1), generator=generator)
        return (x * factor)[:, :, 1:] if self.config.cut else x * factor


@pytest.fixture(autouse=True)
def _shade() -> Iterator[None]:
    registry = default_registry()
    before = dict(registry._components), dict(registry._in_process)
    sys.modules.setdefault(__name__, sys.modules[Shade.__module__])
    registry.register(
        ComponentSpec(
            kind=Kind.PERTURBATION,
            name="shade",
            factory=f"{__name__}:Shade",
            config=f"{__name__}:ShadeConfig",
            summary="Shade.",
        )
    )
    yield
    registry._components, registry._in_process = before


def make(**params) -> NaturalAttack:
    use = UseAttack.model_validate({"use": "natural", "params": {"perturbation": "shade"} | params})
    attack = use.create()
    assert isinstance(attack, NaturalAttack)
    return attack


class Never:
    """A model that must not be asked."""

    rowwise = True

    def __call__(self, x):
        raise AssertionError("asked")


class Mean:
    """Scores (-m, m) of the mean pixel m, less a half; counts the images that it saw."""

    def __init__(self, *, rowwise: bool = True) -> None:
        self.rowwise, self.seen = rowwise, 0

    def __call__(self, x):
        self.seen += len(x)
        mean = x.flatten(1).mean(1) - 0.5
        return torch.stack([-mean, mean], 1)


IMAGES = torch.linspace(0.55, 1.0, 8).view(8, 1, 1, 1).expand(8, 1, 4, 4).contiguous()
BRIGHT = torch.ones(8, dtype=torch.long)


def test_one_draw_asks_no_model():
    attack = make()
    found = attack(Never(), IMAGES, BRIGHT, generator=generator(1))
    expected = attack.perturbation(IMAGES, generator=generator(1))
    assert torch.equal(found, expected)
    assert not attack.config.asks_model
    assert attack.threat == NoBall()


def draws(n: int, seed: int = 1) -> torch.Tensor:
    rng = generator(seed)
    return torch.stack([make().perturbation(IMAGES, generator=rng) for _ in range(n)])


@pytest.mark.parametrize("rowwise", [True, False])
def test_of_several_draws_the_worst_is_kept(rowwise):
    model = Mean(rowwise=rowwise)
    found = make(draws=5)(model, IMAGES, BRIGHT, generator=generator(1))
    tried = draws(5)
    if rowwise:  # the first that fools, else the darkest, whose cross-entropy is highest
        wrong = tried.mean((2, 3, 4)) <= 0.5
        rows = [
            int(w.nonzero()[0]) if w.any() else int(t)
            for w, t in zip(wrong.T, tried.mean((2, 3, 4)).argmin(0), strict=True)
        ]
    else:
        rows = tried.mean((2, 3, 4)).argmin(0).tolist()
    assert torch.equal(found, torch.stack([tried[k, n] for n, k in enumerate(rows)]))
    assert model.seen == 5 * 8
    assert make(draws=5).config.asks_model


def test_towards_labels_the_best_for_them_is_kept():
    found = make(draws=5)(
        Mean(rowwise=False), IMAGES, Targeted(torch.zeros_like(BRIGHT)), generator=generator(1)
    )
    assert torch.equal(found, draws(5).amin(0))


def test_more_draws_are_never_milder():
    model = Mean(rowwise=False)
    few, many = (
        make(draws=n)(model, IMAGES, BRIGHT, generator=generator(3)).mean((1, 2, 3)) for n in (2, 9)
    )
    assert bool((many <= few).all())


def test_an_observer_sees_each_draw():
    seen = []
    for n in (1, 3):
        seen.clear()
        make(draws=n)(
            Mean(),
            IMAGES,
            BRIGHT,
            generator=generator(1),
            observe=lambda step, x, loss: seen.append((step, len(x), loss.shape)),
        )
        assert seen == [(step, 8, (8,)) for step in range(n)]


def test_scores_that_are_not_finite_keep_an_image():
    def model(x):
        return torch.full((len(x), 2), torch.nan)

    found = make(draws=3)(model, IMAGES, BRIGHT, generator=generator(1))
    assert torch.equal(found, draws(1)[0])


def test_images_and_global_state_are_left_alone():
    before, x = torch.get_rng_state(), IMAGES.clone()
    make(draws=3)(Mean(), x, BRIGHT, generator=generator(1))
    assert torch.equal(x, IMAGES)
    assert torch.equal(before, torch.get_rng_state())


def test_another_shape_is_the_perturbations_fault():
    attack = make(perturbation={"use": "shade", "params": {"cut": True}})
    with pytest.raises(PluginContractError) as caught:
        attack(Never(), IMAGES, BRIGHT, generator=generator(1))
    assert "perturbation 'shade' returned (8, 1, 3, 4) for images (8, 1, 4, 4)" in str(caught.value)


# ---------------------------------------------------------------- it has no ball


def test_a_ball_is_refused():
    given = {"perturbation": "shade", "threat": "linf:0.1"}
    with pytest.raises(ConfigError) as caught:
        resolve_attack({"use": "natural", "params": given})
    assert str(caught.value).endswith(
        "threat: a natural perturbation has no ball, found linf:0.1: leave threat out, and set its "
        "strength in perturbation.params"
    )


def test_a_default_threat_is_not_taken():
    use = resolve_attack(
        {"use": "natural", "params": {"perturbation": "shade"}}, threat=Linf("8/255")
    )
    assert use.params.threat == NoBall()
    assert with_threat(use, Linf(0.1)) == use
    assert make().at(Linf(0.1)).threat == NoBall()


@pytest.mark.parametrize("given", [None, "none", NoBall()])
def test_no_ball_may_be_said(given):
    config = NaturalConfig.model_validate({"perturbation": "shade", "threat": given})
    assert config.threat == NoBall()
    assert NaturalConfig.model_validate_json(config.model_dump_json()) == config


def test_other_attacks_take_another_threat_and_ask():
    assert PGDConfig(threat=Linf(0.1)).at(Linf(0.2)).threat == Linf(0.2)
    assert PGDConfig(threat=Linf(0.1)).asks_model


def test_it_cannot_be_made_with_a_ball():
    config = make().config.model_copy(update={"threat": Linf(0.1)})
    with pytest.raises(ThreatModelError, match=r"cannot take threat linf:0\.1; it takes: noball"):
        NaturalAttack(config)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"perturbation": "sahde"}, {"perturbation": 3}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        NaturalConfig.model_validate({"perturbation": "shade"} | wrong)


@pytest.mark.parametrize("params", [{}, {"draws": 3}], ids=["one", "worst"])
def test_conformance(params):
    check_component("attack/natural", params={"perturbation": "shade"} | params)


def test_a_perturbation_that_leaves_the_box_does_not_conform():
    brighter = {"use": "shade", "params": {"depth": -3.0}}
    with pytest.raises(ConformanceError, match="none: an example leaves ball or box"):
        check_component("attack/natural", params={"perturbation": brighter})
