"""A cell: one attack through one view of one model, on the first N images of a data set.

Images pass in blocks of 256 rows. A fixed-draw view is opened afresh for each chunk of 16
consecutive rows, since one attacked draw for a whole test set is noise; any other view is opened
once. Every draw is keyed by (cell, row where the batch begins), so no cell depends on another, and
whole blocks at the beginning of a longer evaluation come out as those of a shorter one; a block
that the shorter one cuts off need not, since one draw may serve all rows of a block.

Where a view's rows are independent an attack takes its steps on a prepared copy of the view
(`phalanx.nn.prepare`), if there is one that agrees on the first images; what the copy decides
otherwise than the view itself is attacked again on the view, and the judge asks the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack, attacking
from phalanx.attacks.balls import per_row, within
from phalanx.attacks.crafting import doubtful
from phalanx.data.sets import Split
from phalanx.defense import DefendedModel, View
from phalanx.errors import AttackInapplicable, PhalanxError, PluginContractError
from phalanx.evaluation.judge import Judge
from phalanx.evaluation.metering import Metered, Passes
from phalanx.evaluation.opened import Function, Opened
from phalanx.evaluation.scoring import Draws, spread

BLOCK = 256
"""Images in a batch."""
CHUNK = 16
"""Images for which a fixed-draw view is opened."""
FORMAT = 2
"""Of a stored cell; another number is another key."""
NONE = "none"
"""View, attack and threat of the clean cell."""

RowsDone = Callable[[int], None]


def _ignore(_: int) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Cell:
    """What a cell's outcome depends on.

    Attributes:
        weights: SHA-256 of what is attacked.
        data: name of the data set.
        digest: SHA-256 of the rows' images and labels.
        rows: N, the first rows of the test set.
        view: name of the view, or "none".
        attack: name and parameters (`attack_identity`), or "none".
        threat: as text, or "none".
        seed: of the evaluation.
    """

    weights: str
    data: str
    digest: str
    rows: int
    view: str
    attack: str
    threat: str
    seed: int

    @property
    def key(self) -> str:
        """The content key: 32 hexadecimal digits."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def stream(self) -> tuple[str | int, ...]:
        """What keys the cell's draws: all but the number of rows and their content.

        An attack that does not ask the model (view ``none``) draws the same for all models, so that
        they are compared on the same images.
        """
        alike = self.view == NONE and self.attack != NONE
        weights = NONE if alike else self.weights
        return ("cell", weights, self.data, self.view, self.attack, self.threat, self.seed)


@dataclass(frozen=True)
class Outcome:
    """What a finished cell came to.

    Attributes:
        bits: whether draw r classifies the attacked image n rightly, ``(R, N)`` uint8.
        draws: whether these are all draws that there are.
        classes: K.
        forwards: passes of the attack per image; those of the judge and of the comparison with a
            prepared copy are left out.
        backwards: likewise.
        violations: examples that broke budget, box or finiteness and were replaced by their
            clean images.
        chunks: chunks of a fixed-draw view, else 0.
        spread: standard deviation of the accuracy over these chunks.
        note: what the attack says of itself (`note(classes)`), or ''.
    """

    bits: Tensor
    draws: Draws
    classes: int
    forwards: float = 0.0
    backwards: float = 0.0
    violations: int = 0
    chunks: int = 0
    spread: float = 0.0
    note: str = ""


def clean_outcome(
    model: DefendedModel, cell: Cell, data: Split, *, batch: int = BLOCK, done: RowsDone = _ignore
) -> Outcome:
    """How the served function does without an attack.

    Args:
        model: what is judged.
        cell: with view, attack and threat "none".
        data: its first `cell.rows` rows are used.
        batch: images at a time.
        done: told how many images are done.
    """
    judge = Judge(model, cell.stream)
    device = _device(model)
    parts = []
    blocks = data.blocks(cell.rows, batch)
    with randomness.seeded(*cell.stream, "global"), closing(blocks):
        for first, images in blocks:
            parts.append(judge.bits(images.x.to(device), images.y.to(device), first_row=first))
            done(len(images))
    return Outcome(torch.cat(parts, 1), judge.draws, judge.classes)


def attacked_outcome(
    model: DefendedModel,
    cell: Cell,
    data: Split,
    *,
    view: View,
    attack: Attack[Any],
    batch: int = BLOCK,
    done: RowsDone = _ignore,
) -> Outcome:
    """Attack the view on every image, check the examples, judge the served function on them.

    Global random state is forked and keyed, for models and attacks that draw from it.

    Args:
        model: what is judged.
        cell: what this is the outcome of.
        data: its first `cell.rows` rows are used.
        view: what is attacked.
        attack: with its threat.
        batch: images at a time; a multiple of 16.
        done: told how many images are done.

    Raises:
        AttackInapplicable: if the attack cannot run on this view.
        NonFiniteError: if the model's scores on an example are not finite.
    """
    if batch % CHUNK:
        raise ValueError(f"a batch is a multiple of {CHUNK} images, found {batch}")
    judge, passes, device = Judge(model, cell.stream), Passes(), _device(model)
    opened = Opened(view, cell.stream, passes)
    step = CHUNK if view.fixed_draw else batch
    violations, parts = 0, []
    blocks = data.blocks(cell.rows, batch)
    with randomness.seeded(*cell.stream, "global"), closing(blocks):
        for first, images in blocks:
            x, y = images.x.to(device), images.y.to(device)
            found = []
            for at in range(0, len(x), step):
                function = opened.at((first + at) // CHUNK)
                key = (*cell.stream, "attack", first + at)
                with attacking(model), attacking(function.own):
                    rows = slice(at, at + step)
                    found.append(_examples(attack, function, x[rows], y[rows], key))
            examples = torch.cat(found)
            kept = within(examples, x, attack.threat)
            violations += int((~kept).sum())
            examples = torch.where(per_row(kept, x), examples, x)
            parts.append(judge.bits(examples, y, first_row=first))
            done(len(x))
    bits = torch.cat(parts, 1)
    say = getattr(attack, "note", None)
    return Outcome(
        bits=bits,
        draws=judge.draws,
        classes=judge.classes,
        forwards=passes.forwards / cell.rows,
        backwards=passes.backwards / cell.rows,
        violations=violations,
        chunks=-(-cell.rows // CHUNK) if view.fixed_draw else 0,
        spread=spread(bits, CHUNK) if view.fixed_draw else 0.0,
        note=say(judge.classes) if callable(say) else "",
    )


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
    try:
        found = attack(module, x.clone(), y.clone(), generator=generator)
    except PhalanxError:
        raise
    except Exception as error:  # third-party attacks raise anything
        raise AttackInapplicable(
            f"{name} failed on this view: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PluginContractError(
            f"{name} returned {shape} for images {tuple(x.shape)}; it must return their shape",
            plugin=type(attack).__module__,
        )
    return found.detach().to(x)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
