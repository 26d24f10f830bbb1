"""Counter-linking: the mask ℓ and the periodic random similarity examination (PRSE).

Jasser & Garibay, "Resilience from Diversity: Population-based approach to harden models against
adversarial attacks", arXiv 2111.10272. Implements eqs. (4) and (5), fig. 3 and the calling times
of Alg. 1; all pure functions of tensors and numbers.

W_i is the first weight layer's weight (l = 1) of sub-model i: ``(O, C, k, k)`` for a convolution,
``(O, D)`` for a linear layer.

Choices where the paper is not definite:
    * "around half of the weights" are linked: each entry of ℓ is Bernoulli(0.5), not exactly half.
    * ℓ is one kernel's mask, shared by all output filters (fig. 3), although the text speaks of a
      uniform distribution over all of W.
    * The exponent n of ``(−1)^n`` in eq. (5) is the sub-model's index counted from 1 (the prose:
      odd goes down), not the population's size of the same name.
    * "less than the threshold δ" is strict.

Deviation: Alg. 1 as printed never calls PRSE (c is set to 0 at each epoch and reaches at most
n − 1 = 9 where c > n − 1 is asked). The prose is followed instead: a sub-model that was trained
for 10 mini-batches is examined before the next one. `unit="submodel_epoch"` is Alg. 1 without
the reset of c at each epoch: one call for every 10 epochs of any sub-model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

PRSEUnit = Literal["batch", "submodel_epoch"]


def similarity(w_i: Tensor, w_j: Tensor, delta: float) -> Tensor:
    """β of eq. (4): which weights of two sub-models are nearer than δ.

    Args:
        w_i: weight of one sub-model, any shape.
        w_j: weight of another, same shape.
        delta: δ, at least 0; the comparison is strict.

    Returns:
        Booleans of the shape of `w_i`.
    """
    return (w_i - w_j).abs() < delta


def direction(index: int) -> int:
    """The sign ``(−1)^(index + 1)`` of eq. (5) for a sub-model's 0-based index.

    >>> [direction(i) for i in range(4)]
    [-1, 1, -1, 1]
    """
    return -1 if index % 2 == 0 else 1


def prse(
    w_i: Tensor, w_j: Tensor, mask: Tensor, *, alpha: float, delta: float, index: int
) -> Tensor:
    """Eq. (5): ``W_i + s_i · α · (β ⊙ ℓ)``, where s_i is `direction` of the sub-model's index.

    Args:
        w_i: weight of the sub-model in training, ``(O, C, k, k)`` or ``(O, D)``.
        w_j: weight of its partner, same shape.
        mask: ℓ, booleans or 0 and 1, that broadcast to the weight: ``(1, C, k, k)`` or ``(1, D)``.
        alpha: α, what is added, in units of the weights.
        delta: δ, the threshold, in units of the weights.
        index: i counted from 0, so that 0, 2, 4 … are the paper's odd sub-models and go down.

    Returns:
        The new weight; neither argument is changed.

    Raises:
        ValueError: if both weights are the same tensor: the paper asks for m_i ≠ m_j.
    """
    if w_i is w_j:
        raise ValueError(
            f"PRSE compares two different sub-models, found sub-model {index + 1} with itself: "
            "draw its partner from the others, as other_weight does"
        )
    touched = similarity(w_i, w_j, delta) & mask.bool()
    return torch.where(touched, w_i + direction(index) * alpha, w_i)


def other_weight(weights: Sequence[Tensor], index: int, generator: Generator) -> Tensor:
    """The weight of Random({m_1 … m_n} − {m_i}), a copy; chosen on the device, without a wait.

    Args:
        weights: the n sub-models' weights, all of one shape, n >= 2.
        index: i counted from 0.
        generator: on the weights' device.

    Raises:
        ValueError: if there is no other sub-model.
    """
    others = [weight for j, weight in enumerate(weights) if j != index]
    if not others:
        raise ValueError("PRSE needs a partner: a population of one sub-model has none")
    chosen = torch.randint(len(others), (1,), generator=generator, device=generator.device)
    return torch.stack(others).index_select(0, chosen).squeeze(0)


def link_mask(shape: Sequence[int], generator: Generator) -> Tensor:
    """ℓ of fig. 3: each entry linked with probability 0.5, one mask for all output filters.

    Args:
        shape: of the weight, ``(O, C, k, k)`` or ``(O, D)``.
        generator: on the CPU.

    Returns:
        Booleans ``(1, C, k, k)`` or ``(1, D)``.
    """
    _, *kernel = shape
    return torch.rand((1, *kernel), generator=generator) < 0.5


def is_prse_due(epoch: int, index: int, *, period: int, unit: PRSEUnit = "batch") -> bool:
    """Whether a PRSE comes before this batch; a function of the position, so no counter exists.

    Args:
        epoch: sub-model epochs so far, of all sub-models, from 0.
        index: batch within this sub-model's epoch, from 0.
        period: steps between two PRSE.
        unit: "batch": before batches 11, 21, … of each sub-model's epoch (for a period of 10);
            "submodel_epoch": before the first batch of sub-model epochs 11, 21, ….
    """
    if unit == "batch":
        return index > 0 and index % period == 0
    return index == 0 and epoch > 0 and epoch % period == 0


def prse_calls(steps: int, period: int) -> int:
    """How many PRSE come in `steps` steps: ``floor((steps − 1) / period)``.

    >>> [prse_calls(k, 10) for k in (391, 469, 10, 11)]
    [39, 46, 0, 1]
    """
    return max(steps - 1, 0) // period
