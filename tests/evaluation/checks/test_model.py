from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from check_toys import Counts, Linear, Noisy, Normed, Purifies, Rewound, batch

from phalanx.evaluation.checks import batch_dependence, dynamic, logits, stochastic
from phalanx.evaluation.checks.model import counted_backwards


def test_logits_and_probabilities() -> None:
    scores = torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]])
    found = logits(scores)
    assert (found.status, found.count, found.n) == ("warn", 2, 2)
    assert logits(scores.log_softmax(1)).status == "pass"
    assert logits(torch.cat([scores, torch.tensor([[0.2, 0.9, 0.1]])])).status == "pass"
    assert logits(torch.tensor([[1.5, -0.5]])).value == pytest.approx(0.5)


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
@pytest.mark.parametrize("kind", [Noisy, Rewound])
def test_undeclared_randomness_is_found(kind: type[Noisy], source: str) -> None:
    x, _ = batch()
    found = stochastic(kind(source), x, declared=False)
    assert found.status == "fail"
    assert found.value is not None
    assert found.value > 1e-4
    assert stochastic(kind(source), x, declared=True).status == "pass"


def test_randomness_that_is_rewound_shows_only_after_the_seeds_moved() -> None:
    x, _ = batch()
    found = stochastic(Rewound("torch"), x, declared=False)
    assert "5 equal calls differ by 0, and by" in found.reason


def test_state_from_call_to_call_is_found_and_sound_models_pass() -> None:
    x, _ = batch()
    assert stochastic(Counts(), x, declared=False).status == "fail"
    found = stochastic(Linear(), x, declared=False)
    assert (found.status, found.value, found.n) == ("pass", 0.0, 8)
    assert found.reason == (
        "Declared deterministic; 5 equal calls differ by 0, and by 0 from one with the global "
        "seeds moved."
    )


def test_scores_that_are_not_finite_differ() -> None:
    x, _ = batch()
    assert stochastic(lambda images: images.flatten(1) * torch.nan, x, declared=False).status == (
        "fail"
    )


def test_normalised_distance_by_hand() -> None:
    answers = iter([torch.tensor([[3.0, 4.0]])] * 5 + [torch.tensor([[4.0, 3.0]])])
    found = stochastic(lambda _: next(answers), torch.zeros(1, 1, 1, 1), declared=False)
    assert found.value == pytest.approx(0.2 * 2**0.5)  # of (.6, .8) and (.8, .6)


def test_global_states_are_left_as_they_were() -> None:
    x, _ = batch()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for source in ("torch", "numpy", "python"):
        stochastic(Noisy(source), x, declared=False)
        batch_dependence(Noisy(source), x, declared=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate() == before[2]


def test_batch_normalisation_in_train_mode_is_found() -> None:
    x, _ = batch()
    model = Normed()
    found = batch_dependence(model.train(), x, declared=False)
    assert found.status == "fail"
    assert found.value is not None
    assert found.value > 1e-3
    assert batch_dependence(model.eval(), x, declared=False).status == "pass"


@pytest.mark.parametrize("other", [0, 2, 5])
def test_a_single_row_that_reads_another_is_found(other: int) -> None:
    x, _ = batch(7)

    def leaks(images: torch.Tensor) -> torch.Tensor:
        more = images[other].mean() * torch.tensor([1.0, 0.0, 0.0])
        return torch.cat([Linear()(images[:-1]), Linear()(images[-1:]) + more])

    assert batch_dependence(leaks, x, declared=False).status == "fail"


def test_batch_dependence_where_it_cannot_be_asked() -> None:
    x, _ = batch()
    assert batch_dependence(Linear(), x, declared=True).status == "not-applicable"
    assert batch_dependence(Linear(), x[:1], declared=False).reason == (
        "One image has no batch-mates."
    )
    assert batch_dependence(Counts(), x, declared=False).status == "not-run"
    assert batch_dependence(Noisy("torch"), x, declared=False).status == "pass"  # same draws


@pytest.mark.parametrize("how", ["backward", "grad", "func"])
def test_gradients_within_a_forward_are_counted(how: str) -> None:
    x, _ = batch()
    found = dynamic(Purifies(how), x, declared=False)
    assert (found.status, found.count) == ("fail", 1)
    assert (
        found.reason == "One forward ran 1 backward passes of its own, which it does not declare."
    )
    assert dynamic(Purifies(how), x, declared=True).status == "warn"
    assert "forward-mode" in found.source


def test_a_sound_forward_runs_no_backward() -> None:
    x, _ = batch()
    found = dynamic(Linear(), x, declared=False)
    assert (found.status, found.count) == ("pass", 0)


def test_the_engine_comes_back_even_after_an_error() -> None:
    engine = torch.autograd.Variable._execution_engine

    def breaks(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        dynamic(breaks, torch.zeros(1, 1, 1, 1), declared=False)
    assert torch.autograd.Variable._execution_engine is engine
    with counted_backwards() as outer, counted_backwards() as inner:
        torch.ones(1, requires_grad=True).sum().backward()
        assert torch.autograd.Variable._execution_engine.is_checkpoint_valid()
    assert (outer.calls, inner.calls) == (1, 1)
    assert torch.autograd.Variable._execution_engine is engine
