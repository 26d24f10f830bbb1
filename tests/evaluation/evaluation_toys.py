"""Small models and attacks whose outcomes are known."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from phalanx.attack import Attack
from phalanx.config import AttackConfig
from phalanx.data.sets import ArraySplit, Data
from phalanx.defense import DefendedModel
from phalanx.errors import AttackInapplicable
from phalanx.registry import Registry
from phalanx.specs import ComponentSpec, Kind, Linf, Task

SIDE = 4
TASK = Task(name="toy", shape=(1, SIDE, SIDE), classes=2, train_size=0, mean=(0.5,), std=(0.5,))


def images(n: int) -> Data:
    """n images; the class says whether the mean pixel is above one half."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, SIDE, SIDE, generator=generator) * 0.2
    y = torch.arange(n) % 2
    x = x + 0.15 + 0.5 * y.view(-1, 1, 1, 1)
    empty = ArraySplit(x[:0], y[:0])
    return Data(TASK, empty, empty, ArraySplit(x, y), Linf(0.1))


class Threshold(nn.Module):
    """Scores (-s, s) with s = scale * (mean pixel - cut)."""

    def __init__(self, cut: float = 0.5, scale: float = 10.0) -> None:
        super().__init__()
        self.cut = nn.Parameter(torch.tensor(cut))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        s = self.scale * (x.flatten(1).mean(1) - self.cut)
        return torch.stack([-s, s], 1)


class Plain(DefendedModel):
    """Deterministic; counts what it is asked."""

    def __init__(self, cut: float = 0.5) -> None:
        super().__init__()
        self.network = Threshold(cut)
        self.count = itertools.count()  # no plain value, which would enter the digest

    @property
    def asked(self) -> int:
        """Images so far."""
        return int(repr(self.count)[6:-1])

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        assert not self.training, "it is judged and attacked in evaluation mode"
        for _ in range(len(x)):
            next(self.count)
        return self.network(x)


class Mixed(DefendedModel):
    """One of several thresholds for each image; `closed`: offers them as its support."""

    stochastic = True

    def __init__(self, cuts: Sequence[float], *, closed: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(Threshold(cut) for cut in cuts)
        self.closed = closed

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        chosen = torch.randint(len(self.networks), (len(x),), generator=generator)
        scores = torch.stack([network(x) for network in self.networks])
        return scores[chosen, torch.arange(len(x))]

    def support(self) -> Sequence[nn.Module]:
        return tuple(self.networks) if self.closed else ()


class NotFinite(Plain):
    """Answers NaN for bright images."""

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        scores = super().draw(x, generator)
        return scores.where(x.flatten(1).mean(1, keepdim=True) < 0.5, torch.nan)


class ToyConfig(AttackConfig):
    """Moves every pixel towards the other class by `size`."""

    size: float = 0.1
    mode: str = "shift"


@dataclass
class Log:
    """What the attacks of one registry saw."""

    calls: int = 0
    seen: list[tuple[int, bool, int]] = field(default_factory=list)


class Toy(Attack[ToyConfig]):
    """Shifts, adds noise, breaks the rules or refuses, as `mode` says; logs its calls."""

    log: ClassVar[Log]

    def note(self, classes: int) -> str:
        return f"Toy of {classes} classes." if self.config.mode == "noted" else ""

    def __call__(
        self, model: Any, x: Tensor, y: Any, *, generator: Generator, observe: Any = None
    ) -> Tensor:
        log = type(self).log
        log.calls += 1
        log.seen.append((len(x), bool(model.rowwise), id(model)))
        mode, size = self.config.mode, self.config.size
        way = (1.0 - 2.0 * y.float()).view(-1, 1, 1, 1)
        if mode == "refuse":
            raise AttackInapplicable("toy: not today")
        if mode == "crash":
            raise RuntimeError("element 0 of tensors does not require grad")
        if mode == "lookup":
            raise KeyError("estimator")
        if mode == "interrupt":
            raise KeyboardInterrupt
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "noise":
            return (x + size * torch.randn(x.shape, generator=generator).sign()).clamp(0, 1)
        moved = (x + size * way).clamp(0, 1)
        if mode == "break":  # row 0 leaves the ball, row 1 the box, row 2 is NaN
            moved[0] = (x[0] + 2 * size * way[0]).clamp(0, 1)
            moved[1] = x[1] + 10.0
            moved[2] = torch.nan
        return moved


def toy_registry() -> tuple[Registry, Log]:
    """A registry with the attack ``toy`` besides the core's, and its fresh log."""
    registry = Registry(discover=False)
    Toy.log = Log()
    registry.register(
        ComponentSpec(
            kind=Kind.ATTACK,
            name="toy",
            factory=f"{__name__}:Toy",
            config=f"{__name__}:ToyConfig",
            summary="A toy.",
        )
    )
    return registry, Toy.log
