"""A cell: one attack through one view of one model; and its blocks of 256 images.

A block is what is computed, stored and claimed at once. Every draw is keyed by (cell, row where the
batch begins), and a view that keeps a random stream is opened afresh for each block, so a block
comes out the same in any process, whatever was computed before it. A fixed-draw view is opened
afresh for each chunk of 16 consecutive rows, since one attacked draw for a whole test set is noise.

Where a view's rows are independent an attack takes its steps on a prepared copy of the view
(`phalanx.nn.prepare`), if there is one that agrees on the first images; what the copy decides
otherwise than the view itself is attacked again on the view, and the judge asks the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack, attacking
from phalanx.attacks.balls import excess, per_row, within
from phalanx.attacks.crafting import doubtful
from phalanx.defense import DefendedModel, View
from phalanx.errors import (
    AttackInapplicable,
    EvaluationError,
    PluginContractError,
    PluginError,
    StorageError,
    ThreatModelError,
)
from phalanx.evaluation.judge import Judge
from phalanx.evaluation.metering import Metered, Passes
from phalanx.evaluation.opened import Function, Opened
from phalanx.evaluation.scoring import Draws, spread
from phalanx.phase import Batch

BLOCK = 256
"""Images in a block."""
CHUNK = 16
"""Images for which a fixed-draw view is opened."""
FORMAT = 3
"""Of a stored block; another number is another key."""
NONE = "none"
"""View, attack and threat of the clean cell."""
TRANSFER = "transfer"
"""View of a cell whose examples were made for another model."""


@dataclass(frozen=True)
class Cell:
    """What a cell's outcome depends on, besides the images.

    Attributes:
        weights: SHA-256 of what is attacked, or judged on another's examples.
        data: name of the data set.
        view: name of the view, "none", or "transfer".
        attack: name and parameters (`attack_identity`), "none", or where examples come from.
        threat: as text, or "none".
        seed: of the evaluation.
        batch: images that are attacked at once, where it is not a whole block.
    """

    weights: str
    data: str
    view: str
    attack: str
    threat: str
    seed: int
    batch: int = BLOCK

    @property
    def stream(self) -> tuple[str | int, ...]:
        """What keys the cell's draws.

        An attack that does not ask the model (view ``none``) draws the same for all models, so that
        they are compared on the same images.
        """
        alike = self.view == NONE and self.attack != NONE
        weights = NONE if alike else self.weights
        return ("cell", weights, self.data, self.view, self.attack, self.threat, self.seed)


@dataclass(frozen=True)
class Block:
    """A cell on some consecutive rows.

    Attributes:
        cell: what is done.
        first: the first row.
        rows: how many.
        digest: SHA-256 of these rows' images and labels.
    """

    cell: Cell
    first: int
    rows: int
    digest: str

    @property
    def key(self) -> str:
        """The content key: 32 hexadecimal digits."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Outcome:
    """What a finished cell, or a block of it, came to.

    Attributes:
        bits: whether draw r classifies the attacked image n rightly, ``(R, N)`` uint8.
        draws: whether these are all draws that there are.
        classes: K.
        forwards: passes of the attack per image; those of the judge and of the comparison with a
            prepared copy are left out.
        backwards: likewise.
        violations: examples that broke budget, box or finiteness and were replaced by their
            clean images.
        excess: the largest by which one did, in pixel units; infinite where it was not finite.
        fixed_draw: whether the view is one of a fixed draw, opened for each chunk.
        note: what the attack says of itself (`note(classes)`), or ''.
    """

    bits: Tensor
    draws: Draws
    classes: int
    forwards: float = 0.0
    backwards: float = 0.0
    violations: int = 0
    excess: float = 0.0
    fixed_draw: bool = False
    note: str = ""

    @property
    def chunks(self) -> int:
        """Chunks of a fixed-draw view, else 0."""
        return -(-self.bits.shape[1] // CHUNK) if self.fixed_draw else 0

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over these chunks."""
        return spread(self.bits, CHUNK) if self.fixed_draw else 0.0

    def of_rows(self, rows: Tensor | slice) -> Outcome:
        """The outcome of some images."""
        return replace(self, bits=self.bits[:, rows])


def joined(blocks: Sequence[Outcome]) -> Outcome:
    """A cell's outcome from those of its blocks, in their order."""
    counts = [block.bits.shape[1] for block in blocks]
    whole = sum(counts)

    def mean(values: Sequence[float]) -> float:
        return sum(v * n for v, n in zip(values, counts, strict=True)) / whole

    return replace(
        blocks[0],
        bits=torch.cat([block.bits for block in blocks], 1),
        forwards=mean([block.forwards for block in blocks]),
        backwards=mean([block.backwards for block in blocks]),
        violations=sum(block.violations for block in blocks),
        excess=max(block.excess for block in blocks),
    )


class CellRun:
    """Computes blocks of one cell, in any order.

    Global random state is forked and keyed, for models and attacks that draw from it.

    Args:
        model: what is judged.
        cell: what this is.
        view: what is attacked; None: images are judged as they are.
        attack: with its threat.
    """

    def __init__(
        self,
        model: DefendedModel,
        cell: Cell,
        *,
        view: View | None = None,
        attack: Attack[Any] | None = None,
    ) -> None:
        if cell.batch % CHUNK:
            raise ValueError(f"a batch is a multiple of {CHUNK} images, found {cell.batch}")
        self.model, self.cell, self.view, self.attack = model, cell, view, attack
        self._passes = Passes()
        self._opened: Opened | None = None
        self._judge = Judge(model, cell.stream)

    def outcome(self, images: Batch, first: int, examples: Tensor | None = None) -> Outcome:
        """A block's outcome.

        Args:
            images: clean ones of these rows.
            first: the first row.
            examples: what `made` gave for these rows; absent: the clean images.

        Raises:
            NonFiniteError: if the model's scores on an example are not finite.
        """
        device = device_of(self.model)
        x = images.x if examples is None else examples
        with self._seeded(first):
            bits = self._judge.bits(x.to(device), images.y.to(device), first_row=first)
        return Outcome(bits, self._judge.draws, self._judge.classes)

    def made(self, images: Batch, first: int) -> tuple[Tensor, Outcome]:
        """A block's examples on the CPU, within the threat, and what they come to.

        Raises:
            AttackInapplicable: if the attack cannot run on this view.
            NonFiniteError: if the model's scores on an example are not finite.
        """
        if self.view is None or self.attack is None:
            return images.x, self.outcome(images, first)
        device = device_of(self.model)
        x, y = images.x.to(device), images.y.to(device)
        self._passes.forwards = self._passes.backwards = 0
        with self._seeded(first), blamed(self.attack):
            found = self._examples(x, y, first)
            kept = within(found, x, self.attack.threat)
            over = excess(found, x, self.attack.threat)
            examples = torch.where(per_row(kept, x), found, x).cpu()
        forwards, backwards = self._passes.forwards / len(x), self._passes.backwards / len(x)
        judged = self.outcome(images, first, examples)
        outcome = replace(
            judged,
            forwards=forwards,
            backwards=backwards,
            violations=int((~kept).sum()),
            excess=float(over.max()),
            fixed_draw=self.view.fixed_draw,
            note=_note(self.attack, judged.classes),
        )
        return examples, outcome

    def _examples(self, x: Tensor, y: Tensor, first: int) -> Tensor:
        assert self.view is not None and self.attack is not None  # noqa: PT018  # `made` asked
        if self._opened is None:
            self._opened = Opened(self.view, self.cell.stream, self._passes)
        step = CHUNK if self.view.fixed_draw else self.cell.batch
        found = []
        for at in range(0, len(x), step):
            function = self._opened.at(block=first // BLOCK, chunk=(first + at) // CHUNK)
            key = (*self.cell.stream, "attack", first + at)
            with attacking(self.model), attacking(function.own):
                rows = slice(at, at + step)
                found.append(_examples(self.attack, function, x[rows], y[rows], key))
        return torch.cat(found)

    def _seeded(self, first: int) -> Any:
        return randomness.seeded(*self.cell.stream, "global", first)


def _examples(
    attack: Attack[Any], function: Function, x: Tensor, y: Tensor, key: tuple[str | int, ...]
) -> Tensor:
    """The attack's examples: steps on the prepared copy, where the function itself agrees."""
    copy = function.prepare(x) if attack.config.asks_model else None
    if copy is None:
        return _run(attack, function.own, x, y, key)
    found = _run(attack, copy, x, y, key)
    rows = doubtful(function.own.module, copy.module, found, y)
    if len(rows):
        more = _run(attack, function.own, x[rows], y[rows], (*key, "again"))
        found = found.index_copy(0, rows, more)
    return found


def _run(
    attack: Attack[Any], module: Metered, x: Tensor, y: Tensor, key: tuple[str | int, ...]
) -> Tensor:
    """The attack's examples, detached and of the images' type."""
    generator = randomness.generator(*key, device=x.device)
    name = type(attack).__name__
    found = attack(module, x.clone(), y.clone(), generator=generator)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PluginContractError(
            f"{name} returned {shape} for images {tuple(x.shape)}; it must return their shape",
            plugin=type(attack).__module__,
        )
    return found.detach().to(x)


@contextmanager
def blamed(attack: Attack[Any]) -> Iterator[None]:
    """Make what an attack, or the function that it asks, raises inside the end of its cell alone.

    Raises:
        AttackInapplicable: for all but errors that end a cell as they are, and a full disk.
    """
    try:
        yield
    except (EvaluationError, ThreatModelError, PluginError, StorageError):
        raise
    except (Exception, SystemExit) as error:  # third-party attacks and networks raise anything
        raise AttackInapplicable(
            f"{type(attack).__name__} failed on this view: {type(error).__name__}: {error}"
        ) from error


def _note(attack: Attack[Any], classes: int) -> str:
    """What an attack says of itself, or ''."""
    say = getattr(attack, "note", None)
    if not callable(say):
        return ""
    with blamed(attack):
        return str(say(classes))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
