"""What a model may answer wrongly, each with one message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation_toys import Plain, Threshold, images
from torch import Generator, Tensor, nn

from phalanx.errors import EvaluationError, NonFiniteError, PluginContractError
from phalanx.evaluation.judge import Judge


class Answers(Plain):
    """Passes its scores through a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def draw(self, x: Tensor, generator: Generator | None) -> Any:
        return self.change(super().draw(x, generator))


def bits(model: Any, n: int = 6) -> Tensor:
    batch = images(n).test.fetch(slice(0, n))
    return Judge(model, ("test",)).bits(batch.x, batch.y, first_row=0)


def boom(_: Tensor) -> Tensor:
    raise KeyError("boom")


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (
            boom,
            EvaluationError,
            "Answers failed on 6 images (1, 4, 4): KeyError: 'boom'; it must take float images "
            "(N, C, H, W) in [0, 1] on cpu, and answer (N, K) scores",
        ),
        (
            lambda _: sys.exit(3),
            EvaluationError,
            "Answers failed on 6 images (1, 4, 4): SystemExit",
        ),
        (lambda z: z * torch.nan, NonFiniteError, "Answers answered 6 of 6 images with NaN or inf"),
        (
            lambda z: (z, z),
            PluginContractError,
            "Answers answered with a tuple, not with a tensor of scores (N, K); wrap it so that "
            "forward returns the logits alone",
        ),
        (lambda z: {"logits": z}, PluginContractError, "Answers answered with a dict, not with"),
        (lambda _: None, PluginContractError, "Answers answered with a NoneType, not with"),
        (lambda z: z[:, 0], PluginContractError, "6 images with scores of shape (6,); they must"),
        (lambda z: z[:, :1], PluginContractError, "6 images with scores of shape (6, 1); they"),
        (lambda z: z[:2], PluginContractError, "6 images with scores of shape (2, 2); they must"),
        (lambda z: z.to("meta"), PluginContractError, "a tensor without data (device meta)"),
    ],
)
def test_answers_that_cannot_be_judged(
    change: Callable[[Tensor], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        bits(Answers(change))
    assert text in str(caught.value)


class Spoils(nn.Module):
    """Changes its input in place, as an in-place activation does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Threshold()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x).clone()
        x.zero_()
        return scores


class SpoilsTwice(Plain):
    """Two functions that each spoil what they are shown."""

    stochastic = True

    def support(self) -> tuple[nn.Module, ...]:
        return Spoils(), Spoils()


def test_each_function_sees_the_images_as_they_are() -> None:
    assert bits(SpoilsTwice()).tolist() == [[1] * 6] * 2


def test_a_model_in_training_mode_is_judged_in_evaluation_mode() -> None:
    model = Plain().train()  # asserts its mode while it answers
    assert bits(model).tolist() == [[1] * 6]
    assert model.training
