from __future__ import annotations

import pytest
import torch
from check_toys import (
    Detached,
    Linear,
    NoBackward,
    Quantised,
    StraightThrough,
    batch,
    generator,
)
from torch import Tensor

from phalanx.attacks.losses import cross_entropy, margin
from phalanx.evaluation.checks import (
    ensemble_dominance,
    grad_bad,
    grad_deployed,
    grad_fd,
    unstable,
)
from phalanx.evaluation.checks.gradients import cosine, directional
from phalanx.specs import L2, Linf


def test_saturated_logits_lose_the_gradient_of_cross_entropy_and_not_of_the_margin() -> None:
    x, y = batch(160)
    model = Linear(scale=1e4)
    ce = grad_bad(model, x, y, loss=cross_entropy, name="ce")
    assert (ce.id, ce.status, ce.n) == ("grad_bad:ce", "fail", 160)
    assert ce.count is not None
    assert ce.count > 150
    assert ce.value == ce.count / 160
    found = grad_bad(model, x, y, loss=margin, name="margin")
    assert (found.status, found.count) == ("pass", 0)
    assert found.reason == "0 of 160 images have no usable gradient of the margin loss."


def test_a_quantised_input_has_no_gradient() -> None:
    x, y = batch(160)
    found = grad_bad(Quantised(), x, y, loss=margin, name="margin")
    assert (found.status, found.count) == ("fail", 160)


def test_too_few_images_say_what_they_found() -> None:
    x, y = batch(8)
    found = grad_bad(Quantised(), x, y, loss=margin, name="margin")
    assert (found.status, found.count) == ("not-run", 8)
    assert found.reason == (
        "too few images: 149 are needed to exclude 2 %, found 8. 8 of 8 images have no usable "
        "gradient of the margin loss."
    )


@pytest.mark.parametrize(
    ("model", "told"),
    [(NoBackward(), "RuntimeError: no backward for you"), (Detached(), "AttackInapplicable: ")],
)
def test_a_backward_that_fails_counts_for_all(model: Linear, told: str) -> None:
    x, y = batch(160)
    found = grad_bad(model, x, y, loss=cross_entropy, name="ce")
    assert (found.status, found.count, found.value) == ("fail", 160, 1.0)
    assert found.reason.startswith(f"The backward pass failed ({told}")
    assert found.reason.endswith("), so it counts for all.")


def test_a_full_memory_says_nothing_of_the_model() -> None:
    def full(images: Tensor) -> Tensor:
        raise MemoryError

    x, y = batch()
    with pytest.raises(MemoryError):
        grad_bad(full, x, y, loss=margin, name="margin")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_only_a_gradient_without_a_usable_entry_is_bad(bad: float) -> None:
    x, y = batch(4)
    factor = torch.ones_like(x)
    factor[0] = bad
    factor[1, 0, 0, 0] = bad

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        return scores.flatten(1).sum(1)

    found = grad_bad(lambda images: images * factor, x, y, loss=loss, name="sum")
    assert found.count == 1


# ---------------------------------------------------------------- finite differences


def test_slopes_of_a_quadratic_in_closed_form() -> None:
    x, y = batch(5)
    x, y = x.double(), torch.zeros_like(y)

    def square(images: Tensor) -> Tensor:
        value = images.flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(value), value], 1)

    slopes, differences = directional(square, x, y, generator=generator())
    assert slopes.shape == (5, 16)
    assert torch.allclose(slopes, differences, atol=1e-9)  # exact for a quadratic
    # the vector of slopes along unit directions is at most 16 gradients long
    assert (slopes.abs() <= 2 * (x.flatten(1).norm(dim=1, keepdim=True) + 0.1)).all()


def test_true_gradients_pass_and_pretended_ones_fail() -> None:
    x, y = batch(20)
    found = grad_fd(Linear(), x, y, generator=generator())
    assert found.status == "pass"
    assert found.value == pytest.approx(1.0, abs=1e-4)
    assert grad_fd(StraightThrough(), x, y, generator=generator()).status == "fail"
    assert grad_fd(Quantised(), x, y, generator=generator()).status == "fail"

    class Turned(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x.detach() - x)

    found = grad_fd(Turned(), x, y, generator=generator())
    assert found.value == pytest.approx(-1.0, abs=1e-4)


def test_without_a_gradient_nothing_is_compared() -> None:
    x, y = batch()
    found = grad_fd(NoBackward(), x, y, generator=generator())
    assert found.status == "not-run"
    assert found.reason == "There is no gradient to compare (RuntimeError: no backward for you)."


def test_cosine_by_hand() -> None:
    one = torch.tensor([[3.0, 4.0], [1e-30, 0.0], [0.0, 0.0], [torch.nan, 1.0], [1.0, 0.0]])
    other = torch.tensor([[4.0, 3.0], [1e-30, 1e-30], [1.0, 0.0], [1.0, 1.0], [torch.inf, 0.0]])
    assert cosine(one, other).tolist() == pytest.approx([0.96, 0.5**0.5, 0.0, 0.0, 0.0])


def test_an_estimators_gradient_is_the_deployed_one() -> None:
    gradient = torch.randn(9, 1, 4, 4, generator=generator())
    gradient[0] = 0.0
    assert grad_deployed(3 * gradient, gradient).value == pytest.approx(1.0)
    noisy = gradient + 0.1 * torch.randn(gradient.shape, generator=generator(1))
    assert grad_deployed(noisy, gradient).status == "warn"
    assert grad_deployed(-gradient, gradient).status == "fail"
    assert grad_deployed(torch.zeros_like(gradient), torch.zeros_like(gradient)).status == "pass"


# ---------------------------------------------------------------- ensembles, noise


def test_one_member_with_all_of_the_gradient() -> None:
    x, y = batch(30)
    even = ensemble_dominance([Linear(), Linear()], x, y, loss=margin)
    assert (even.status, even.count) == ("pass", 0)
    found = ensemble_dominance([Linear(), Linear(0.1)], x, y, loss=margin)  # 1 / 1.1 = .909
    assert (found.status, found.count) == ("fail", 30)
    below = ensemble_dominance([Linear(), Linear(0.12)], x, y, loss=margin)  # 1 / 1.12 = .893
    assert (below.status, below.count) == ("pass", 0)
    flat = ensemble_dominance([Quantised(), Quantised()], x, y, loss=margin)
    assert flat.count == 0
    assert ensemble_dominance([Linear()], x, y).status == "not-run"
    assert ensemble_dominance([Linear(), Detached()], x, y).status == "not-run"


def test_instability_of_a_linear_margin() -> None:
    x = torch.full((2, 1, 1, 1), 0.5)
    y = torch.tensor([0, 0])

    def line(images: Tensor) -> Tensor:
        value = images.flatten(1)[:, 0] - 0.1  # the margin at x is -.4, noise is uniform in +-.1
        return torch.stack([value, torch.zeros_like(value)], 1)

    found = unstable(line, x, y, threat=Linf(0.2), generator=generator(), draws=1000)
    assert found.value == pytest.approx(0.05 / 0.4, rel=0.03)
    assert found.status == "pass"


def test_an_image_on_the_boundary_counts_at_most_one() -> None:
    x = torch.tensor([0.5, 0.9]).view(2, 1, 1, 1)
    y = torch.zeros(2, dtype=torch.long)

    def line(images: Tensor) -> Tensor:
        value = 1e3 * (images.flatten(1)[:, 0] - 0.5).clamp_max(0.2)
        return torch.stack([value, torch.zeros_like(value)], 1)

    found = unstable(line, x, y, threat=L2(0.2), generator=generator(), draws=10)
    assert found.value == pytest.approx(0.5)  # one image 1, the other 0
    assert found.status == "pass"
    flat = unstable(lambda images: images.flatten(1).expand(-1, 2), x, y, threat=L2(0.2),
                    generator=generator(), draws=3)  # fmt: skip
    assert flat.value == 0.0
