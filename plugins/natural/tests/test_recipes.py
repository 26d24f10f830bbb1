"""The committed recipe is a run file; what it asks for is trained and judged."""

from __future__ import annotations

from pathlib import Path

import phalanx
from phalanx.evaluation.protocol import with_threat
from phalanx.runfile import config_hash, read_run
from phalanx.specs import Linf
from phalanx.training.plan import planned
from phalanx.training.run import train
from phalanx.training.transforms import Natural
from phalanx_natural.perturbations import Rotation

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.toml"
SHORT = {"data": {"limit": 64}, "training": {"epochs": 1}}


def test_the_recipe_trains_on_turned_images_and_judges_every_perturbation(tmp_path: Path) -> None:
    config = read_run(SMOKE, overrides=SHORT)
    run = train(config, out=tmp_path / "run")
    assert run.model.task is not None
    (phase,) = planned(
        config.defense.create(run.model.task).phases(run.model), config.training, run.model
    )
    (transform,) = phase.transforms
    assert isinstance(transform, Natural)
    assert isinstance(transform.perturbation, Rotation)
    assert transform.perturbation.config.max_angle == 30
    attacks = config.evaluation.attacks
    report = phalanx.evaluate(run.model, "digits", attacks=attacks, limit=32)
    turned = 'perturbation={use="rotation",params={max_angle=30}}'
    assert [(row.view, row.attack) for row in report.rows] == [
        ("none", f"natural:{turned}"),
        ("deployed", f"natural:draws=10,{turned}"),
        ("none", "natural:perturbation=rotation"),
        ("none", "natural:perturbation=fog"),
        ("none", "natural:perturbation=snow"),
        ("worst", "worst"),
    ]
    assert {row.threat for row in report.rows} == {"none"}
    assert report.rows[-1].robust_accuracy <= min(row.robust_accuracy for row in report.rows)


def test_the_perturbation_is_part_of_what_is_trained() -> None:
    given = {"defense": {"use": "none"}, "training": {"perturbation": "fog"}}
    spelled = {"defense": {"use": "none"}, "training": {"perturbation": {"use": "fog"}}}
    hashes = [
        config_hash(read_run(one))
        for one in (
            given,
            spelled,
            {"defense": {"use": "none"}},
            {"defense": {"use": "none"}, "training": {"perturbation": "snow"}},
        )
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_threat_given_on_the_command_line_leaves_it_alone() -> None:
    for use in read_run(SMOKE).evaluation.attacks:
        assert with_threat(use, Linf(0.1)) == use
