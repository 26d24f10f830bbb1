"""``reproductions.toml``: every plugin's fits ledger and recipes; claims, runs and numbers."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from phalanx import catalog, claims, reproduction
from phalanx.claims import Wanted, claim_of, wanted
from phalanx.cli.reproduce_lines import (
    Line,
    Number,
    attacked_number,
    clean_number,
    conditional_number,
    gain,
)
from phalanx.data import catalog as data_catalog
from phalanx.errors import ConfigError, UnknownComponentError
from phalanx.evaluation.rows import Row
from phalanx.evaluation.statistics import wilson
from phalanx.registry import default_registry
from phalanx.reproduction import Declared, Reproduction, Run, ScaleName, laid_over
from phalanx.runfile import problems_of
from phalanx.specs import Task

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("plugins/*/reproductions.toml"))
FOUND = reproduction.found_in(default_registry())
PAIRS = [(one, scale) for one in FOUND.reproductions for scale in one.reproduction.scales]
NAMES = [f"{one.name}-{scale}" for one, scale in PAIRS]


def configs(declared, scale, out=Path("out")):
    return reproduction.configs_of(
        declared,
        scale,
        out=out,
        homes=FOUND.homes,
        catalog=catalog.load(),
        registry=default_registry(),
    )


# ---------------------------------------------------------------- the plugins' own files


def test_every_plugins_file_is_found_and_read():
    assert {path.parent.name for path in FILES} == {one.plugin for one in FOUND.reproductions}
    assert {"adp", "clm", "dverge", "igat", "mol", "multi", "pdd", "rls"} <= set(FOUND.homes)
    assert FOUND.failures == {}


@pytest.mark.parametrize(("declared", "scale"), PAIRS, ids=NAMES)
def test_claims_recipes_and_rows_fit_together(declared, scale):
    """Every claim is found once, every recipe is valid, every row will be in its run's report."""
    every = wanted(declared, catalog.load())
    here = claims.answered(every, scale, configs(declared, scale))
    assert here
    asked = {run for one in here for run in (one.run, *one.over)}
    begun = {run.init for run in declared.reproduction.scales[scale].runs}
    assert asked | begun - {""} == set(declared.reproduction.scales[scale].ids)


@pytest.mark.parametrize(("declared", "scale"), PAIRS, ids=NAMES)
def test_the_papers_scale_is_of_the_claims_data_and_threats(declared, scale):
    here = claims.answered(wanted(declared, catalog.load()), scale, configs(declared, scale))
    apart = [one.run for one in here if one.incomparable]
    if scale is ScaleName.PAPER:
        assert set(apart) <= {"fog"}
    if apart and set(apart) != {"fog"}:
        assert "for CIFAR-10" in declared.reproduction.scales[scale].differs


@pytest.mark.parametrize(
    ("declared", "scale"),
    [pair for pair in PAIRS if pair[1] is ScaleName.CPU],
    ids=[name for name in NAMES if name.endswith("cpu")],
)
def test_runs_can_be_built_and_planned_and_have_the_views(declared, scale):
    from phalanx.training.artifacts import build_model
    from phalanx.training.plan import planned

    built = {}
    for name, config in configs(declared, scale).items():
        known = data_catalog.info(config.data.use)
        task = Task(train_size=known.train_size, **_of(known))
        built[name] = model = build_model(config, task)
        phases = config.defense.create(task).phases(model)
        assert planned(phases, config.training, model, held_out=0)
    for one in wanted(declared, catalog.load()):
        if scale in one.scales and one.attack:
            assert one.view in {*built[one.run].views(), "worst", "none"}


def _of(known):
    return {name: getattr(known, name) for name in ("name", "shape", "classes", "mean", "std")}


def test_wheels_ship_what_is_named():
    named = {path.parent.name for path in FILES}
    for declared, scale in PAIRS:
        runs = declared.reproduction.scales[scale].runs
        named |= {run.recipe.rpartition("/")[0] or declared.plugin for run in runs}
    for plugin in named:
        folder = ROOT / "plugins" / plugin
        build = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
        wheel = build["targets"]["wheel"]
        [package] = wheel["packages"]
        shipped = {"recipes": f"{package}/recipes"}
        if (folder / "reproductions.toml").is_file():
            shipped["reproductions.toml"] = f"{package}/reproductions.toml"
        assert wheel["force-include"] == shipped


def test_an_ensemble_is_fine_tuned_from_its_own_base(tmp_path):
    declared = reproduction.choose("igat/table1-cifar10", FOUND, catalog.load())
    found = configs(declared, ScaleName.PAPER, tmp_path)
    begun = {name: config.init.from_ for name, config in found.items() if config.init}
    assert begun == {
        "igat-adp-cifar10": str(tmp_path / "adp-cifar10"),
        "igat-dverge-cifar10": str(tmp_path / "dverge-cifar10"),
    }
    for tuned, base in (
        ("igat-adp-cifar10", "adp-cifar10"),
        ("igat-dverge-cifar10", "dverge-cifar10"),
    ):
        assert found[tuned].defense.params.base == found[base].defense


def test_the_baseline_of_pdd_is_trained_as_pdd_is():
    declared = reproduction.choose("pdd/table2", FOUND, catalog.load())
    found = configs(declared, ScaleName.PAPER)
    from phalanx.training.artifacts import build_model
    from phalanx.training.plan import planned

    for data, epochs in (("fashion-mnist", 40), ("cifar100", 150)):
        phases = []
        for kind in ("baseline", "pdd-deg"):
            config = found[f"{data}-{kind}"]
            small = config.defense.params.model_copy(
                update={
                    "backbone": config.defense.params.backbone.model_copy(
                        update={"params": {"width": 2}}
                    )
                }
            )
            defense = config.defense.model_copy(update={"params": small})
            config = config.model_copy(update={"defense": defense})
            known = data_catalog.info(config.data.use)
            task = Task(train_size=known.train_size, **_of(known))
            model = build_model(config, task)
            assert config.defense.params.normalization == "none"
            whole = planned(config.defense.create(task).phases(model), config.training, model)
            phases += whole
        one, other = phases
        assert (one.epochs, one.batch_size) == (other.epochs, other.batch_size) == (epochs, 64)
        assert one.optimizer == other.optimizer
        for progress in (0.0, 0.3, 1.0):
            assert one.schedule(progress) == pytest.approx(other.schedule(progress))
        assert len(one.transforms) == len(other.transforms)


# ---------------------------------------------------------------- claims


LEDGER = catalog.read(
    """
schema = 1
[[plugin]]
id = "toy"
package = "phalanx-toy"
path = "plugins/toy"
entry_point = "phalanx_toy.plugin"
api = ">=1.0,<2"
core = ">=0.1,<0.2"
status = "experimental"
[[plugin.component]]
kind = "defense"
name = "toy"
summary = "A toy."
[[plugin.component.claim]]
source = "Table 1"
dataset = "mnist"
metric = "clean_accuracy"
setting = "small, wide"
value = 99.0
[[plugin.component.claim]]
source = "Table 1"
dataset = "mnist"
metric = "robust_accuracy"
threat = "linf:8/255"
attack = "fgsm"
setting = "small, wide"
value = 50.0
[[plugin.component.claim]]
source = "Table 2"
dataset = "mnist"
metric = "kappa"
value = 0.4
"""
)
CPU = {"differs": "small", "run": [{"id": "a", "recipe": "a.toml"}]}


def declared(answers, **scales):
    table = {"name": "t", "component": "toy", "title": "T", "answers": answers}
    return Declared("toy", Reproduction.model_validate(table | (scales or {"cpu": CPU})))


def problems(answers, **scales):
    with pytest.raises(ConfigError) as caught:
        wanted(declared(answers, **scales), LEDGER)
    return caught.value.problems


def test_a_claim_is_found_by_fields_that_fit_one():
    found = claim_of({"metric": "clean_accuracy", "setting": "wide"}, "toy", LEDGER)
    assert found.value == 99.0
    with pytest.raises(LookupError) as caught:
        claim_of({"dataset": "mnist", "setting": "small"}, "toy", LEDGER)
    assert str(caught.value) == (
        "2 claims of 'toy' in registry.toml with dataset = 'mnist', setting = 'small', not one"
    )
    with pytest.raises(LookupError, match=r"no claim of 'gal' in registry\.toml"):
        claim_of({"dataset": "mnist"}, "gal", LEDGER)


def test_all_wrong_rows_are_told_at_once():
    rows = [{"attack": "pgd"}, {"metric": "kappa"}, {"attack": "fgsm"}, {"value": 50.0}]
    assert problems([{"run": "a", "rows": rows}]) == (
        "run a: no claim of 'toy' in registry.toml with attack = 'pgd', not one",
        "run a: no row of a report has metric 'kappa'",
        "run a: robust accuracy, fgsm, linf:8/255 is answered twice at one scale",
    )
    group = {"run": "a", "over": ["a"], "rows": [{"metric": "clean_accuracy"}]}
    assert problems([group]) == (
        "run a: metric 'clean_accuracy' and over = ['a'] do not go together",
    )


def test_a_row_is_the_claims_unless_it_says_otherwise():
    rows = [
        {"metric": "clean_accuracy"},
        {"attack": "fgsm", "by": "worst", "under": "linf:0.1", "note": "N"},
    ]
    clean, attacked = wanted(declared([{"run": "a", "view": "v", "rows": rows}]), LEDGER)
    assert (clean.attack, clean.threat, clean.view) == ("", "", "")
    assert (attacked.attack, attacked.threat, attacked.view) == ("worst", "linf:0.1", "worst")
    [plain] = wanted(declared([{"run": "a", "rows": [{"attack": "fgsm"}]}]), LEDGER)
    assert (plain.attack, plain.threat, plain.view) == ("fgsm", "linf:8/255", "deployed")


# ---------------------------------------------------------------- the declaration


def refused(answers, **scales):
    with pytest.raises(ValueError, match="Reproduction") as caught:
        declared(answers, **scales)
    return problems_of(caught.value)


@pytest.mark.parametrize(
    ("scales", "told"),
    [
        ({"cpu": CPU | {"differs": ""}}, "cpu needs 'differs': what is not as in the paper"),
        ({"paper": None}, "a reproduction needs 'paper' or 'cpu', its runs"),
        (
            {"cpu": CPU | {"run": CPU["run"] * 2}},
            "cpu: two runs are called 'a'",
        ),
        (
            {"cpu": CPU | {"run": [{"id": "a", "recipe": "a.toml", "init": "b"}]}},
            "cpu: run 'a' begins with 'b', which is no run before it",
        ),
        ({"cpu": CPU | {"run": []}}, "cpu: a scale needs 'run', what is trained"),
        (
            {"cpu": CPU | {"runs": []}},
            "cpu.runs: unknown key; did you mean 'run'? allowed: differs, takes, run",
        ),
        (
            {"cpu": CPU | {"run": [{"id": "b", "recipe": "a.toml"}]}},
            "no run is called 'a' at any scale",
        ),
    ],
)
def test_scales_are_whole(scales, told):
    assert refused([{"run": "a", "rows": [{"attack": "fgsm"}]}], **scales) == [told]


def test_answers_name_runs_that_there_are():
    row = {"rows": [{"attack": "fgsm"}]}
    assert refused([{"run": "a", "scales": ["paper"], **row}]) == ["no run is called 'a' at paper"]
    assert refused([{"run": "a", "over": ["b"], **row}]) == ["no run is called 'b' at cpu"]
    assert refused([{"run": "a", "rows": []}]) == [
        "a reproduction needs 'answers' with 'rows', the claims it is held to"
    ]
    [told] = refused([{"run": "a", "rows": [{"atack": "fgsm"}]}])
    assert told.startswith("answers.0.rows.0.atack: unknown key; did you mean 'attack'?")


def test_a_scale_that_only_some_claims_have():
    both = {"cpu": CPU, "paper": {"run": [{"id": "a", "recipe": "a.toml"}]}}
    answers = [
        {"run": "a", "rows": [{"attack": "fgsm"}]},
        {"run": "a", "scales": ["paper"], "rows": [{"metric": "clean_accuracy"}]},
    ]
    found = wanted(declared(answers, **both), LEDGER)
    assert [one.scales for one in found] == [("paper", "cpu"), ("paper",)]


# ---------------------------------------------------------------- runs


def test_another_component_brings_its_own_settings_alone():
    recipe = {"defense": {"use": "pdd", "params": {"variant": "pdd", "members": 3}}, "seed": 0}
    same = laid_over(recipe, {"defense": {"params": {"members": 5}}})
    assert same["defense"] == {"use": "pdd", "params": {"variant": "pdd", "members": 5}}
    other = laid_over(recipe, {"defense": {"use": "none", "params": {"members": 5}}})
    assert other == {"defense": {"use": "none", "params": {"members": 5}}, "seed": 0}
    assert recipe["defense"]["params"] == {"variant": "pdd", "members": 3}


def test_a_recipe_that_is_not_there(tmp_path):
    known = catalog.load()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "smoke.toml").touch()
    with pytest.raises(ConfigError) as caught:
        reproduction.recipe_of(Run(id="a", recipe="smoek.toml"), "pdd", {"pdd": tmp_path}, known)
    path = tmp_path / "recipes" / "smoek.toml"
    assert caught.value.problems == (f"run a: there is no {path}; did you mean 'smoke.toml'?",)
    with pytest.raises(UnknownComponentError) as told:
        reproduction.recipe_of(Run(id="a", recipe="adp/x.toml"), "igat", {"igat": tmp_path}, known)
    assert str(told.value) == (
        "run 'a' is trained by recipe x.toml of plugin 'adp', which is not there: "
        "pip install ./plugins/adp"
    )


def test_a_plugin_that_is_not_there_is_told_with_what_brings_it():
    nothing = reproduction.Found((), {}, {})
    with pytest.raises(UnknownComponentError) as caught:
        reproduction.choose("pdd/table2", nothing, catalog.load())
    assert str(caught.value) == (
        "no reproduction is called 'pdd/table2'; it would be in phalanx-pdd, which is not there: "
        "pip install ./plugins/pdd"
    )


def test_a_tables_name_alone_must_be_one_plugins():
    assert reproduction.choose("table3", FOUND, catalog.load()).name == "igat/table3"
    with pytest.raises(UnknownComponentError, match="did you mean 'adp/igat-table1' or"):
        reproduction.choose("igat-table1", FOUND, catalog.load())


# ---------------------------------------------------------------- numbers


def row(*, clean=0.9, robust=0.5, n=1000, conditional=None):
    return Row(
        defense="toy",
        view="deployed",
        attack="fgsm",
        threat="linf:0.1",
        clean_accuracy=clean,
        robust_accuracy=robust,
        n=n,
        ci95=(0.47, 0.53),
        forwards=1,
        backwards=1,
        conditional_accuracy=conditional,
    )


def test_each_number_has_the_interval_of_what_it_counts():
    one = row(conditional=450 / 900)
    assert clean_number(one) == Number(0.9, *wilson(900, 1000), 1000)
    assert attacked_number(one) == Number(0.5, 0.47, 0.53, 1000)
    assert conditional_number(one) == Number(0.5, *wilson(450, 900), 900)
    assert conditional_number(row(clean=0.0)) is None
    wide = conditional_number(row(clean=0.0907, n=10, conditional=0.5))  # less than one image
    assert wide is None


def test_a_conditional_interval_covers_weighted_images():
    """Σ q c / Σ c over images drawn anew: Wilson's over Σ c covers at least as often."""
    import torch

    generator = torch.Generator().manual_seed(0)
    truth, covered, rounds = 0.6, 0, 400
    for _ in range(rounds):
        c = 0.5 + 0.5 * torch.rand(200, generator=generator, dtype=torch.float64)
        q = (torch.rand(200, generator=generator) < truth).double()
        found = conditional_number(
            row(clean=float(c.mean()), n=200, conditional=float((q * c).sum() / c.sum()))
        )
        covered += found.low <= truth <= found.high
    assert covered / rounds >= 0.94


def test_a_gain_has_newcombes_interval():
    """56/70 against 48/80: 0.0524 to 0.3339, the paper's own example (its table II, method 10)."""
    one, other = (Number(a / n, *wilson(a, n), n) for a, n in ((56, 70), (48, 80)))
    found = gain(one, [Number(0.75, 0.7, 0.8, 80), other])
    assert (found.value, found.n) == (pytest.approx(0.2), 70)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    back = gain(other, [one])
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("value", "compared", "delta"),
    [(46.9, "higher", 3.1), (47.0, "holds", 3.0), (53.0, "holds", -3.0), (53.1, "lower", -3.1)],
)
def test_a_claim_holds_if_it_lies_in_the_interval(value, compared, delta):
    claim = LEDGER.plugins[0].components[0].claims[1].model_copy(update={"value": value})
    line = Line(Wanted(claim, "a", (ScaleName.CPU,), attack="fgsm"), attacked_number(row()))
    assert (line.compared, line.delta) == (compared, pytest.approx(delta))


def test_imports_nothing_heavy():
    code = "import phalanx.claims, phalanx.cli.reproduce, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert not {"torch", "timm", "art", "sklearn"} & set(done.stdout.split())
