import pytest
import torch

from phalanx.attacks.ascent import Deciding, ascend, by_mean_size, expectation, input_gradient
from phalanx.errors import AttackInapplicable
from phalanx.specs import L1, L2, Linf


def row_sum(weight: torch.Tensor):
    return lambda x: (x * weight).flatten(1).sum(1)


def test_input_gradient_is_per_row_and_leaves_no_trace():
    x = torch.rand(3, 1, 2, 2)
    weight = torch.tensor([1.0, -2.0, 3.0, 0.0]).view(1, 1, 2, 2).requires_grad_()
    loss, gradient = input_gradient(row_sum(weight), x)
    torch.testing.assert_close(loss, row_sum(weight.detach())(x))
    assert torch.equal(gradient, weight.detach().expand(3, -1, -1, -1))
    assert not any(tensor.requires_grad for tensor in (loss, gradient, x))
    assert weight.grad is None


def test_input_gradient_works_under_no_grad():
    with torch.no_grad():
        _, gradient = input_gradient(lambda x: (x**2).flatten(1).sum(1), torch.ones(1, 1, 1, 2))
    assert gradient.flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "objective",
    [
        lambda x: x.detach().flatten(1).sum(1),
        lambda x: torch.ones(len(x), requires_grad=True) * 2,
    ],
)
def test_a_loss_that_does_not_depend_on_the_images_is_refused(objective):
    message = (
        "^a gradient attack needs scores that depend on the images differentiably, and these do "
        "not: attack a differentiable view, or use an attack on scores such as 'square'$"
    )
    with pytest.raises(AttackInapplicable, match=message):
        input_gradient(objective, torch.zeros(2, 1, 1, 1))


def test_expectation_averages_gradients_of_draws():
    draws = [torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 1.0])] * 2
    calls = iter(draws)

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (x * next(calls).view(1, 1, 1, 2)).flatten(1).sum(1)

    x = torch.full((1, 1, 1, 2), 0.5)
    loss, gradient = expectation(input_gradient, 2)(objective, x)
    assert gradient.flatten().tolist() == [-1.0, -0.5]
    assert loss.tolist() == [-0.75]
    moved = ascend(
        objective, x, Linf(0.1), steps=1, size=0.1, gradient=expectation(input_gradient, 2)
    )
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.4, 0.4]))  # sign (−1, −1)


def test_expectation_of_one_draw_is_the_gradient_itself():
    assert expectation(input_gradient, 1) is input_gradient


def test_momentum_divides_by_the_mean_absolute_value():
    gradient = torch.tensor([[1.0, -3.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert by_mean_size(gradient).tolist() == [[0.5, -1.5, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]


def test_momentum_carries_over_a_gradient_that_turned():
    # The gradient is (1, 1) first and (−.1, 1) then; of the sums (1, 1) and (1 − .18, 1 + 1.8)
    # both signs are positive, so momentum keeps the first coordinate going up.
    slopes = iter([torch.tensor([1.0, 1.0]), torch.tensor([-0.1, 1.0])] * 2)

    def gradient(objective, x):
        return torch.zeros(1), next(slopes).view(1, 1, 1, 2)

    x = torch.full((1, 1, 1, 2), 0.5)
    for momentum, first in ((1.0, 0.7), (0.0, 0.5)):
        moved = ascend(
            lambda z: z.flatten(1).sum(1),
            x,
            Linf(0.3),
            steps=2,
            size=0.1,
            momentum=momentum,
            gradient=gradient,
        )
        torch.testing.assert_close(moved.flatten(), torch.tensor([first, 0.7]))


def test_l2_step_and_ball_worked_example():
    x = torch.full((1, 1, 1, 2), 0.5)
    objective = row_sum(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2))
    step = ascend(objective, x, L2(1.0), steps=1, size=0.2) - x
    torch.testing.assert_close(step.flatten(), torch.tensor([0.12, 0.16]))
    step = ascend(objective, x, L2(0.1), steps=1, size=0.2) - x
    torch.testing.assert_close(step.flatten(), torch.tensor([0.06, 0.08]))


@pytest.mark.parametrize(("threat", "gain"), [(Linf(0.1), 0.7), (L2(0.15), 0.75), (L1(0.25), 1.0)])
def test_gain_of_a_linear_loss_is_eps_times_the_dual_norm(threat, gain):
    x = torch.full((1, 1, 2, 2), 0.5)
    objective = row_sum(torch.tensor([4.0, 3.0, 0.0, 0.0]).view(1, 1, 2, 2))
    found = ascend(objective, x, threat, steps=5, size=threat.eps)
    torch.testing.assert_close(objective(found) - objective(x), torch.tensor([gain]))


def test_keep_best_returns_each_rows_highest_iterate():
    # A ridge at .55: the first step reaches it, the second goes over it.
    def ridge(x: torch.Tensor) -> torch.Tensor:
        return -(x - 0.55).abs().flatten(1).sum(1)

    x = torch.tensor([0.45, 0.50]).view(2, 1, 1, 1)
    last, best = (
        ascend(ridge, x, Linf(0.5), steps=3, size=0.1, keep=keep).flatten()
        for keep in ("last", "best")
    )
    torch.testing.assert_close(best, torch.tensor([0.55, 0.50]), rtol=0, atol=0.06)
    assert (ridge(best.view(2, 1, 1, 1)) >= ridge(last.view(2, 1, 1, 1))).all()


def test_passes_and_what_an_observer_sees():
    calls, seen = [], []

    def objective(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.requires_grad)
        return x.flatten(1).sum(1)

    x = torch.zeros(2, 1, 1, 1)
    ascend(objective, x, Linf(1.0), steps=4, size=0.1)
    assert calls == [True] * 4
    calls.clear()
    result = ascend(
        objective, x, Linf(1.0), steps=4, size=0.1, observe=lambda *what: seen.append(what)
    )
    assert calls == [True] * 4 + [False]
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(torch.stack([loss[0] for _, _, loss in seen]), torch.arange(5) / 10)
    assert torch.equal(seen[-1][1], result)


def test_a_row_with_a_bad_gradient_stays_and_harms_no_other():
    def objective(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1) * torch.tensor([torch.nan, 1.0])

    x = torch.full((2, 1, 1, 2), 0.5)
    found = ascend(objective, x, L2(0.1), steps=3, size=0.1, momentum=1.0)
    assert torch.equal(found[0], x[0])
    assert (found[1] > x[1]).all()


class Goals(Deciding):
    """The sum of pixels; a row is done from its goal on. Logs the rows of each call."""

    def __init__(self, goals: torch.Tensor, log: list[list[float]]) -> None:
        self.goals = goals
        self.log = log

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        value = x.flatten(1).sum(1)
        self.reached = value.detach() >= self.goals
        self.log.append(self.goals.tolist())
        return value

    def __getitem__(self, rows: torch.Tensor) -> "Goals":
        return Goals(self.goals[rows], self.log)


GOALS = torch.tensor([0.25, 9.0, 0.0, 0.15])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_rows_that_are_done_leave_with_the_iterate_that_did_it(momentum, keep):
    log: list[list[float]] = []
    x = torch.zeros(4, 1, 1, 1)
    found = ascend(Goals(GOALS, log), x, Linf(1.0), steps=5, size=0.1, momentum=momentum, keep=keep)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.3, 0.5, 0.0, 0.2]))
    left = [[0.25, 9.0, 0.0, 0.15], [0.25, 9.0, 0.15], [0.25, 9.0, 0.15], [0.25, 9.0], [9.0]]
    torch.testing.assert_close([torch.tensor(r) for r in log[:5]], [torch.tensor(r) for r in left])
    assert len(log) == 5 + (keep == "best")
    assert not x.any()


def test_no_row_leaves_while_somebody_observes():
    log: list[list[float]] = []
    sizes: list[int] = []
    x = torch.zeros(4, 1, 1, 1)
    found = ascend(
        Goals(GOALS, log),
        x,
        Linf(1.0),
        steps=3,
        size=0.1,
        observe=lambda step, images, loss: sizes.append(len(images)),
    )
    assert sizes == [4] * 4
    torch.testing.assert_close(found.flatten(), torch.full((4,), 0.3))


def test_the_loop_ends_when_all_rows_are_done():
    log: list[list[float]] = []
    found = ascend(Goals(GOALS[2:], log), torch.zeros(2, 1, 1, 1), Linf(1.0), steps=9, size=0.1)
    assert len(log) == 3
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.2]))
