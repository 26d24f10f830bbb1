"""A report's pictures: some adversarial examples of each defense, beside their clean images."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from phalanx.attack import answering
from phalanx.evaluation import scoring
from phalanx.evaluation.cell import device_of
from phalanx.evaluation.facts import facts_of
from phalanx.evaluation.findings import Example
from phalanx.evaluation.loop import Attacked, Loop, Measurements
from phalanx.evaluation.subjects import Subject

PICTURES = 6
"""Adversarial examples shown of each defense."""
_MID = 0.5


def examples(subject: Subject, loop: Loop, measured: Measurements) -> tuple[Example, ...]:
    """Images that attacks break, each once: first of the strongest attack that follows gradients.

    Where it breaks too few, those of the next attack follow, attacks without gradients last. They
    are of each cell's first block.
    """
    count = measured.counts[subject.name]
    clean = scoring.shares(measured.clean[subject.name].outcome(count).bits) > 0.5
    found: dict[int, Example] = {}
    for one in _in_order(measured.finished(subject.name), count):
        if len(found) == PICTURES:
            break
        for example in _of(one, subject, loop, clean, found.keys()):
            found.setdefault(example.row, example)
            if len(found) == PICTURES:
                break
    return tuple(found.values())


def _in_order(cells: Sequence[Attacked], count: int) -> list[Attacked]:
    """Those that ask the model: by gradients first, then by strength."""
    asking = [one for one in cells if one.task.asks_model]

    def place(one: Attacked) -> tuple[bool, float]:
        blind = one.task.use is not None and not facts_of(one.task.use).gradient
        return blind, scoring.accuracy(one.job.outcome(count).bits)

    return sorted(asking, key=place)


def _of(
    one: Attacked, subject: Subject, loop: Loop, clean: Tensor, shown: Collection[int]
) -> Iterator[Example]:
    """What a cell breaks of the images that are right without it and are not shown yet."""
    kept = loop.engine.store.sampled(loop.engine.blocks_of(one.job)[0])
    if kept is None:
        return
    images, rows = kept
    fresh = [
        at
        for at, row in enumerate(rows.tolist())
        if row < len(clean) and clean[row] and row not in shown
    ]
    if not fresh:
        return
    images, rows = images[fresh], rows[fresh]
    batch = loop.images.split.fetch(rows)
    with answering(subject.model), torch.no_grad():
        scores = subject.model.serve(0)(images.to(device_of(subject.model)))
    task = subject.model.task
    names = task.class_names if task is not None and task.class_names else ()
    for row, x, x_adv, y, label in zip(
        rows.tolist(), batch.x, images, batch.y.tolist(), scores.argmax(1).tolist(), strict=True
    ):
        largest = float((x_adv - x).abs().max())
        gain = _MID / largest if largest else 1.0
        yield Example(
            defense=subject.name,
            view=one.task.view_name,
            attack=one.task.label,
            threat=one.task.threat,
            row=row,
            label=_name(names, y),
            predicted=_name(names, label),
            clean=_png(x),
            adversarial=_png(x_adv),
            difference=_png(_MID + gain * (x_adv - x)),
            gain=gain,
        )


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _png(image: Tensor) -> str:
    """A picture ``(C, H, W)`` of one or three channels as base64 of a PNG file."""
    values = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    shown = values[0] if len(values) in (1, 2) else values[:3].permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(shown.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
