"""Whom the aggregator asks for which type of input.

Cheng et al., "More or Less (MoL)", WACV Workshops 2022, section 4.2: the aggregator is to give the
expert of a type the largest weight. Weights that are the same for every type, whatever they are,
mean that no routing was learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.api import Perturbing, attacking, generator
from phalanx_mol.model import MoLModel


@dataclass(frozen=True)
class Routing:
    """The weights that inputs of one type get.

    Attributes:
        type: of the inputs.
        mean: of each expert, over images.
        deviation: standard deviation over images.
        largest: share of images on which each expert has the largest weight.
        images: how many.
    """

    type: str
    mean: dict[str, float]
    deviation: dict[str, float]
    largest: dict[str, float]
    images: int


def inputs(
    model: MoLModel, type_: Perturbing, x: Tensor, y: Tensor, *, seed: int, first_row: int = 0
) -> Tensor:
    """Inputs of a type, made as the aggregator's training makes them by default.

    An attack is on the whole system and takes all its steps on every image, fooled or not.

    Args:
        model: left as it is.
        type_: how they are made.
        x: clean images ``(N, C, H, W)`` in [0, 1].
        y: labels ``(N,)``.
        seed: of the draws.
        first_row: keys them too, so that a batch can be made anywhere.
    """
    draws = generator(seed, "routing", type_.name, first_row, device=x.device)
    with attacking(model):
        return type_(model, x, y, generator=draws)


def routing(
    model: MoLModel, type_: Perturbing, x: Tensor, y: Tensor, *, seed: int = 0, batch: int = 250
) -> Routing:
    """How inputs of a type are weighed, in evaluation mode.

    Args:
        model: left as it is.
        type_: of the inputs.
        x: clean images ``(N, C, H, W)`` in [0, 1]; the paper's question wants 1,000 or more.
        y: labels ``(N,)``.
        seed: of the draws.
        batch: images at a time.
    """
    parts = []
    for at in range(0, len(x), batch):
        rows = slice(at, at + batch)
        made = inputs(model, type_, x[rows], y[rows], seed=seed, first_row=at)
        with attacking(model), torch.no_grad():
            parts.append(model.weights(made))
    a = torch.cat(parts).double()  # (N, m)
    first = torch.nn.functional.one_hot(a.argmax(1), a.shape[1]).double()
    deviation = a.std(0) if len(a) > 1 else torch.zeros(a.shape[1])
    return Routing(
        type=type_.name,
        mean=_named(model, a.mean(0)),
        deviation=_named(model, deviation),
        largest=_named(model, first.mean(0)),
        images=len(a),
    )


def spread(rows: Sequence[Routing]) -> float:
    """How far weights differ between types: the largest range of an expert's mean weight.

    Below about 0.02 the aggregator treats all types alike.
    """
    experts = rows[0].mean
    return max(
        max(row.mean[name] for row in rows) - min(row.mean[name] for row in rows)
        for name in experts
    )


def matched(rows: Sequence[Routing]) -> float:
    """Mean over types of how often the type's own expert has the largest weight, in [0, 1]."""
    return sum(row.largest[row.type] for row in rows) / len(rows)


def _named(model: MoLModel, values: Tensor) -> dict[str, float]:
    return dict(zip(model.names, values.tolist(), strict=True))
