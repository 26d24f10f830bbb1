"""FAB-T: the fast adaptive boundary attack, towards the most likely wrong classes in turn.

Paper: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack" (ICML 2020, arXiv 1907.02044): projections onto hyperplane and box (section 2.2 and
appendix), biased gradient step (eq. (7) to (9)), backward step (eq. (10)), final search (eq. (11)).
The targeted form, which linearises ``z_t − z_y`` only, is that of AutoAttack (arXiv 2003.01690).

It looks for the *nearest* adversarial example: one outside eps leaves its row robust, and the row
gets that example pulled back into the ball. Where rows are independent, a row that is broken
within eps leaves the batch, since it is decided.

Deviation: one forward pass a step instead of two. The pass that linearises an iterate also says
whether it is adversarial, and the backward step (10) then starts from the same linearisation.
Deviation: where rows are not independent (a stochastic view), no draw decides: no row leaves, the
clean image is no example, and every row gets its iterate within eps that leads by most, as in
`apgd`. The distances of `minimal` are then too small, for one lucky draw makes an example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from phalanx.attack import Attack, Observer, Scores, Targeted, may_drop_rows
from phalanx.attacks.ascent import input_gradient
from phalanx.attacks.balls import finite, norm, per_row, project, random_start
from phalanx.attacks.config import FABTConfig
from phalanx.attacks.gradient import BALLS, radius
from phalanx.attacks.losses import Across, Goal, goal_of, margin, wrong_classes
from phalanx.specs import L1, L2, Threat


def towards_plane(x: Tensor, normal: Tensor, offset: Tensor, threat: Threat) -> Tensor:
    """The shortest step onto a hyperplane inside the box.

    Minimises ``||d||`` in the threat's norm subject to ``<w, d> + c = 0`` and ``0 <= x + d <= 1``.
    Coordinates move against the sign of ``c w``, each at most to its wall ``b``. With ``a = |w|``:
    L-inf ``d = min(λ, b)``, L2 ``d = min(λ a, b)``, λ from ``Σ a d = |c|`` by sorting the walls;
    L1 fills coordinates by falling ``a``. Where the box holds no point of the plane, it is the
    corner that comes closest.

    Args:
        x: points ``(N, C, H, W)`` in [0, 1].
        normal: w, of the same shape.
        offset: c, the linear function's value at x, ``(N,)``.
        threat: `Linf`, `L2` or `L1`; its eps does not matter.

    Returns:
        Steps d of the same shape.
    """
    rows, w, c = x.flatten(1), normal.flatten(1), offset[:, None]
    way = -(w * c.sign()).sign()
    wall = torch.where(way > 0, 1.0 - rows, rows)  # b
    a, goal = w.abs(), c.abs()
    if isinstance(threat, L1):
        order = a.argsort(dim=1, descending=True)
        gain = (a * wall).gather(1, order)
        before = gain.cumsum(1) - gain
        share = ((goal - before) / gain.clamp_min(torch.finfo(a.dtype).tiny)).clamp(0.0, 1.0)
        length = wall * torch.zeros_like(share).scatter(1, order, share)
    else:
        speed = a if isinstance(threat, L2) else torch.ones_like(a)
        reach = torch.where(speed > 0, _scale(a, wall, speed, goal) * speed, 0.0)  # 0 · inf is 0
        length = torch.minimum(reach, wall)
    return (way * length).view_as(x)


def _scale(a: Tensor, wall: Tensor, speed: Tensor, goal: Tensor) -> Tensor:
    """λ >= 0 with ``Σ a min(λ s, b) = goal`` per row; infinity where all walls do not suffice.

    Between two sorted hits ``b/s`` the sum is linear in λ, so the right piece gives λ exactly.
    """
    tiny = torch.finfo(a.dtype).tiny
    hit = torch.where(speed > 0, wall / speed.clamp_min(tiny), torch.inf)
    hit, order = hit.sort(1)
    full, rate = (a * wall).gather(1, order), (a * speed).gather(1, order)
    stopped = full.cumsum(1) - full  # Σ a b over coordinates at their wall, before each hit
    running = rate.flip(1).cumsum(1).flip(1)  # Σ a s over the others
    there = torch.where(running > 0, stopped + hit * running, stopped)  # the sum at each hit
    piece = (there < goal).sum(1, keepdim=True)
    last = piece.clamp_max(a.shape[1] - 1)
    rest = (goal - stopped.gather(1, last)).clamp_min(0.0)
    scale = rest / running.gather(1, last).clamp_min(tiny)
    return torch.where(piece < a.shape[1], scale, torch.inf)


@dataclass
class _Nearest:
    """What was found so far, per row; images are clean ones where there is nothing.

    Attributes:
        x: nearest adversarial examples ``(N, C, H, W)``.
        distance: theirs, ``(N,)``; infinite if none.
        leader: iterates within eps of highest lead, kept only if `drawn`.
        lead: theirs, ``(N,)``; −infinity if none.
        drawn: rows are not independent, so that a look at the model is one draw.
    """

    x: Tensor
    distance: Tensor
    leader: Tensor
    lead: Tensor
    drawn: bool

    def of(self, rows: Tensor) -> _Nearest:
        """A copy of some rows."""
        found = (self.x[rows], self.distance[rows], self.leader[rows], self.lead[rows])
        return _Nearest(*found, self.drawn)

    def put(self, rows: Tensor, part: _Nearest) -> None:
        """Put the copy back."""
        self.x[rows], self.distance[rows] = part.x, part.distance
        self.leader[rows], self.lead[rows] = part.leader, part.lead


class FABT(Attack[FABTConfig]):
    """Nearest adversarial examples: at most `steps` forward and backward passes a class and run.

    One forward pass ranks the classes, one ends each run, and `search` + 2 end the attack.
    """

    supports = BALLS

    def note(self, classes: int) -> str:
        """'': the attack is the same for any number of classes."""
        return ""

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """See `Attack`; rows with nothing inside eps get their nearest example's projection."""
        eps = radius(self.threat)
        enough = eps if may_drop_rows(model) and observe is None else -1.0
        nearest = self._search(model, x, y, generator, observe, enough=enough)
        pulled = project(nearest.x, x, self.threat)
        if nearest.drawn:
            return torch.where(per_row(nearest.lead > -torch.inf, x), nearest.leader, pulled)
        return torch.where(per_row(nearest.distance <= eps, x), nearest.x, pulled)

    def minimal(
        self, model: Scores, x: Tensor, y: Tensor | Targeted, *, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The nearest adversarial examples found, whatever the threat's eps.

        Returns:
            Images ``(N, C, H, W)``, and distances ``(N,)`` in the threat's norm, infinite (and
            the image clean) where none was found.
        """
        nearest = self._search(model, x, y, generator, None, enough=-1.0)
        return nearest.x, nearest.distance

    def _search(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        generator: Generator,
        observe: Observer | None,
        *,
        enough: float,
    ) -> _Nearest:
        """All classes and restarts; rows found within `enough` are left out of what follows."""
        x = x.detach()
        with torch.no_grad():
            scores = model(x)
        goals: list[Goal]
        if isinstance(y, Targeted):
            goals = [goal_of(y, margin)]
        else:
            ranked = wrong_classes(scores, y, self.config.targets)
            goals = [Across(y, targets) for targets in ranked.unbind(1)]
        drawn = not may_drop_rows(model)
        unset = x.new_full((len(x),), torch.inf)
        distance = unset if drawn else torch.where(goals[0].reached(scores), 0.0, unset)
        nearest = _Nearest(x.clone(), distance, x.clone(), -unset, drawn)
        for goal in goals:
            for restart in range(self.config.restarts):
                rows = (nearest.distance > max(enough, 0.0)).nonzero().squeeze(1)
                if len(rows) == 0:
                    return nearest
                best = nearest.of(rows)
                start = x[rows]
                if restart > 0:
                    start = self._restart(start, best, generator)
                self._run(model, x[rows], goal[rows], start, best, observe, enough=enough)
                nearest.put(rows, best)
        self._final(model, x, goals[0], nearest, enough=enough)
        return nearest

    def _restart(self, x: Tensor, best: _Nearest, generator: Generator) -> Tensor:
        """A random point at up to half of eps, or of the distance to beat if that is less."""
        eps = radius(self.threat)
        near = (best.distance / (2.0 * max(eps, 1e-12))).clamp_max(0.5)
        around = random_start(x, self.threat, generator) - x
        return x + per_row(near, x) * around

    def _run(
        self,
        model: Scores,
        x: Tensor,
        goal: Goal,
        start: Tensor,
        best: _Nearest,
        observe: Observer | None,
        *,
        enough: float,
    ) -> None:
        """One run towards one class; `best` is brought up to date in place."""
        current = start
        rows = torch.arange(len(x), device=x.device)
        for step in range(self.config.steps):
            value, normal, scores = _linearise(model, current, goal[rows])
            reached = goal[rows].reached(scores)
            if observe is not None:
                observe(step, current, value)
            self._nearer(best, rows, current, x[rows], goal[rows], scores)
            if enough >= 0 and bool((decided := best.distance[rows] <= enough).any()):
                rows, current, value = rows[~decided], current[~decided], value[~decided]
                normal, reached = normal[~decided], reached[~decided]
                if len(rows) == 0:
                    return
            current = self._advance(current, x[rows], value, normal, reached)
        with torch.no_grad():
            scores = model(current)
        self._nearer(best, rows, current, x[rows], goal[rows], scores)

    def _advance(
        self, current: Tensor, x: Tensor, value: Tensor, normal: Tensor, reached: Tensor
    ) -> Tensor:
        """The next iterate: back towards x if adversarial, then over the linearised boundary."""
        config, threat, N = self.config, self.threat, len(x)
        back = x + config.beta * (current - x)  # eq. (10)
        before = torch.where(per_row(reached, x), back, current)
        both = torch.cat([before, x])
        away = both - torch.cat([current, current])
        slopes = torch.cat([normal, normal])
        offset = torch.cat([value, value]) + (slopes * away).flatten(1).sum(1)
        step = towards_plane(both, slopes, offset, threat)
        length = norm(step, threat)
        share = length[:N] / (length[:N] + length[N:]).clamp_min(torch.finfo(x.dtype).tiny)
        alpha = per_row(share.clamp_max(config.alpha_max), x)  # eq. (9)
        ahead = both + config.eta * step
        return ((1.0 - alpha) * ahead[:N] + alpha * ahead[N:]).clamp(0.0, 1.0)  # eq. (8)

    def _nearer(
        self,
        best: _Nearest,
        rows: Tensor,
        found: Tensor,
        x: Tensor,
        goal: Goal,
        scores: Tensor,
    ) -> None:
        """Keep adversarial iterates that are nearer than the best ones of these rows."""
        distance = norm(found - x, self.threat)
        nearer = goal.reached(scores) & (distance < best.distance[rows])
        if best.drawn:
            lead, moved = goal.lead(scores), distance > 0.0
            nearer = nearer & moved
            leads = moved & (distance <= radius(self.threat)) & (lead > best.lead[rows])
            best.leader[rows[leads]], best.lead[rows[leads]] = found[leads], lead[leads]
        at = rows[nearer]
        best.x[at], best.distance[at] = found[nearer], distance[nearer]

    def _final(
        self, model: Scores, x: Tensor, goal: Goal, nearest: _Nearest, *, enough: float
    ) -> None:
        """Eq. (11): false position between clean image and example, on the goal's lead."""
        far = (nearest.distance > max(enough, 0.0)) & nearest.distance.isfinite()
        rows = far.nonzero().squeeze(1)
        if len(rows) == 0 or self.config.search == 0:
            return
        clean, goal = x[rows], goal[rows]
        along = nearest.x[rows] - clean
        low, high = torch.zeros_like(nearest.distance[rows]), torch.ones_like(rows, dtype=x.dtype)
        with torch.no_grad():
            below, above = goal.lead(model(clean)), goal.lead(model(clean + along))
            for _ in range(self.config.search):
                share = (below / (below - above)).nan_to_num(0.5).clamp(0.0, 1.0)
                middle = low + share * (high - low)
                scores = model(images := clean + per_row(middle, clean) * along)
                reached, lead = goal.reached(scores), goal.lead(scores)
                self._nearer(nearest, rows, images, clean, goal, scores)
                low, below = torch.where(reached, low, middle), torch.where(reached, below, lead)
                high, above = torch.where(reached, middle, high), torch.where(reached, lead, above)


def _linearise(model: Scores, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor, Tensor]:
    """Value ``(N,)`` and gradient of the goal's loss, and the scores ``(N, K)`` it was taken of."""
    seen: list[Tensor] = []

    def objective(images: Tensor) -> Tensor:
        scores = model(images)
        seen.append(scores.detach())
        return goal.loss(scores)

    value, normal = input_gradient(objective, x)
    return finite(value), finite(normal), seen[0]
