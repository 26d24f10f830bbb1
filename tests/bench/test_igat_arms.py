"""The arithmetic of iGAT's ablation: pairs, intervals, verdicts, and what makes up an arm."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

import phalanx
from phalanx.data import load_data
from phalanx.runfile import read_run
from phalanx.specs import Linf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.igat_arms")


def job(arms, arm, seed=0, out=Path("out")):
    return arms.Job(arm, seed, Path("base"), out, arms.RECIPE, 10)


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        ("soft", {}),
        ("opposite", {"rule": "opposite"}),
        ("random", {"rule": "random"}),
        ("hard", {"rule": "hard"}),
        ("beta0", {"beta": 0.0}),
        ("zero", {"alpha": 0.0, "beta": 0.0}),
    ],
)
def test_an_arm_changes_one_thing_of_the_recipe(arms, arm, changed):
    config, recipe = job(arms, arm, 3).config(), read_run(arms.RECIPE)
    ours, own = config.model_dump(mode="json"), recipe.model_dump(mode="json")
    assert (
        own["defense"]["params"] | {"rule": "soft", "alpha": 5.0, "beta": 10.0}
        == (own["defense"]["params"])
    )
    own["defense"]["params"] |= changed
    own |= {"seed": 3, "init": ours["init"]}
    assert ours == own
    assert config.init.sources == ("base",)
    assert config.evaluation.threat == Linf(0.1)
    assert config.evaluation.attacks[0].params.steps == 100
    assert job(arms, arm, 3).folder == Path("out") / f"{arm}-3"
    assert job(arms, "base", -1).folder == Path("out/base")


def test_differences_are_paired_by_image(arms):
    rng = np.random.default_rng(0)
    pairs = [(rng.random(400) < 0.6, rng.random(400) < 0.5) for _ in range(5)]
    found = arms.difference(range(5), pairs)
    points = [100 * (one.mean() - other.mean()) for one, other in pairs]
    assert [entry["points"] for entry in found["seeds"].values()] == pytest.approx(points, abs=1e-4)
    first = found["seeds"]["0"]
    assert first["only_first_right"] == int((pairs[0][0] & ~pairs[0][1]).sum())
    expected = stats.ttest_1samp(points, 0).confidence_interval(0.95)
    assert found["ci95_seeds"] == pytest.approx(list(expected), abs=1e-3)
    of_image = 100 * np.mean([one * 1.0 - other for one, other in pairs], axis=0)
    normal = stats.norm.interval(0.95, of_image.mean(), of_image.std() / 20)
    assert found["ci95_images"] == pytest.approx(list(normal), abs=1e-3)
    assert found["mean"] == pytest.approx(np.mean(points), abs=1e-4)


@pytest.mark.parametrize(
    ("seeds", "images", "expected"),
    [
        ([0.1, 2.0], [0.2, 1.9], "holds"),
        ([0.1, 2.0], [-0.2, 2.3], "not resolved"),
        ([-0.1, 2.2], [0.2, 1.9], "not resolved"),
        ([-2.0, -0.1], [-1.9, -0.2], "does not hold"),
        ([-2.0, -0.1], [-2.3, 0.2], "not resolved"),
        (None, [0.2, 1.9], "not resolved"),
    ],
)
def test_a_verdict_needs_both_intervals(arms, seeds, images, expected):
    assert arms.verdict(seeds, images) == expected


def test_one_seed_has_no_interval_over_seeds(arms):
    pair = (np.array([True, True]), np.array([True, False]))
    found = arms.difference([0], [pair])
    assert "ci95_seeds" not in found
    assert found["ci95_images"] == pytest.approx(
        [50 - 1.959964 * 50 / 2**0.5, 50 + 69.2952], abs=1e-3
    )
    assert found["verdict"] == "not resolved"


def test_outcomes_are_right_in_all_cells_named(arms, tmp_path):
    cells = tmp_path / "evaluation/cells"
    cells.mkdir(parents=True)
    for name, bits in (("clean", [1, 0, 1]), ("pgd", [1, 1, 0]), ("stale", [0, 0, 0])):
        save_file({"bits": torch.tensor([bits], dtype=torch.uint8)}, cells / name)
    assert arms.outcomes(tmp_path, [["clean"], ["pgd"]]).tolist() == [True, False, False]
    assert arms.outcomes(tmp_path, [["clean"]]).tolist() == [True, False, True]


@pytest.fixture
def small(arms, tmp_path):
    """A trained base on digits and a recipe of iGAT over it, with two attacks."""
    base = {
        "data": {"use": "digits", "limit": 32},
        "defense": {
            "use": "adp",
            "params": {"members": 2, "backbone": {"use": "small_cnn", "params": {"width": 2}}},
        },
        "training": {"epochs": 1, "batch_size": 16},
    }
    run = phalanx.train(base, out=tmp_path / "base")
    pgd = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 1}}
    attacks = [{"use": "pgd", "params": {"steps": 1}}, {"use": "pgd", "params": {"steps": 4}}]
    tuned = {"use": "igat", "params": {"base": base["defense"], "attack": pgd}}
    judged = {"threat": "linf:0.1", "limit": 20, "attacks": attacks}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({**base, "defense": tuned, "evaluation": judged}))

    def one(arm, seed=0):
        return arms.Job(arm, seed, run.path, tmp_path / "out", recipe, 20)

    return one


def test_a_trained_arm_is_not_trained_again(arms, small, tmp_path, monkeypatch):
    """The whole way on digits: two arms and the base, then again, then the summary."""
    jobs = [small("soft"), small("opposite"), small("base", -1)]
    records = [arms.work(one) for one in jobs]
    for name in ("evaluate", "asked"):
        monkeypatch.setattr(arms, name, None)
    assert [arms.work(one) for one in jobs] == records
    found = arms.summary(records, tmp_path / "out")
    assert set(found["arms"]) == {"soft", "opposite", "base"}
    assert list(found["differences"]) == ["soft - opposite"]
    for record in records:
        for asked in (record["owners"]["misclassified"], record["owners"]["all"]):
            assert set(asked) == {"soft", "hard", "random", "opposite", "member"}
            assert all(0.0 <= share <= 1.0 for share in asked.values())


def test_accuracies_are_of_this_evaluations_cells(arms, small, monkeypatch):
    """Of both attacks together, as the report's worst row, whatever else the folder holds."""
    one = small("base", -1)
    record = arms.work(one)
    report = json.loads((one.folder / "evaluation/report.json").read_text())
    (worst,) = [row for row in report["rows"] if row["attack"] == "worst"]
    assert record["robust_accuracy"] == pytest.approx(worst["robust_accuracy"])
    assert record["clean_accuracy"] == pytest.approx(worst["clean_accuracy"])
    assert record["attack"] == "pgd:steps=1 (linf:0.1), pgd:steps=4 (linf:0.1)"
    assert arms.outcomes(one.folder, record["cells"]).mean() == record["robust_accuracy"]
    config, cells = one.config(), one.folder / "evaluation/cells"
    model, data = phalanx.load(one.base), load_data("digits")
    evaluation = config.evaluation
    for changed in ({"threat": "linf:1"}, {"limit": 10}, {"attacks": ["pgd:steps=9"]}):
        asked = {"threat": "linf:0.1", "attacks": ["pgd:steps=1", "pgd:steps=4"], "limit": 20}
        phalanx.evaluate(model, data, **asked | changed, views=("deployed",), out=cells.parent)
    assert len(list(cells.iterdir())) > len(record["cells"]) == 3
    other = arms.open_run(one.base).model  # of other weights
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    arms.evaluate(other, config, data, one.folder)
    for name in ("evaluate", "asked"):
        monkeypatch.setattr(arms, name, None)
    assert arms.work(one) == record
    (cells / record["cells"][2][0]).unlink()
    assert arms.cells_of(one.folder, model, config, data) is None
    assert evaluation.limit == 20


def test_a_record_of_an_earlier_version_is_read(arms, small, monkeypatch):
    """One that names no cells: these are found, and nothing is computed again."""
    one = small("soft")
    record = arms.work(one)
    before = {key: value for key, value in record.items() if key != "cells"}
    before["last_epoch"] = record["last_epoch"] | {"log/igat/owner_right": 0.1}
    (one.folder / "arm.json").write_text(json.dumps(before | {"seconds": {"training": 9.0}}))
    for name in ("evaluate", "asked"):
        monkeypatch.setattr(arms, name, None)
    assert arms.work(one) == record | {"seconds": {"training": 9.0}}


def test_a_recipe_without_attacks_is_refused(arms, small, tmp_path):
    one = small("soft")
    table = json.loads(one.recipe.read_text())
    one.recipe.write_text(json.dumps(table | {"evaluation": {"threat": "linf:0.1"}}))
    with pytest.raises(ValueError, match=r"names no attacks: write \[evaluation\] attacks"):
        arms.work(one)


def test_owners_of_a_base_whose_settings_know_no_attack(arms, tmp_path):
    base = {"use": "none", "params": {"members": 2, "backbone": "small_cnn"}}
    pgd = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 1}}
    config = read_run(
        {
            "data": {"use": "digits"},
            "defense": {"use": "igat", "params": {"base": base, "attack": pgd}},
        }
    )
    assert not hasattr(config.defense.params.base.params, "attack")
    data = load_data("digits")
    model = config.defense.create(data.task).build()
    assert arms.asked(model, config, data, 4)["images"] == 4
