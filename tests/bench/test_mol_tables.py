"""MoL's tables on a tiny run: what is counted, and that nothing is computed twice."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import phalanx
from phalanx.config import DataConfig
from phalanx.data import load_data
from phalanx.data.sets import Split
from phalanx.evaluation.cell import Outcome
from phalanx.training.artifacts import open_run

ROOT = Path(__file__).parents[2]
EXPERTS = [
    {"name": "clean"},
    {"name": "linf", "attack": {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 1}}},
]
BACKBONE = {"use": "small_cnn", "params": {"width": 2}}
ATTACKS = [
    {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}},
    {"use": "natural", "params": {"perturbation": "rotation"}},
]


def run(folder, use, params):
    return phalanx.train(
        {
            "data": {"use": "digits", "limit": 100},
            "defense": {"use": use, "params": {"backbone": BACKBONE, **params}},
            "training": {"epochs": 2, "batch_size": 20, "optimizer": {"name": "adam", "lr": 0.01}},
            "evaluation": {"threat": "linf:0.1", "attacks": ATTACKS, "limit": 50},
        },
        out=folder,
    )


@pytest.fixture(scope="module")
def mol_tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return importlib.import_module("bench.mol_tables")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, mol_tables):
    folder = tmp_path_factory.mktemp("mol")
    mol, none = run(folder / "mol", "mol", {"experts": EXPERTS}), run(folder / "none", "none", {})
    asked = ["--experts", folder / "mol", "--systems", folder / "mol", folder / "none"]
    asked += ["--out", folder / "out", "--routing", 30]
    mol_tables.main([str(part) for part in asked])
    return folder, [str(part) for part in asked], mol, none


def results(folder):
    return json.loads((folder / "out/results.json").read_text())


def test_rows_are_those_of_the_models(measured):
    folder, _, mol, _ = measured
    found = results(folder)
    assert list(found["systems"]) == ["mol", "none"]
    assert list(found["experts"]) == ["clean", "linf"]
    rows = ["clean", "pgd:steps=2 (linf:0.1)", "natural:perturbation=rotation", "all attacks"]
    for part in (*found["systems"].values(), *found["experts"].values()):
        assert list(part) == rows
        joint = part["all attacks"]["accuracy"]
        assert joint <= min(one["accuracy"] for one in part.values())
        assert all(one["n"] == 50 for one in part.values())
    batch = load_data("digits").test.fetch(torch.arange(50))
    for name, expert in zip(mol.model.names, mol.model.members, strict=True):
        with torch.no_grad():
            right = (expert(batch.x).argmax(1) == batch.y).float().mean()
        assert found["experts"][name]["clean"]["accuracy"] == pytest.approx(float(right))


# Images: right always; wrong under PGD; wrong when rotated; wrong when clean, right when rotated;
# wrong when clean, right under PGD; wrong when clean, right under both.
BITS = {
    "clean": [1, 1, 1, 0, 0, 0],
    "pgd": [1, 0, 1, 0, 1, 1],
    "natural": [1, 1, 0, 1, 0, 1],
}


@pytest.fixture
def bits(monkeypatch):
    """Evaluations come to these bits."""

    def outcome(cell):
        name = "clean" if cell.attack == "none" else json.loads(cell.attack)[0]
        return Outcome(torch.tensor([BITS[name]], dtype=torch.uint8), "exact", 10)

    monkeypatch.setattr(
        "phalanx.evaluation.cell.CellRun.made",
        lambda run, images, first: (images.x, outcome(run.cell)),
    )


def bench_of(mol_tables, run, out, *, seed=0, data=None):
    return mol_tables.Bench(
        out,
        data or load_data("digits"),
        run.config.evaluation.attacks,
        limit=6,
        images=10,
        seed=seed,
    )


def test_how_images_are_counted(measured, mol_tables, bits, tmp_path):
    folder, _, _, none = measured
    run = open_run(folder / "none")
    bench = bench_of(mol_tables, run, tmp_path)
    found = bench.accuracies("x", none.model)
    assert {name: round(6 * one["accuracy"]) for name, one in found.items()} == {
        "clean": 3,
        "pgd:steps=2 (linf:0.1)": 2,  # an image that is wrong when clean stays wrong
        "natural:perturbation=rotation": 4,  # of all images
        "all attacks": 1,  # right when clean and under each
    }
    assert all(one["n"] == 6 for one in found.values())
    assert bench.outcomes["x"].tolist() == [True, False, False, False, False, False]


def test_cells_of_other_images_are_not_taken(measured, mol_tables, bits, tmp_path, monkeypatch):
    folder, _, _, none = measured
    run, data = open_run(folder / "none"), load_data("digits")
    bench_of(mol_tables, run, tmp_path).accuracies("x", none.model)
    batch = data.test.fetch(torch.arange(10, 30))
    others = replace(data, test=Split.from_arrays(batch.x, batch.y))
    monkeypatch.setitem(BITS, "clean", [0] * 6)
    monkeypatch.setitem(BITS, "pgd", [0] * 6)
    found = bench_of(mol_tables, run, tmp_path, data=others).accuracies("x", none.model)
    assert (found["clean"]["accuracy"], found["all attacks"]["accuracy"]) == (0, 0)
    monkeypatch.undo()
    again = bench_of(mol_tables, run, tmp_path).accuracies("x", none.model)  # both sets are kept
    assert again["clean"]["accuracy"] == 0.5


def test_weights_of_other_images_are_not_taken(measured, mol_tables, tmp_path):
    folder, _, mol, _ = measured
    run, data = open_run(folder / "mol"), load_data("digits")
    batch = data.test.fetch(torch.arange(10, 30))
    others = replace(data, test=Split.from_arrays(batch.x, batch.y))
    config = run.config.defense.params
    first, second, third = (
        bench_of(mol_tables, run, tmp_path, data=one).weights("x", mol.model, config)
        for one in (data, others, data)
    )
    assert first != second
    assert first == third
    assert len(json.loads((tmp_path / "x-routing.json").read_text())) == 2 * len(EXPERTS)


def test_pairs_and_weights(measured):
    folder, *_ = measured
    found = results(folder)
    (pair,) = found["differences"]
    by_name = {name: part["all attacks"]["accuracy"] for name, part in found["systems"].items()}
    assert pair["difference"] == pytest.approx(by_name["mol"] - by_name["none"])
    assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
    assert list(found["routing"]) == ["mol"]
    assert [row["images"] for row in found["routing"]["mol"]["rows"]] == [30, 30]
    text = (folder / "out/results.md").read_text()
    assert "| all attacks |" in text
    assert "## Weights of mol" in text


def test_a_repeated_call_computes_nothing(measured, mol_tables, monkeypatch):
    folder, asked, *_ = measured
    before = (folder / "out/results.json").read_text()

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(mol_tables, "routing", refuse)
    monkeypatch.setattr("phalanx.evaluation.cell.CellRun.made", refuse)
    mol_tables.main(asked)
    assert (folder / "out/results.json").read_text() == before


def test_a_run_of_another_defense_has_no_experts(measured, mol_tables, capsys):
    folder, *_ = measured
    with pytest.raises(SystemExit):
        mol_tables.main(["--experts", str(folder / "none"), "--out", str(folder / "other")])
    assert "is no run of phalanx-mol, so it has no experts" in capsys.readouterr().err


def changed(run, part, **values):
    table = getattr(run.config, part).model_copy(update=values)
    return replace(run, config=run.config.model_copy(update={part: table}))


def test_a_first_run_without_attacks_is_refused_before_anything_is_judged(
    measured, mol_tables, monkeypatch, capsys, tmp_path
):
    folder, *_ = measured
    silent = changed(open_run(folder / "mol"), "evaluation", attacks=())
    monkeypatch.setattr(mol_tables, "open_run", lambda _: silent)
    monkeypatch.setattr(phalanx, "evaluate", None)
    with pytest.raises(SystemExit):
        mol_tables.main(["--experts", str(folder / "mol"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert (
        "mol names no attacks, so there is nothing to tabulate: name the attacks in [evaluation] "
        "of the first run's file" in said
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"use": "mnist"}, "mnist"),
        ({"use": "folder", "root": "photos"}, "folder at photos"),
    ],
)
def test_runs_of_other_data_are_refused(measured, mol_tables, data, told):
    folder, *_ = measured
    mol, none = (open_run(folder / name) for name in ("mol", "none"))
    other = replace(none, config=none.config.model_copy(update={"data": DataConfig(**data)}))
    assert mol_tables.problem([mol, none]) is None
    assert mol_tables.problem([mol, none, other]) == (
        f"none is of {told} and mol of digits: give runs of one data set"
    )


def test_something_is_asked(mol_tables, capsys):
    with pytest.raises(SystemExit):
        mol_tables.main(["--out", "x"])
    assert "give --experts RUN, --systems RUN" in capsys.readouterr().err
