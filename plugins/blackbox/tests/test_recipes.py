"""The committed recipe is a run file that asks for both attacks."""

from pathlib import Path

from phalanx.runfile import read_run
from phalanx_blackbox.config import RaySConfig, SignHunterConfig

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.toml"


def test_the_recipe_asks_for_both_attacks():
    evaluation = read_run(SMOKE).evaluation
    rays, hunter, *_ = (use.params for use in evaluation.attacks)
    assert isinstance(rays, RaySConfig)
    assert isinstance(hunter, SignHunterConfig)
    assert rays.queries == hunter.queries == 1000
    assert [use.use for use in evaluation.attacks] == ["rays", "signhunter", "square", "pgd"]
