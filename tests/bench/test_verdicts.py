"""The bench of verdicts: what is planted, how passes are counted, and what its tables say."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from phalanx.data import load_data
from phalanx.evaluation import contents, core_checks, validity
from phalanx.evaluation.checks.shares import lower_end
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.subjects import Images
from phalanx.nn.foreign import wrap

ROOT = Path(__file__).parents[2]


def module(name):
    @pytest.fixture
    def found(monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT))
        return importlib.import_module(f"bench.{name}")

    return found


masks, planted, trained = module("masks"), module("planted"), module("trained")
tables, verdicts = module("verdict_tables"), module("verdicts")


def linear(seed=0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(10, 64, generator=generator))
        network[1].bias.zero_()
    return network.eval().requires_grad_(False)


def pixels(n=4, side=8):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def slope(network, x):
    x = x.clone().requires_grad_()
    scores = network(x)
    if not scores.requires_grad:
        return None
    (found,) = torch.autograd.grad(scores.square().sum(), x)
    return found


# ---------------------------------------------------------------- what is planted


def test_the_models_are_as_many_as_they_have_to_be(planted, verdicts):
    masking = [case for case in planted.PLANTED if case.kind == "masking"]
    sound = [case for case in planted.PLANTED if case.kind == "sound"]
    assert len([case for case in masking if case.data == "mnist"]) == 5
    assert len(masking) >= 15
    assert len(sound) >= 8
    assert len({verdicts.key_of(case) for case in planted.PLANTED}) == len(planted.PLANTED)
    assert {case.data for case in planted.PLANTED} == {"mnist", "digits", "cifar10"}
    first = planted.PLANTED[0]
    assert verdicts.key_of(first) != verdicts.key_of(replace(first, name="another"))


def test_some_have_no_gradient_at_all(masks):
    x, network = pixels(), linear()
    for before in (masks.stretched, masks.thermometer, masks.median):
        assert not before(x.requires_grad_()).requires_grad
    assert slope(masks.Around(network, after=masks.hard), x.detach()) is None
    assert slope(masks.WithoutGraph(network), x.detach()) is None


def test_some_have_a_gradient_of_zero(masks):
    for before in (
        masks.quantised,
        masks.blockwise,
        lambda x: masks.scaled_gradient(x, factor=0.0),
    ):
        found = slope(masks.Around(linear(), before=before), pixels())
        assert torch.equal(found, torch.zeros_like(found))


def test_some_have_a_wrong_one(masks):
    x = pixels()
    backwards = masks.Around(linear(), before=lambda x: masks.scaled_gradient(x, factor=-1.0))
    torch.testing.assert_close(slope(backwards, x), -slope(linear(), x))
    beside = slope(masks.SidePath(linear(), linear(1)), x)
    own = slope(linear(), x)
    assert beside.norm() < 1e-4 * own.norm()
    torch.testing.assert_close(
        masks.SidePath(linear(), linear(1))(x), linear()(x), atol=1e-3, rtol=0.0
    )


def test_blocks_are_transformed_there_and_back(masks):
    x = pixels(side=12)
    torch.testing.assert_close(masks.blockwise(x, step=1e-4), x, atol=1e-3, rtol=0.0)
    assert (masks.blockwise(x) - x).abs().max() > 0.05


def test_a_thermometer_counts_levels(masks):
    code = masks.thermometer(pixels(), levels=3)
    assert code.shape == (4, 3, 8, 8)
    torch.testing.assert_close(code.sum(1, keepdim=True), (pixels() * 4).floor().clamp_max(3.0))


def test_the_image_chooses_its_noise(masks):
    x = pixels(64)
    assert torch.equal(masks.keyed(x), masks.keyed(x))
    assert torch.equal(masks.keyed(x)[3:5], masks.keyed(x[3:5]))
    assert float((masks.keyed(x) - x).std()) == pytest.approx(0.1, rel=0.05)
    near = (masks.keyed(x + 1e-3) - masks.keyed(x)).std()
    assert float(near) > 0.1  # two draws, and not one noise


def test_purifying_takes_its_gradient_under_no_grad_alone(masks):
    network, x = linear(), pixels()
    purifying = masks.Purifying(network, steps=1, size=0.1)
    with torch.no_grad():
        scores = purifying(x)
    label = network(x).argmax(1)
    assert torch.equal(scores.argmax(1), label)
    chosen = (torch.arange(4), label)
    assert (scores.log_softmax(1)[chosen] > network(x).log_softmax(1)[chosen]).all()
    assert torch.equal(purifying(x.clone().requires_grad_()), scores)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        purifying(pixels())


def test_activations_that_saturate_learn_and_then_do_not(trained):
    x = torch.tensor([[-0.3, 0.2, 0.7]], requires_grad=True)
    for activation, expected in (
        (trained.Signs(), [-1.0, 1.0, 1.0]),
        (trained.Rounded(), [0.0, 0.25, 0.75]),
        (trained.Steep("tanh"), [-1.0, 1.0, 1.0]),
        (trained.Steep("sigmoid"), [0.0, 1.0, 1.0]),
    ):
        for mode in (True, False):
            values = activation.train(mode)(x)
            torch.testing.assert_close(values.detach(), torch.tensor([expected]))
            (found,) = torch.autograd.grad(values.sum() + 0.0 * x.sum(), x)
            assert (float(found.abs().sum()) > 0.1) is mode
    winners = trained.KWinners(0.5)(torch.tensor([[3.0, -1.0, 2.0, 1.0]]))
    assert winners.tolist() == [[3.0, 0.0, 2.0, 0.0]]


def test_batch_statistics_depend_on_the_batch(trained):
    network = trained.Shape(normalised=True).build().eval()
    own, x = trained.of_the_batch(network), pixels()
    torch.testing.assert_close(network(x)[:1], network(x[:1]))
    assert (own(x)[:1] - own(x[:1])).abs().max() > 1e-3


# ---------------------------------------------------------------- passes


@pytest.fixture
def case(planted):
    return planted.Case("a line", "sound", "single", "digits", lambda: wrap(linear()), linear)


@pytest.fixture
def images():
    split = load_data("digits").test.subset(torch.arange(24))
    right = linear()(split.fetch(slice(0, 24)).x).argmax(1)  # its own answers: none is wrong
    return Images("digits", type(split).from_arrays(split.fetch(slice(0, 24)).x, right), None)


def test_passes_are_counted_by_check(verdicts, tables, case, images, monkeypatch):
    monkeypatch.setitem(verdicts.THREATS, "digits", verdicts.THREATS["cifar10"])  # some withstand
    record = verdicts.measure(replace(case, source=lambda: linear(1)), images)
    n, passes = 24, record["passes"]
    assert record["images"] == n
    assert passes["stochastic"] == [6, 0]
    assert passes["batch_dependence"] == [6, 0]
    assert passes["dynamic"] == [8 / n, 0]
    assert passes["grad_bad"] == [3, 3]  # margin, cross-entropy, DLR
    assert passes["grad_fd"] == [33, 1]
    assert passes["transfer"] == [2, 0]  # two cells of the source
    assert passes["one_step"] == [1, 1]
    assert "black_box" not in passes  # the protocol's cells say it
    rows = [one for one in record["rows"] if one["attack"].startswith("apgd")]
    assert 0.1 < min(one["robust_accuracy"] for one in rows) < 1.0
    longer = sum(passes["converged_steps"])
    assert record["base_passes"] < longer < 2 * record["base_passes"]
    total = 6 + 6 + 8 / n + 6 + 34 + 2 + sum(passes["unbounded"]) + longer
    assert tables.check_passes(record) == pytest.approx(total)
    assert tables.ratio(record) == pytest.approx(total / record["base_passes"])
    assert validity.Examined is Examined
    assert core_checks.tried is verdicts._tried
    assert contents.CURVE


def test_a_crash_is_recorded(verdicts, tables, case, images, monkeypatch):
    def broken(*given, **named):
        raise ZeroDivisionError("a check")

    monkeypatch.setattr(verdicts, "evaluate_models", broken)
    record = verdicts.measure(case, images)
    assert record["crashed"] == "ZeroDivisionError: a check"
    assert list(tables.unexpected(record)) == ["sound, a line (digits): ZeroDivisionError: a check"]
    assert "| a line | digits | single | | | | | | no report | |" in tables.table([record])


def test_what_was_measured_is_kept(verdicts, case, tmp_path, monkeypatch, capsys):
    measured = []

    def measure(case):
        measured.append(case.name)
        return record(verdicts.key_of(case), name=case.name)

    cases = (case, replace(case, name="another"))
    monkeypatch.setattr(verdicts, "PLANTED", cases)
    monkeypatch.setattr(verdicts, "measure", measure)

    def run(*given):
        monkeypatch.setattr("sys.argv", ["verdicts", "--out", str(tmp_path), *given])
        verdicts.main()
        return measured[:]

    assert run("--only", "an*") == ["another"]
    assert run() == ["another", "a line"]
    assert run() == ["another", "a line"]
    assert run("--again", "a *") == ["another", "a line", "a line"]
    kept = json.loads((tmp_path / "verdicts.json").read_text())["models"]
    assert [one["name"] for one in kept] == ["a line", "another"]
    assert (tmp_path / "verdicts.md").read_text() in capsys.readouterr().out


# ---------------------------------------------------------------- tables


def test_intervals_are_exact(tables):
    assert tables.interval(0, 2)[0] == 0.0
    assert tables.interval(0, 2, level=0.90)[1] == pytest.approx(1 - 0.05**0.5)
    assert tables.interval(5, 5, level=0.90)[0] == pytest.approx(0.05**0.2)
    for count, n in ((1, 9), (3, 7), (33, 33)):
        assert tables.interval(count, n, level=0.90)[0] == pytest.approx(lower_end(count, n))
        low, high = tables.interval(count, n)
        mirrored = tables.interval(n - count, n)
        assert (1 - high, 1 - low) == pytest.approx(mirrored)


def found(attack, accuracy, verdict, view="deployed"):
    ends = (accuracy - 0.05, accuracy + 0.05)
    row = {"view": view, "attack": attack, "robust_accuracy": accuracy, "ci95": ends}
    return {**row, "verdict": verdict}


def record(key="k", **changed):
    made = {
        "key": key,
        "name": "one",
        "kind": "sound",
        "how": "single",
        "form": "single",
        "data": "digits",
        "masking": "no",
        "sentence": "All pass.",
        "clean": 0.98,
        "checks": {"grad_fd": {"status": "pass"}, "transfer": {"status": "fail"}},
        "rows": [
            found("apgd-ce:steps=100", 0.5, "trusted"),
            found("apgd-dlr:steps=100", 0.4, "trusted"),
            found("worst", 0.4, "trusted", view="worst"),
        ],
        "base_passes": 200.0,
        "passes": {"grad_fd": [33.0, 1.0], "unstable": [101.0, 0.0], "": [9.0, 9.0]},
        "required": ["grad_fd", "transfer"],
    }
    return {**made, **changed}


def test_what_is_not_as_it_should_be_is_said(tables):
    def said(**changed):
        return list(tables.unexpected(record(**changed)))

    def rows(first, second, worst=0.2):
        return [
            found("apgd-ce:steps=100", 0.5, first),
            found("square", 0.5, second),
            found("worst", worst, "caution", view="worst"),
        ]

    assert said() == []
    assert said(masking="yes") == ["sound, one (digits): masking is 'yes'; All pass."]
    assert said(masking="unknown") == ["sound, one (digits): masking is 'unknown'; All pass."]
    called = "is 'unreliable'; All pass."
    assert said(rows=rows("unreliable", "trusted")) == [
        f"sound, one (digits): apgd-ce:steps=100 on deployed (50.0 %) {called}"
    ]
    masking = {"kind": "masking", "how": "wrong", "masking": "yes"}
    assert said(**masking, rows=rows("unreliable", "trusted")) == []
    assert said(**masking, rows=rows("caution", "trusted", worst=0.48)) == []  # not overstated
    assert said(**masking, rows=rows("caution", "unreliable")) == [
        "masking, one (digits): apgd-ce:steps=100 on deployed (50.0 %) is 'caution'; All pass."
    ]
    every = said(**{**masking, "how": "undeclared"}, rows=rows("unreliable", "trusted"))
    assert [one.partition(")")[2].partition(" on ")[0] for one in every] == [": square", ": worst"]


def test_the_tables_count(tables):
    masking = record(name="two", kind="masking", how="wrong", masking="yes")
    missed = record(name="three", kind="masking", how="wrong")
    page = tables.table([masking, missed, record()])
    assert "| masking models with `masking: yes` | 1 of 2 | 50.0 | 1.3 to 98.7 |" in page
    assert "| sound models with `masking: yes` | 0 of 1 | 0.0 | 0.0 to 97.5 |" in page
    assert "| overstated rows of masking models called `unreliable` | 0 of 2 |" in page
    assert "| masking | wrong | 2 | 1 | 0.17 | 0.17 |" in page
    assert "| sound | single | 1 | 0 | 0.17 | 0.17 |" in page
    assert "| single, the base leaves some | 3 | 200 | 34 | 0.17 | 0.17 | two |" in page
    cells = "98.0 | 50.0 | trusted | 40.0 | trusted | yes | transfer |"
    assert f"| two | digits | wrong | {cells}" in page
    assert page.endswith(
        "- masking, three (digits): masking is 'no'; All pass.\n"
        "- masking, three (digits): apgd-ce:steps=100 on deployed (50.0 %) is 'trusted'; All "
        "pass.\n"
    )
    without = record(base_passes=0)
    assert tables.ratio(without) is None
    assert "single, the base" not in tables.table([without])
    assert "| sound | single | 1 | 0 | | |" in tables.table([without])


def test_a_kind_whose_checks_cost_too_much_is_told(tables):
    cheap, dear = record(), record(how="ensemble", base_passes=4)
    assert list(tables.too_dear([cheap, dear])) == [
        "sound, ensemble: the checks take 8.50 x the base, over 8"
    ]
    assert list(tables.too_dear([cheap, record(base_passes=0)])) == []
