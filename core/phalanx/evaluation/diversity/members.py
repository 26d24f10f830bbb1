"""All diversity measures of some members on some images, in batches.

Members are frozen and in evaluation mode meanwhile; gradients are with respect to the images only.
What cannot be computed is left out: gradients of members that have none, the discrimination score
of networks without features, the agreement of members that are all right everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import attacking
from phalanx.defense import cast_like
from phalanx.evaluation.diversity import measures
from phalanx.nn.member import Member

BATCH = 256
"""Images at once, where their maps have room."""
VALUES = 2**24
"""Values of all members' gradients of a batch at most: 64 MiB in float32."""

MEANINGS = {
    "entropy": "Entropy measure: how evenly members split into right and wrong on an image; from 0 "
    "(all agree) to 1, higher is more diverse.",
    "interrater_agreement": "Interrater agreement κ: whether members are right on the same images; "
    "1 always, 0 as if independent, down to -1/(L - 1) for L members; lower is more diverse.",
    "ambiguity": "Krogh-Vedelsby ambiguity: by how much averaging probabilities lowers the "
    "members' mean squared error; from 0 to 1, higher is more diverse.",
    "discrimination": "Discrimination score: squared distances between the members' mean "
    "activations over their variances, summed over pairs; at least 0, higher is more diverse.",
    "gradient_cosine": "Mean cosine between two members' loss gradients on an image; from -1 to 1, "
    "lower is more diverse.",
    "gradient_cosine_smallest": "Smallest cosine between two members' loss gradients on an image, "
    "averaged over images; from -1 to 1, lower is more diverse.",
    "saliency_cosine": "Mean cosine between two members' saliency maps, the signed gradients of "
    "the true class's logit; from -1 to 1, nearest 0 is most diverse.",
    "attention_cosine": "Mean cosine between where two members look, the absolute saliency maps; "
    "from 0 (elsewhere) to 1, lower is more diverse.",
    "mra": "Model robustness average: mean accuracy of the members on all adversarial examples; "
    "from 0 to 1, higher is more diverse where each example was made for one member.",
}
"""Name of a value -> what it means, its range, and which way is more diverse."""


def diversity(
    members: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    adversarial: Tensor | None = None,
    batch: int = BATCH,
) -> dict[str, float]:
    """How different the members of an ensemble are: every measure of `MEANINGS` that has a value.

    Cosines are averaged over pairs and images; an image on which a member's gradient is zero, or
    not finite, has none with that member. Rows are taken to be independent.

    Args:
        members: two networks or more, images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        x: clean images; anywhere, they are moved to the members' device batch by batch.
        y: labels ``(N,)``.
        adversarial: examples made of `x`, in its order; the model robustness average is of them.
            In the paper each was made for one member, chosen at random.
        batch: images at once; fewer are taken where gradients of all members would need more than
            64 MiB.

    Returns:
        Name -> value, in the order of `MEANINGS`.

    Raises:
        ValueError: for fewer than two members, or images and labels that do not go together.
    """
    _check(members, x, y, adversarial)
    together = nn.ModuleList(members)
    device = _device(together, x)
    right: list[Tensor] = []
    withstood: list[Tensor] = []
    found: dict[str, list[Tensor]] = {}
    with attacking(together), randomness.seeded("diversity"):
        for rows in _rows(members, x, batch):
            images, labels = x[rows].to(device), y[rows].to(device)
            scores, values = _measured(members, images, labels)
            right.append((scores.argmax(2) == labels).cpu())
            for name, one in values.items():
                found.setdefault(name, []).append(one.detach().cpu().double())
            if adversarial is not None:
                answers = _scores(members, adversarial[rows].to(device))
                withstood.append((answers.argmax(2) == labels).cpu())
    correct = torch.cat(right, 1)
    known = {name: torch.cat(parts).nanmean() for name, parts in found.items()}
    known["entropy"] = measures.entropy_measure(correct)
    known["interrater_agreement"] = measures.interrater_agreement(correct)
    if withstood:
        known["mra"] = measures.model_robustness_average(torch.cat(withstood, 1))
    numbers = {name: float(known[name]) for name in MEANINGS if name in known}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _measured(
    members: Sequence[nn.Module], x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """All members' scores ``(L, B, K)``, and each measure of single images ``(B,)``."""
    passes = [_pass(member, x, y) for member in members]
    scores = torch.stack([one for one, _, _ in passes])
    values = {"ambiguity": measures.ambiguity(scores.softmax(2))}
    gradients = [gradient for _, gradient, _ in passes if gradient is not None]
    saliencies = [saliency for _, _, saliency in passes if saliency is not None]
    if len(gradients) == len(members):
        cosines = measures.pairwise_cosines(gradients)
        values["gradient_cosine"] = cosines.nanmean(0)
        smallest = cosines.nan_to_num(torch.inf).amin(0)
        values["gradient_cosine_smallest"] = smallest.where(smallest <= 1.0, torch.nan)
    if len(saliencies) == len(members):
        values["saliency_cosine"] = measures.pairwise_cosines(saliencies).nanmean(0)
        looks = [measures.attention(saliency) for saliency in saliencies]
        values["attention_cosine"] = measures.pairwise_cosines(looks).nanmean(0)
    if all(isinstance(member, Member) for member in members):
        with torch.no_grad():
            features = [_at_least_float32(cast(Member, member).features(x)) for member in members]
        values["discrimination"] = measures.discrimination_score(features)
    return scores, values


def _pass(member: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scores ``(B, K)``, gradient of the smooth margin, saliency map ``(B, C, H, W)``.

    The two gradients are None where the scores do not depend on the images differentiably.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        scores = _at_least_float32(member(cast_like(x, member)))
        if not scores.requires_grad:
            return scores, None, None
        loss, logit = measures.smooth_margin(scores, y), scores.gather(1, y[:, None])
        (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True, allow_unused=True)
        (saliency,) = torch.autograd.grad(logit.sum(), x, allow_unused=True)
    return scores.detach(), gradient, saliency


@torch.no_grad()
def _scores(members: Sequence[nn.Module], x: Tensor) -> Tensor:
    """All members' scores ``(L, B, K)``."""
    return torch.stack([member(cast_like(x, member)) for member in members])


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _device(module: nn.Module, x: Tensor) -> torch.device:
    """Where the module's tensors are; the images' for one without."""
    tensor = next(chain(module.parameters(), module.buffers()), x)
    return tensor.device


def _rows(members: Sequence[nn.Module], x: Tensor, batch: int) -> Iterator[slice]:
    """Consecutive images whose gradients have room."""
    step = max(1, min(batch, VALUES // (len(members) * x[0].numel())))
    for first in range(0, len(x), step):
        yield slice(first, first + step)


def _check(members: Sequence[nn.Module], x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
    """All that is wrong with what was asked, in one error."""
    wrong = []
    if len(members) < 2:
        wrong.append(f"diversity is between two members or more, found {len(members)}")
    if len(x) == 0 or y.shape != (len(x),):
        wrong.append(
            f"one label (N,) goes with each of N >= 1 images, found images {tuple(x.shape)} and "
            f"labels {tuple(y.shape)}"
        )
    if adversarial is not None and adversarial.shape != x.shape:
        wrong.append(
            f"adversarial examples are of the shape of the images, {tuple(x.shape)}, found "
            f"{tuple(adversarial.shape)}"
        )
    if wrong:
        raise ValueError("; ".join(wrong))
