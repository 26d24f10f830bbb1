"""The loop: a slow reference, passes, rows, balls, what it breaks, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from phalanx.api import (
    L1,
    L2,
    AttackInapplicable,
    Combined,
    Linf,
    Targeted,
    Threat,
    UseAttack,
    generator,
    norm,
)
from phalanx.attacks.apgd import APGDCE
from phalanx.attacks.config import APGDConfig
from phalanx.errors import ThreatModelError
from phalanx_ensemble_attacks.config import MORAConfig
from phalanx_ensemble_attacks.mora import MORA, step_size

LINF, WIDE = Linf(0.1), L2(0.5)


def mora(threat: Threat = LINF, **given: Any) -> MORA:
    return MORA(MORAConfig(threat=threat, **given))


class Path:
    """Remembers iterates and losses, run by run."""

    def __init__(self) -> None:
        self.runs: list[list[tuple[Tensor, Tensor]]] = []

    def __call__(self, step: int, x: Tensor, loss: Tensor) -> None:
        if step == 0:
            self.runs.append([])
        assert step == len(self.runs[-1])
        self.runs[-1].append((x.clone(), loss.clone()))


# ---------------------------------------------------------------- a slow reference


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


def slow_loss(weights: list[Any], x: Any, y: int, beta: float, tau: float) -> tuple[float, Any]:
    """Loss and gradient of one image of averaged probabilities, the gradient by hand."""
    n, K = len(weights), len(weights[0])
    z = [W @ (x - 0.5) for W in weights]
    p = [softmax(one) for one in z]
    q = sum(p) / n
    soft = [softmax(tau * one) for one in z]
    soft_q = sum(soft) / n
    j = max((i for i in range(K) if i != y), key=lambda i: q[i])
    w = [
        s[j] * (s[y] / soft_q[y] + (1 - s[j]) / soft_q[j]) * (one.argmax() == y)
        for s, one in zip(soft, z, strict=True)
    ]
    total = sum(w)
    lead = max(np.sort(one)[-1] - np.sort(one)[-2] for one in z)
    c = max(1.0, lead / 10)
    m = np.sort(np.log(q))[-1] - np.sort(np.log(q))[-2]
    mixed = (1 - beta) * np.log(q) / m
    if total:
        mixed = mixed + beta * sum(w[k] / total * z[k] / c for k in range(n))
    g = softmax(mixed) - np.eye(K)[y]  # of the cross-entropy
    slope = np.zeros_like(x)
    for k in range(n):
        back = np.zeros(K)
        for i in range(K):  # ∂ log q_i / ∂ z_k = p_ki / (n q_i) (e_i − p_k)
            back += (1 - beta) / m * g[i] * p[k][i] / (n * q[i]) * (np.eye(K)[i] - p[k])
        if total:
            back += beta * w[k] / total / c * g
        slope += weights[k].T @ back
    return float(-np.log(softmax(mixed)[y])), slope


def slow_project(point: Any, x: Any, threat: Threat) -> Any:
    if isinstance(threat, Linf):
        return np.clip(np.clip(point, x - threat.eps, x + threat.eps), 0, 1)
    assert isinstance(threat, L2)
    delta = np.clip(point, 0, 1) - x
    return x + delta * min(1.0, threat.eps / max(np.linalg.norm(delta), 1e-300))


def slow_path(
    weights: list[Any], x: Any, y: int, start: Any, threat: Any, *, beta: float, steps: int
) -> list[Any]:
    """Losses and iterates of one run on one image, in double precision."""
    path, current, previous = [], start, start
    for i in range(steps + 1):
        loss, slope = slow_loss(weights, current, y, beta, 0.2)
        path.append((loss, current))
        size = threat.eps * (1 + math.cos(math.pi * i / steps))
        along = np.sign(slope) if isinstance(threat, Linf) else slope / np.linalg.norm(slope)
        ahead = slow_project(current + size * along, x, threat)
        a = 0.75 if i else 1.0
        mixed = current + a * (ahead - current) + (1 - a) * (current - previous)
        previous, current = current, slow_project(mixed, x, threat)
    return path


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.05)], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_against_a_slow_reference(
    random_ensemble: Any, rng: Generator, threat: Threat, beta: float
) -> None:
    model, x, y = random_ensemble(rows=4, rowwise=False)
    path = Path()
    attack = mora(threat, betas=(beta,), steps=5, schedule="cosine")
    attack(model, x, y, generator=rng, observe=path)
    weights = [member.weight.numpy() for member in model.members]
    (run,) = path.runs
    for row in range(len(x)):
        start = run[0][0][row].flatten().numpy()
        clean = x[row].flatten().numpy()
        expected = slow_path(weights, clean, int(y[row]), start, threat, beta=beta, steps=5)
        for (images, losses), (loss, image) in zip(run, expected, strict=True):
            np.testing.assert_allclose(images[row].flatten().numpy(), image, atol=1e-12)
            assert float(losses[row]) == pytest.approx(loss, rel=1e-9)


def test_steps_fall_from_twice_the_radius() -> None:
    sizes = [step_size(i, 4, LINF, schedule="linear") for i in range(4)]
    assert sizes == pytest.approx([0.2, 0.15, 0.1, 0.05])
    sizes = [step_size(i, 4, WIDE, schedule="cosine") for i in range(4)]
    assert sizes == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


# ---------------------------------------------------------------- what it breaks


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(("threat", "margin"), [(LINF, 3.0), (L2(0.1), 0.3)], ids=str)
@pytest.mark.parametrize("rowwise", [True, False])
def test_breaks_what_the_average_hides(
    planted: Any, threat: Threat, margin: float, rowwise: bool
) -> None:
    model, x, y = planted(margin, rowwise=rowwise)
    assert accuracy(model, x, y) == 1.0
    config = APGDConfig(threat=threat, steps=50)
    found = APGDCE(config)(model, x, y, generator=generator(1))
    assert accuracy(model, found, y) == 1.0
    own = mora(threat, steps=20, betas=(0.0,))(model, x, y, generator=generator(1))
    assert accuracy(model, own, y) == 1.0
    found = mora(threat, steps=20)(model, x, y, generator=generator(1))
    assert accuracy(model, found, y) == 0.0


@pytest.mark.parametrize("rule", ["probabilities", "logits", "votes"])
def test_every_rule_within_a_radius_that_suffices(
    random_ensemble: Any, rng: Generator, rule: str
) -> None:
    model, x, y = random_ensemble(rule)
    found = mora(Linf(0.4), steps=30)(model, x, y, generator=rng)
    assert accuracy(model, found, y) == 0.0


# ---------------------------------------------------------------- passes and rows


@pytest.mark.parametrize("rowwise", [True, False])
def test_passes_where_nobody_is_fooled(random_ensemble: Any, rng: Generator, rowwise: bool) -> None:
    model, x, y = random_ensemble(rowwise=rowwise)
    mora(Linf(1e-6), steps=7, restarts=2)(model, x, y, generator=rng)
    assert model.asked == [len(x)] * (2 * 5 * 8)
    assert model.whole == []


def test_fooled_rows_leave_and_survivors_go_on(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    found = mora(Linf(0.05), steps=10)(model, x, y, generator=rng)
    left = int((model(found).argmax(1) == y).sum())
    assert 0 < left < len(x)
    assert model.asked[0] == len(x)
    assert model.asked == sorted(model.asked, reverse=True)
    assert len(model.asked) == 5 * 11
    assert model.asked[-1] >= left


def test_all_fooled_ends_it_and_no_rows_ask_nothing(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    mora(Linf(1.0))(model, x, y, generator=rng)
    assert len(model.asked) < 20
    model.asked.clear()
    assert mora()(model, x[:0], y[:0], generator=rng).shape == (0, 2, 3, 3)
    assert model.asked == []


@pytest.mark.parametrize("rowwise", [True, False])
def test_what_is_kept_of_all_iterates(random_ensemble: Any, rng: Generator, rowwise: bool) -> None:
    """The first that fools where rows are independent, else the one that leads by most."""
    model, x, y = random_ensemble(rowwise=rowwise)
    path = Path()
    found = mora(Linf(0.05), steps=6)(model, x, y, generator=rng, observe=path)
    assert [len(run) for run in path.runs] == [7] * 5
    images = torch.stack([images for run in path.runs for images, _ in run])
    q = torch.stack([torch.stack([m(one).softmax(-1) for m in model.members]) for one in images])
    scores = q.mean(1).log()
    for row, label in enumerate(y.tolist()):
        rivals = scores[:, row].clone()
        rivals[:, label] = -torch.inf
        lead = rivals.max(1).values - scores[:, row, label]
        fooled = (lead > 0).nonzero().flatten()
        best = int(fooled[0]) if rowwise and len(fooled) else int(lead.argmax())
        assert torch.equal(found[row], images[best, row])


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize("threat", [Linf("8/255"), L2(0.3)], ids=str)
@pytest.mark.parametrize("rule", ["probabilities", "logits", "votes"])
@pytest.mark.parametrize("rowwise", [True, False])
def test_ball_box_and_determinism(
    random_ensemble: Any, threat: Threat, rule: str, rowwise: bool
) -> None:
    model, x, y = random_ensemble(rule, rowwise=rowwise)
    x = x.round(decimals=1)  # some pixels at the box
    first, second, other = (
        mora(threat, steps=4)(model, x, y, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert bool((norm(first - x, threat) <= threat.eps * (1 + 1e-9)).all())  # type: ignore[attr-defined]  # both are balls
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0
    assert not first.requires_grad


def test_settings_change_what_is_ascended(random_ensemble: Any) -> None:
    def loss(**given: Any) -> Tensor:
        model, x, y = random_ensemble(rowwise=False)
        path = Path()
        mora(steps=1, **given)(model, x, y, generator=generator(1), observe=path)
        return path.runs[0][0][1]

    assert torch.equal(loss(), loss(temperature=0.2))
    assert not torch.equal(loss(), loss(temperature=0.8))
    assert not torch.equal(loss(), loss(betas=(0.0,)))
    assert torch.equal(loss(betas=(0.0,)), loss(betas=(0.0,), temperature=0.8))


def test_rows_without_a_finite_score_stay_in_the_ball(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    model.members[1].bias = torch.full((4,), torch.nan, dtype=x.dtype)
    found = mora(steps=2)(model, x, y, generator=rng)
    assert torch.equal(found, x)


# ---------------------------------------------------------------- refusals

NO_AVERAGE = (
    r"^attack 'mora' weighs the members of an ensemble, and this function is no average of "
    r"members' probabilities, logits or votes: attack the view 'deployed' of a deterministic "
    r"ensemble or 'expected' of a stochastic one, or use 'apgd-t', which needs no members$"
)


class Silent(nn.Module):
    def combined(self, x: Tensor) -> Combined | None:
        return None


@pytest.mark.parametrize("model", [nn.Flatten(), Silent(), lambda x: x.flatten(1)])
def test_no_average_of_members_is_refused(model: Any, rng: Generator) -> None:
    x, y = torch.rand(2, 1, 2, 2, generator=rng), torch.zeros(2, dtype=torch.long)
    with pytest.raises(AttackInapplicable, match=NO_AVERAGE):
        mora()(model, x, y, generator=rng)


def test_targets_are_refused(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    text = "^attack 'mora' leads away from the labels and knows no targets: use 'apgd-ce' or 'pgd'"
    with pytest.raises(AttackInapplicable, match=text):
        mora()(model, x, Targeted(y), generator=rng)


def test_members_without_a_gradient_are_refused(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    inner = model.combined
    model.combined = lambda images: inner(images.detach())
    with pytest.raises(AttackInapplicable, match="depend on the images differentiably"):
        mora()(model, x, y, generator=rng)


def test_other_threats_are_refused() -> None:
    with pytest.raises(ThreatModelError, match="attack MORA cannot take threat l1:2; it takes"):
        mora(L1(2.0))


def test_registered_by_name() -> None:
    attack = UseAttack.model_validate({"use": "mora", "params": {"threat": "l2:1"}}).create()
    assert isinstance(attack, MORA)
    assert attack.at(LINF).threat == LINF
