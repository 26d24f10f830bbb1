"""Geometry of the threats: projection, norm, steepest direction, random start, budget check.

Pure functions of tensors that dispatch on the `Threat`'s type. Images are ``(N, C, H, W)`` in
[0, 1] and eps is in the same units; every function works row by row, so rows of a batch never
influence each other.

Sources: L1 projection onto ball and box as the problem is stated in Croce and Hein, "Mind the
box" (ICML 2021, arXiv 2103.01208), solved here by sorting the breakpoints; sparse L1 step from
Tramèr and Boneh (NeurIPS 2019, arXiv 1904.13000) and Maini et al. (ICML 2020, arXiv 1909.04068).
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Generator, Tensor

from phalanx.errors import ThreatModelError
from phalanx.specs import L1, L2, Linf, NoBall, Threat, Union

L1_SHARE = 0.01
"""Share of the coordinates that an L1 step moves: the 99th percentile of Tramèr and Boneh."""
ROUNDING = 1e-5
"""Share of eps by which rounding may lengthen a perturbation."""


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Into the ball around `x` and into the box [0, 1].

    L-inf and L1 are the exact Euclidean projection on the intersection. L2 clips to the box and
    then rescales to the ball: both maps shrink towards `x`, so it ends inside both, and in this
    order it spends all of eps where it can.

    Args:
        x_adv: any images ``(N, C, H, W)``.
        x: clean images in [0, 1].
        threat: `Linf`, `L2` or `L1`.

    Returns:
        Images of the same shape, within threat and box.

    Raises:
        ThreatModelError: if the threat is no single ball.
    """
    match threat:
        case Linf(eps=eps):
            return torch.clamp(x_adv, x - eps, x + eps).clamp(0.0, 1.0)
        case L2(eps=eps):
            delta = x_adv.clamp(0.0, 1.0) - x
            length = per_row(norm(delta, threat), x).clamp_min(eps)
            return (x + delta * (eps / length)).clamp(0.0, 1.0)
        case L1(eps=eps):
            return _project_l1(x_adv, x, eps)
        case _:
            _no_ball(threat)


def _project_l1(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Exact: ``sign(δ)·min(max(|δ|−λ, 0), b)``, b the room to the box, λ >= 0 so that Σ = eps.

    Σ(λ) is piecewise linear with kinks at |δ| (a coordinate leaves zero as λ falls) and at
    |δ|−b (it meets the box); sorting the kinks gives λ in closed form. In float64, because
    thousands of terms are added.
    """
    clean = x.flatten(1).double()
    delta = x_adv.flatten(1).double() - clean
    room = torch.where(delta > 0, 1.0 - clean, clean).clamp_min(0.0)
    size = delta.abs()
    kinks, order = torch.cat([size, (size - room).clamp_min(0.0)], 1).sort(1, descending=True)
    moving = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)  # coordinates that grow
    gaps = kinks[:, :-1] - kinks[:, 1:]
    total = torch.nn.functional.pad((moving[:, :-1] * gaps).cumsum(1), (1, 0))  # Σ at each kink
    last = ((total <= eps).sum(1, keepdim=True) - 1).clamp_min(0)
    rest = (eps - total.gather(1, last)) / moving.gather(1, last).clamp_min(1.0)
    shrink = (kinks.gather(1, last) - rest).clamp_min(0.0)  # λ
    over = torch.minimum(size, room).sum(1, keepdim=True) > eps
    shrink = torch.where(over, shrink, 0.0)
    inside: Tensor = delta.sign() * torch.minimum((size - shrink).clamp_min(0.0), room)
    return (clean + inside).to(x.dtype).view_as(x).clamp(0.0, 1.0)


def norm(delta: Tensor, threat: Threat) -> Tensor:
    """Norm of each row of `delta` ``(N, ...)`` in the threat's geometry: ``(N,)``."""
    rows = delta.flatten(1)
    match threat:
        case Linf():
            return rows.abs().amax(1)
        case L2():
            return rows.square().sum(1).sqrt()
        case L1():
            return rows.abs().sum(1)
        case _:
            _no_ball(threat)


def steepest(
    gradient: Tensor, threat: Threat, x: Tensor | None = None, *, top: int | Tensor | None = None
) -> Tensor:
    """Direction of steepest ascent, of length 1 in the threat's norm; 0 where the gradient is 0.

    Args:
        gradient: ``(N, C, H, W)``; entries that are not finite count as 0.
        threat: L-inf: the sign; L2: ``g / ||g||``; L1: the sign of the `top` largest ``|g|``,
            divided by `top`.
        x: where the step starts; with it an L1 step leaves out coordinates that would leave the
            box at once.
        top: coordinates of an L1 step, for all rows or for each ``(N,)``; absent: 1 % of them.
    """
    gradient = finite(gradient)
    match threat:
        case Linf():
            return gradient.sign()
        case L2():
            # First by the largest entry: the square of a tiny gradient would underflow.
            scaled = gradient / _positive(norm(gradient, Linf(1.0)), gradient)
            return scaled / _positive(norm(scaled, threat), gradient)
        case L1():
            return _sparse(gradient, x, top)
        case _:
            _no_ball(threat)


def _sparse(gradient: Tensor, x: Tensor | None, top: int | Tensor | None) -> Tensor:
    """Sign of the `top` largest entries of each row, over `top`; never more than `top` move."""
    if x is not None:
        outward = ((gradient > 0) & (x >= 1.0)) | ((gradient < 0) & (x <= 0.0))
        gradient = gradient.masked_fill(outward, 0.0)
    rows = gradient.flatten(1)
    D = rows.shape[1]
    if isinstance(top, Tensor):
        k = top.clamp(1, D)[:, None]
        order = rows.abs().argsort(dim=1, descending=True, stable=True)
        chosen = torch.arange(D, device=rows.device) < k  # by rank, (N, D)
        step = torch.zeros_like(rows).scatter(1, order, rows.gather(1, order).sign() * chosen / k)
    else:
        few = min(D, max(1, round(L1_SHARE * D)) if top is None else top)
        order = rows.abs().topk(few, 1).indices
        step = torch.zeros_like(rows).scatter(1, order, rows.gather(1, order).sign() / few)
    return step.view_as(gradient)


def random_start(x: Tensor, threat: Threat, generator: Generator) -> Tensor:
    """A uniform point of each row's ball, clipped into the box.

    Args:
        x: clean images ``(N, C, H, W)`` in [0, 1].
        threat: the ball.
        generator: on x's device.
    """
    N, D = len(x), x[0].numel()
    match threat:
        case Linf(eps=eps):
            noise = 2.0 * _uniform(x, generator) - 1.0
        case L2(eps=eps):
            normal = torch.empty_like(x).normal_(generator=generator)
            noise = normal / _positive(norm(normal, threat), x)
        case L1(eps=eps):  # exponentials over their sum are uniform on the simplex
            laplace = torch.empty_like(x).exponential_(generator=generator)
            laplace = torch.where(_uniform(x, generator) < 0.5, -laplace, laplace)
            noise = laplace / _positive(norm(laplace, threat), x)
        case _:
            _no_ball(threat)
    if not isinstance(threat, Linf):
        radius = torch.rand(N, generator=generator, device=x.device, dtype=x.dtype) ** (1.0 / D)
        noise = noise * per_row(radius, x)
    return project(x + eps * noise, x, threat)


def within(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Whether each row keeps the rules: ``(N,)`` booleans.

    The norm may exceed eps by ``1e-5 eps + 1e-6`` (rounding); the box [0, 1] is exact; NaN and
    infinity are outside. Within a union is who is within one of its parts; `NoBall` asks only
    for the box.
    """
    inside = ((x_adv >= 0.0) & (x_adv <= 1.0)).flatten(1).all(1)  # False for NaN
    match threat:
        case NoBall():
            return inside
        case Union(parts=parts):
            return torch.stack([within(x_adv, x, part) for part in parts]).any(0)
        case Linf(eps=eps) | L2(eps=eps) | L1(eps=eps):
            length = norm(x_adv.double() - x.double(), threat)
            return inside & (length <= eps * (1.0 + ROUNDING) + 1e-6)
        case _:
            _no_ball(threat)


def excess(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """By how much each example breaks the rules, in pixel units: float64 ``(N,)``.

    The larger of what its norm has above ``eps (1 + 1e-5)`` and what a pixel has outside [0, 1];
    within a union the best part counts; infinite where an entry is not finite.

    Args:
        x_adv: examples ``(N, C, H, W)``.
        x: clean images.
        threat: what was allowed; without a ball only the box counts.
    """
    flat = x_adv.double().flatten(1)
    box = torch.maximum(-flat, flat - 1.0).amax(1).clamp_min(0.0)
    parts = threat.parts if isinstance(threat, Union) else (threat,)
    over = [
        norm(x_adv.double() - x.double(), part) - part.eps * (1.0 + ROUNDING)
        for part in parts
        if isinstance(part, Linf | L2 | L1)
    ]
    if len(over) == len(parts):
        box = torch.maximum(box, torch.stack(over).amin(0).clamp_min(0.0))
    return torch.where(flat.isfinite().all(1), box, torch.inf)


def finite(gradient: Tensor) -> Tensor:
    """The gradient with 0 in place of NaN and infinity, so that one bad row stays where it is."""
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values ``(N,)`` shaped to multiply ``(N, ...)`` rows."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _positive(values: Tensor, like: Tensor) -> Tensor:
    """Divisors ``(N,)`` for rows: 0 becomes the smallest normal number, as 0 / it is 0."""
    return per_row(values.clamp_min(torch.finfo(values.dtype).tiny), like)


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _no_ball(threat: Threat) -> NoReturn:
    raise ThreatModelError(
        f"threat {threat} is no single ball; this needs linf, l2 or l1, such as linf:8/255"
    )
