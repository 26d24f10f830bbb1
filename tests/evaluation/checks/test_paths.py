from __future__ import annotations

import pytest
import torch
from check_toys import Linear, batch, generator
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor

from phalanx.attack import attacking
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.evaluation.checks import Path, PathObserver, incomplete, joined, loss_rank, silent
from phalanx.evaluation.checks.paths import spearman
from phalanx.specs import Linf

NOTHING = torch.zeros(1, 1, 1, 1)


def seen(losses: Tensor, margins: Tensor | None = None, starts: tuple[int, ...] = (0,)) -> Path:
    """The path of these losses and margins ``(T, N)``; runs start at these rows."""
    rows = iter([] if margins is None else margins)

    def scores(_: Tensor) -> Tensor:
        lead = next(rows)
        return torch.stack([torch.zeros_like(lead), lead], 1)

    y = torch.zeros(losses.shape[1], dtype=torch.long)
    observer = PathObserver(None if margins is None else scores, y)
    for at, loss in enumerate(losses):
        observer(at - max(start for start in starts if start <= at), NOTHING, loss)
    return observer.path()


@given(st.integers(2, 12), st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_spearman_is_scipys(length: int, seed: int) -> None:
    one = torch.randint(6, (length, 3), generator=generator(seed)).double()
    other = torch.randint(6, (length, 3), generator=generator(seed + 1)).double()
    one[:, 0].mul_(2.5)
    found = spearman(one, other)
    for column in range(3):
        a, b = one[:, column], other[:, column]
        if len(b.unique()) == 1:
            assert found[column].isnan()
        elif len(a.unique()) == 1:
            assert found[column] == 0.0
        else:
            expected = stats.spearmanr(a.numpy(), b.numpy()).statistic
            assert float(found[column]) == pytest.approx(expected, abs=1e-9)


def test_spearman_of_what_is_not_finite() -> None:
    steps = torch.arange(4.0)[:, None]
    broken = steps.clone()
    broken[2] = torch.nan
    assert spearman(broken, steps).tolist() == [0.0]
    assert spearman(steps, broken).isnan().all()


def test_the_best_loss_moves_or_rests_at_the_end() -> None:
    steps = torch.arange(30.0)
    climbs = steps  # the last ten iterates span 9 of 29
    rests = steps.clamp_max(12.0)
    falls = -steps  # the best loss is the first
    flat = torch.ones(30)
    broken = torch.full((30,), torch.nan)
    path = seen(torch.stack([climbs, rests, falls, flat, broken], 1))
    assert path.moved.tolist() == pytest.approx([9 / 29, 0.0, 0.0, 0.0, 0.0])
    assert (path.visited, path.rank, path.shortest) == (None, None, 30)


def test_of_several_runs_the_one_that_ends_highest_counts() -> None:
    low = torch.cat([torch.arange(25.0), torch.arange(25.0).clamp_max(5.0) + 100.0])
    high = torch.cat([torch.arange(25.0) + 100.0, torch.arange(25.0).clamp_max(5.0)])
    path = seen(torch.stack([low, high], 1), starts=(0, 25))
    assert path.moved.tolist() == pytest.approx([0.0, 9 / 24])
    assert path.shortest == 25


def test_incomplete_fails_only_together_with_converged_steps() -> None:
    moved = torch.cat([torch.full((60,), 0.2), torch.full((40,), 0.01)])
    path = Path(None, moved, None, 101)
    withstood = torch.ones(100)
    found = incomplete(path, withstood, converged="pass")
    assert (found.status, found.count, found.n, found.value) == ("warn", 60, 100, 0.6)
    assert incomplete(path, withstood, converged=None).status == "warn"
    assert incomplete(path, withstood, converged="fail").status == "fail"
    withstood[:60] = 0.0  # broken images do not count
    assert incomplete(path, withstood, converged="fail").status == "pass"
    assert incomplete(path, torch.zeros(100), converged="fail").n == 0
    short = incomplete(Path(None, moved, None, 11), withstood, converged="fail")
    assert (short.status, short.reason) == (
        "not-run",
        "A run of 11 iterates is too short: 20 have an end.",
    )


def test_silent_success() -> None:
    margins = torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    path = seen(margins, margins)
    assert path.visited is not None
    assert path.visited.tolist() == [True, False, True]
    found = silent(path, torch.tensor([1.0, 1.0, 0.0]))
    assert (found.count, found.n, found.status) == (1, 3, "fail")  # lower end .017
    assert silent(seen(margins), torch.ones(3)).status == "not-run"
    many = Path(torch.arange(100) < 6, torch.zeros(100), None, 30)
    assert silent(many, torch.ones(100)).status == "fail"
    assert silent(many, torch.zeros(100)).status == "pass"


def test_a_consistent_loss_passes_and_a_saturated_one_fails() -> None:
    margins = torch.linspace(-5, 1, 25)[:, None] + torch.randn(1, 7, generator=generator())
    good = loss_rank(seen(margins.exp(), margins))
    assert (good.status, good.value, good.n) == ("pass", pytest.approx(1.0), 7)
    flat = loss_rank(seen(torch.zeros_like(margins), margins))
    assert (flat.status, flat.value) == ("fail", 0.0)
    turned = loss_rank(seen(-margins, margins))
    assert turned.value == pytest.approx(-1.0)
    assert loss_rank(seen(margins, torch.zeros_like(margins))).status == "not-run"
    assert loss_rank(seen(margins)).status == "not-run"


def test_long_runs_are_thinned() -> None:
    margins = torch.arange(1000.0)[:, None].expand(-1, 2)
    rows = iter(margins)
    observer = PathObserver(
        lambda _: torch.stack([torch.zeros(2), next(rows)], 1), torch.zeros(2, dtype=torch.long)
    )
    for step, lead in enumerate(margins):
        observer(step, NOTHING, lead.square())
        assert observer._run is not None
        assert len(observer._run.losses) <= 128
        assert len(observer._run.best) <= 10
    path = observer.path()
    assert path.rank is not None
    assert path.rank.tolist() == pytest.approx([1.0, 1.0])
    assert path.shortest == 1000


def test_an_attack_is_observed_and_batches_are_joined() -> None:
    x, y = batch(6)
    model, attack = Linear(), PGD(PGDConfig(threat=Linf(0.3), steps=20, restarts=2))
    paths, found = [], []
    with attacking(model):
        for rows in (slice(0, 4), slice(4, 6)):
            observer = PathObserver(model, y[rows])
            found.append(attack(model, x[rows], y[rows], generator=generator(), observe=observer))
            paths.append(observer.path())
        right = model(torch.cat(found)).argmax(1) == y
    path = joined(paths)
    assert path.shortest == 21
    assert path.visited is not None
    assert path.rank is not None
    assert path.moved.shape == path.visited.shape == path.rank.shape == (6,)
    assert path.visited[~right].all()
    assert joined([paths[0], Path(None, torch.zeros(1), None, 5)]).visited is None


def test_an_observer_without_an_attack_says_so() -> None:
    with pytest.raises(ValueError, match="an observer that saw no iterate has no path"):
        PathObserver(None, torch.zeros(2)).path()
