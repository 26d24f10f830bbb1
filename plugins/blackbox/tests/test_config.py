import pytest
from pydantic import ValidationError

from phalanx.api import L1, L2, Linf, NoBall, ThreatModelError
from phalanx_blackbox.config import RaySConfig, SignHunterConfig
from phalanx_blackbox.rays import RayS
from phalanx_blackbox.signhunter import SignHunter


def test_defaults_are_the_papers():
    rays, hunter = RaySConfig(), SignHunterConfig()
    assert (rays.queries, rays.tolerance, rays.votes, rays.stop) == (10_000, 1e-3, 1, "success")
    assert (hunter.queries, hunter.loss, hunter.draws) == (10_000, "ce", 1)


@pytest.mark.parametrize(
    ("config", "params", "told"),
    [
        (
            RaySConfig,
            {"votes": 6, "queries": 11},
            "votes = 6 and queries = 11 leave no decision beside that on the clean image: write "
            "queries = 12 or more, or fewer votes",
        ),
        (
            SignHunterConfig,
            {"draws": 1, "queries": 1},
            "draws = 1 and queries = 1 leave no loss beside that of the clean image: write "
            "queries = 2 or more, or fewer draws",
        ),
    ],
)
def test_a_budget_for_the_clean_image_alone_is_refused(config, params, told):
    with pytest.raises(ValidationError) as caught:
        config(**params)
    assert [line["msg"] for line in caught.value.errors()] == [f"Value error, {told}"]


def test_smallest_budgets():
    assert RaySConfig(votes=6, queries=12).votes == 6
    assert SignHunterConfig(draws=6, queries=12).draws == 6


@pytest.mark.parametrize(("attack", "config"), [(RayS, RaySConfig), (SignHunter, SignHunterConfig)])
@pytest.mark.parametrize("threat", [L1(12.0), NoBall()])
def test_other_threats_are_refused(attack, config, threat):
    with pytest.raises(ThreatModelError) as caught:
        attack(config(threat=threat))
    assert str(caught.value) == (
        f"attack {attack.__name__} cannot take threat {threat}; it takes: linf, l2"
    )


def test_at_another_threat_the_settings_stay():
    moved = RayS(RaySConfig(threat=Linf(0.1), votes=3)).at(L2(2.0))
    assert (moved.threat, moved.config.votes) == (L2(2.0), 3)
