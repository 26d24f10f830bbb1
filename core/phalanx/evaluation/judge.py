"""The judge: whether the served function still classifies images rightly, on draws of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import answering
from phalanx.defense import DefendedModel, cast_like
from phalanx.errors import (
    DataError,
    EvaluationError,
    NonFiniteError,
    PluginContractError,
    PluginError,
    StorageError,
)
from phalanx.evaluation.scoring import Draws

FRESH_DRAWS = 20
"""R of a stochastic model that offers no `support()`; even, since `worst` halves it."""


class Judge:
    """Outcome bits of images, over draws that no attack ever saw.

    A deterministic model answers once; of a model with `support()` each function answers once; of
    any other stochastic model R = 20 servers on streams of their own answer once each.

    Args:
        model: what is judged.
        stream: key of the judge's draws; keyed further by draw and by the batch's first row, so
            that a batch can be judged anywhere.

    Attributes:
        draws: whether the bits are over all functions that the model serves.
        classes: K, once a batch has been judged.
    """

    def __init__(self, model: DefendedModel, stream: Sequence[str | int]) -> None:
        self.model = model
        self.stream = tuple(stream)
        self.draws: Draws = "fresh" if model.stochastic and not model.support() else "exact"
        self.classes = 0

    def bits(self, x: Tensor, y: Tensor, *, first_row: int) -> Tensor:
        """Bits ``(R, N)`` uint8 on the CPU for images ``(N, C, H, W)`` and labels ``(N,)``.

        Runs under `torch.no_grad`, not `torch.inference_mode`: a defense may compute gradients
        while it answers.

        Raises:
            NonFiniteError: if a score is NaN or infinite.
            PluginContractError: if scores are not ``(N, K)``.
            DataError: if a label is not below K.
            EvaluationError: if the model fails on the images.
        """
        rows = []
        with answering(self.model), torch.no_grad():
            x = cast_like(x, self.model)
            for scores in self._answers(x, first_row):
                rows.append(self._checked(scores, y).argmax(1) == y)
        return torch.stack(rows).to("cpu", torch.uint8)

    def _answers(self, x: Tensor, first_row: int) -> Iterator[object]:
        """What each function answers; each gets a copy, since some networks change their input."""
        try:
            for function in self._functions(first_row):
                yield function.eval()(x.clone())
        except (EvaluationError, PluginError, StorageError):
            raise
        except (Exception, SystemExit) as error:  # somebody's network raises anything
            raise EvaluationError(
                f"{type(self.model).__name__} failed on {len(x)} images {tuple(x.shape[1:])}: "
                f"{type(error).__name__}: {error}; it must take float images (N, C, H, W) in "
                f"[0, 1] on {x.device}, and answer (N, K) scores"
            ) from error

    def _functions(self, first_row: int) -> Iterator[nn.Module]:
        """The functions that answer, one at a time."""
        support = self.model.support() if self.model.stochastic else ()
        if support:
            yield from support
            return
        for r in range(FRESH_DRAWS if self.model.stochastic else 1):
            yield self.model.serve(randomness.key(*self.stream, "judge", r, first_row))

    def _checked(self, scores: object, y: Tensor) -> Tensor:
        """The scores, on the labels' device, if they can be judged."""
        name = type(self.model).__name__
        if not isinstance(scores, Tensor):
            raise PluginContractError(
                f"{name} answered with a {type(scores).__name__}, not with a tensor of scores "
                "(N, K); wrap it so that forward returns the logits alone",
                plugin=type(self.model).__module__,
            )
        if scores.ndim != 2 or len(scores) != len(y) or scores.shape[1] < 2:
            raise PluginContractError(
                f"{name} answered {len(y)} images with scores of shape {tuple(scores.shape)}; "
                "they must be (N, K), one row for each image and one column for each of K >= 2 "
                "classes",
                plugin=type(self.model).__module__,
            )
        if scores.device.type == "meta":
            raise PluginContractError(
                f"{name} answered with a tensor without data (device meta); load its weights first",
                plugin=type(self.model).__module__,
            )
        scores = scores.to(y.device)
        broken = int((~scores.isfinite()).any(1).sum())
        if broken:
            raise NonFiniteError(
                f"{name} answered {broken} of {len(y)} images with NaN or infinite scores, so its "
                "predictions there mean nothing: make its scores finite (log-probabilities from "
                "log_softmax or phalanx.api.log_mean are)"
            )
        self.classes = scores.shape[1]
        if len(y) and int(y.max()) >= self.classes:
            raise DataError(
                f"the data has a label {int(y.max())}, but {name} tells {self.classes} classes "
                "apart: evaluate it on the data set it was made for"
            )
        return scores
