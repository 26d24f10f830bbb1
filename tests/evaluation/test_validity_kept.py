"""What checks look at: the subset, plugins' checks, models that raise, answers that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_toys import Plain, Threshold, images
from torch import Generator, Tensor, nn
from validity_toys import (
    ENOUGH,
    FREE,
    LARGE,
    STRONG,
    Loud,
    evaluated,
    found_in,
    registry_with,
    verdict_of,
)

from phalanx.attack import answering
from phalanx.data.sets import ArraySplit, Data
from phalanx.defense import DefendedModel, View
from phalanx.errors import StorageError
from phalanx.evaluation import checks, contents, core_checks, examined as examining
from phalanx.evaluation.cell import CellRun
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.findings import Check
from phalanx.nn.ensemble import MeanEnsemble
from phalanx.report.model import Report


@pytest.fixture(autouse=True)
def _short_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two radii, where curves have five: `test_contents` looks at these."""
    monkeypatch.setattr(contents, "CURVE", (0.5, 2.0))


# ---------------------------------------------------------------- the subset


def test_the_subset_is_of_right_images_fixed_by_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Examined] = []
    registry = registry_with(phalanx_validity_checks=lambda: [seen.append])
    data = images(300)
    labels = data.test.labels.clone()
    labels[:30] = 1 - labels[:30]  # these are wrong
    split = ArraySplit(data.test.images, labels)
    flipped = Data(data.task, data.train, data.validation, split, data.threat)
    monkeypatch.setattr(contents, "curve", lambda _: None)
    for model, seed in ((Plain(), 0), (Plain(0.52), 7)):
        evaluated(model, data=flipped, registry=registry, attacks=("toy",), seed=seed)
    first, second = seen
    assert len(first.rows) == 256
    assert first.rows.min() >= 30
    assert torch.equal(first.rows, first.rows.sort().values)
    assert torch.equal(first.rows, second.rows)
    x, y = first.images(5)
    assert torch.equal(x, data.test.images[first.rows[:5]])
    assert torch.equal(y, labels[first.rows[:5]])
    (outcome,) = first.outcomes("toy").values()
    assert outcome.tolist() == [1.0] * 256
    assert list(first.outcomes("toy")) == ["toy on deployed"]
    assert first.outcomes("toy", view="expected") == first.outcomes("pgd") == {}
    assert first.base() is None


# ---------------------------------------------------------------- checks of plugins


def of_plugin(examined: Examined) -> Check:
    x, y = examined.images()
    with answering(examined.model), torch.no_grad():
        right = examined.opened("deployed")(x).argmax(1) == y
    count = int(right.sum())
    return Check(id="mine/right", status="warn", count=count, n=len(y), source="mine")


def nothing(examined: Examined) -> None:
    del examined


def failing(examined: Examined) -> Check:
    raise ZeroDivisionError("oh")


def no_check(examined: Examined) -> Any:
    return examined.threat


def impostor(examined: Examined) -> Check:
    return Check(id="stochastic", status="fail", source="mine")


def test_checks_of_a_plugin_are_made_and_none_of_them_is_required() -> None:
    given = [of_plugin, nothing, failing, no_check, impostor]
    registry = registry_with(phalanx_validity_checks=lambda: given)
    report = evaluated(Plain(), Plain(0.52), registry=registry, threats=LARGE)
    own = {name: check for name, check in found_in(report).items() if name.startswith("mine/")}
    assert list(own) == ["mine/right", "mine/failing", "mine/no_check", "mine/stochastic"]
    assert (own["mine/right"].count, own["mine/right"].n) == (ENOUGH, ENOUGH)
    assert own["mine/failing"].status == own["mine/no_check"].status == "not-run"
    assert own["mine/failing"].reason == "It could not run: ZeroDivisionError: oh."
    assert own["mine/no_check"].reason == "It could not run: TypeError: it gave Linf, not a Check."
    assert {row.verdict for row in report.rows} == {"caution"}  # it warns
    assert report.defenses[0].masking == "no"
    assert "mine/right" in report.to_html()
    assert "mine/right" in report.to_markdown()


def broken() -> Iterator[Any]:
    yield of_plugin
    raise ZeroDivisionError("oh")


def test_a_plugins_hook_that_fails_midway_is_told() -> None:
    registry = registry_with(phalanx_validity_checks=broken)
    found = found_in(evaluated(Plain(), n=20, registry=registry, attacks=("toy",)))
    assert found["mine/checks"].reason == "It could not run: ZeroDivisionError: oh."


def test_checks_of_a_plugin_say_of_which_threat_they_are() -> None:
    registry = registry_with(phalanx_validity_checks=lambda: [of_plugin])
    threats = ("linf:0.1", "l2:0.4")
    report = evaluated(Plain(), n=20, registry=registry, attacks=("toy:size=0",), threats=threats)
    own = [name for name in found_in(report) if name.startswith("mine/")]
    assert own == ["mine/right@linf:0.1", "mine/right@l2:0.4"]


def test_checks_of_a_plugin_are_left_out_where_only_free_ones_are_asked_for() -> None:
    registry = registry_with(phalanx_validity_checks=lambda: [failing])
    report = evaluated(Plain(), n=20, registry=registry, attacks=("toy",), checks="free")
    assert list(found_in(report)) == FREE


# ---------------------------------------------------------------- models that raise


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ZeroDivisionError("no way back")


class Oneway(nn.Module):
    """A threshold through which no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Threshold()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(NoBackward.apply(x))
        return scores


class Around(DefendedModel):
    """Answers as a module does; `more` are further views."""

    def __init__(self, module: nn.Module, **more: View) -> None:
        super().__init__()
        self.module, self.more = module, more

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        scores: Tensor = self.module(x)
        return scores

    def views(self) -> dict[str, View]:
        return {"deployed": View(self.serve), **self.more}


def refuse(seed: int) -> nn.Module:
    raise ZeroDivisionError(f"not with {seed > 0}")


class Company(nn.Module):
    """Answers two images at least."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Threshold()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ZeroDivisionError("alone")
        scores: Tensor = self.network(x)
        return scores


class Deaf(Loud):
    """Random, and without the view ``expected``."""

    def views(self) -> dict[str, View]:
        return {"deployed": View(self.serve, rowwise=False)}


RAISING: dict[str, Callable[[], DefendedModel]] = {
    "a backward": lambda: Around(Oneway()),
    "a view that opens": lambda: Around(Threshold(), broken=View(refuse)),
    "a view that answers": lambda: Around(Threshold(), broken=View(lambda _: nn.Linear(3, 2))),
    "a member's backward": lambda: MeanEnsemble([Oneway(), Threshold(0.48)]),
    "on a single image": lambda: Around(Company()),
    "without a view": lambda: Deaf(0.01),
}


@pytest.mark.parametrize("tier", ["free", "core"])
@pytest.mark.parametrize("name", list(RAISING))
def test_a_model_that_raises_somewhere_ends_no_evaluation(
    name: str, tier: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(core_checks, "doubled", lambda *_: [("apgd-ce", {"steps": 2})])
    attacks = ("apgd-ce:steps=2", "square:queries=4")
    report = evaluated(RAISING[name](), n=20, attacks=attacks, checks=tier)
    rows = {row.attack: row for row in report.rows if row.view == "deployed"}
    assert rows["square:queries=4"].robust_accuracy >= 0.95
    assert {row.verdict for row in report.rows} <= {"screened", "incomplete"}
    assert (report.failed != ()) == (name not in ("on a single image", "without a view"))
    assert list(found_in(report))[:4] == FREE[:4]
    assert report.save(tmp_path).exists()


def test_a_backward_that_raises_counts_for_every_image() -> None:
    report = evaluated(Around(Oneway()), Plain(), threats=LARGE)
    found = found_in(report)
    assert found["grad_bad:margin"].status == "fail"
    assert found["grad_bad:margin"].count == ENOUGH
    assert "ZeroDivisionError: no way back" in found["grad_bad:margin"].reason
    assert [(one.defense, one.attack) for one in report.failed] == [
        ("a", "apgd-ce"),
        ("a", "apgd-dlr:steps=5"),
    ]
    for check in ("grad_fd", "grad_deployed", "unbounded", "one_step", "silent", "loss_rank"):
        assert found[check].status == "not-run", check
    assert verdict_of(report, "worst") == "screened"
    assert report.defenses[0].masking == "yes"
    assert [curve.defense for curve in report.curves] == ["b"]


def test_what_could_not_be_made_besides_is_noted() -> None:
    notes = evaluated(Around(Company()), n=20, attacks=("toy",), checks="free").notes
    assert notes == ("a: size and latency could not be made: ZeroDivisionError: alone.",)
    model = MeanEnsemble([Oneway(), Threshold(0.48)])
    notes = evaluated(model, n=20, attacks=("toy",)).notes
    assert notes == (
        "a: transfer between members could not be made: ZeroDivisionError: no way back.",
        "a: diversity could not be made: ZeroDivisionError: no way back.",
    )


# ---------------------------------------------------------------- answers that are kept


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each check, attack and matrix was computed."""
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    names = [*FREE[:-1], "grad_bad", "grad_fd", "grad_deployed", "unstable", "ensemble_dominance"]
    for name in [*names, "silent", "incomplete", "loss_rank"]:
        count(checks, name)
    for name in ("transfer_matrix", "diversity"):
        count(contents, name)
    count(CellRun, "made")
    return calls


def test_a_repeated_evaluation_computes_no_check_again(
    tmp_path: Path, counted: Counter[str]
) -> None:
    def run(**rest: Any) -> Report:
        model = MeanEnsemble([Threshold(), Threshold(0.48)])
        return evaluated(model, n=20, attacks=("toy", "apgd-ce:steps=3"), out=tmp_path, **rest)

    first = run()
    assert {*counted} >= {"logits", "grad_bad", "silent", "made", "transfer_matrix", "diversity"}
    once = Counter(counted)
    second = run()
    assert counted == once
    assert second.defenses[0].checks == first.defenses[0].checks
    assert second.defenses[0].diversity == first.defenses[0].diversity
    assert second.rows == first.rows
    assert second.curves == first.curves
    assert second.transfers == first.transfers
    assert second.examples == first.examples
    run(seed=1)
    assert all(counted[name] > once[name] for name in once)


def test_damaged_answers_are_made_again(tmp_path: Path, counted: Counter[str]) -> None:
    first = evaluated(Plain(), n=20, attacks=("toy",), checks="free", out=tmp_path)
    files = sorted((tmp_path / "checks").iterdir())
    assert len(files) == len(FREE) - 1
    for path in files:
        path.write_text("{")
    again = evaluated(Plain(), n=20, attacks=("toy",), checks="free", out=tmp_path)
    assert {counted[name] for name in FREE[:-1]} == {2}
    assert again.defenses[0].checks == first.defenses[0].checks


class Hiccup(Plain):
    """Fails once, when several images are asked for by hand."""

    fails = False

    def serve(self, seed: int) -> nn.Module:
        if self.fails and seed == 1:  # as checks open it
            raise RuntimeError("out of memory")
        return super().serve(seed)


def test_a_check_that_could_not_run_is_tried_again(tmp_path: Path) -> None:
    model = Hiccup()
    model.fails = True
    first = evaluated(model, n=20, attacks=("toy",), checks="free", out=tmp_path)
    assert found_in(first)["dynamic"].status == "not-run"
    assert found_in(first)["dynamic"].reason == "It could not run: RuntimeError: out of memory."
    assert {row.verdict for row in first.rows} == {"incomplete"}
    model.fails = False
    second = evaluated(model, n=20, attacks=("toy",), checks="free", out=tmp_path)
    assert found_in(second)["dynamic"].status == "pass"
    assert {row.verdict for row in second.rows} == {"screened"}


@pytest.mark.parametrize("error", [StorageError("the disk is full"), MemoryError()])
def test_a_machine_that_fails_ends_the_evaluation(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(examining, "write_json", full)
    with pytest.raises(type(error)):
        evaluated(Plain(), n=20, attacks=("toy",), checks="free", out=tmp_path)


def test_noise_is_kept_and_compared_with_what_the_base_is_now(tmp_path: Path) -> None:
    """The attack on a margin is missing at first, so that there is no base."""
    few = ("apgd-ce", "square:queries=20")
    kept = {"out": tmp_path, "checks": "full", "threats": LARGE}
    first = found_in(evaluated(Plain(), attacks=few, **kept))["noise_gain"]
    assert first.status == "not-run"
    second = found_in(evaluated(Plain(), attacks=STRONG, **kept))["noise_gain"]
    assert second.status == "pass"


def test_any_attack_on_scores_or_labels_counts_as_black_box() -> None:
    attacks = ("apgd-ce", "apgd-dlr:steps=5", "art/SquareAttack:max_iter=5,p_init=0.3")
    found = found_in(evaluated(Plain(), attacks=attacks, threats=LARGE))["black_box"]
    assert found.status == "pass"
    gradients = found_in(evaluated(Plain(), attacks=attacks[:2], threats=LARGE))["black_box"]
    assert gradients.status == "not-run"


def test_the_robustness_average_is_that_of_the_members_matrix() -> None:
    model = MeanEnsemble([Threshold(), Threshold(0.48)])
    report = evaluated(model, threats=LARGE)
    (matrix,) = report.transfers
    values = [value for line in matrix.accuracy for value in line if value is not None]
    assert len(values) == 4
    assert report.defenses[0].diversity["mra"] == pytest.approx(sum(values) / 4)
    assert "mra" not in evaluated(Plain(), threats=LARGE).defenses[0].diversity
