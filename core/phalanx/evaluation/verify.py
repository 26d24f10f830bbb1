"""Kept adversarial examples, looked at again: their budget, and their scores on fresh draws.

Nothing is attacked. Each file of ``DIR/examples`` says which cell and which rows it is of; the
images are checked against the data by digest, the weights by SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from phalanx.attacks.balls import per_row
from phalanx.errors import ArtifactError, ConfigError, DataError, UnknownComponentError
from phalanx.evaluation.cell import Block, Cell, device_of
from phalanx.evaluation.checks.rules import excess
from phalanx.evaluation.judge import Judge
from phalanx.evaluation.labels import attack_label
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.scoring import accuracy
from phalanx.evaluation.store import EXAMPLES, BlockStore, digest_of_tensors
from phalanx.evaluation.subjects import Images, Subject, digest_of_batch
from phalanx.registry import Registry
from phalanx.specs import parse_threat
from phalanx.training.files import read_tensors

TOLERANCE = 1e-6
"""Pixel units by which rounding may exceed ball or box."""
ROUNDING = 0.005
"""Share of images that another device's rounding may decide otherwise."""


@dataclass(frozen=True)
class Verified:
    """One cell's kept examples.

    Attributes:
        defense: whose they are.
        view: that was attacked.
        attack: as in a report's rows.
        threat: as text.
        images: how many were kept.
        outside: how many break ball, box or finiteness.
        excess: the largest such excess, in pixel units.
        stored: accuracy as the evaluation has it on these images; None where it is gone.
        again: accuracy on draws that nobody saw; the same for a deterministic model. An example
            that is outside counts as its clean image.
        exact: whether the draws are all that there are, so that `again` must be as `stored`.
        altered: files whose images are not those that were written, by their own SHA-256.
    """

    defense: str
    view: str
    attack: str
    threat: str
    images: int
    outside: int
    excess: float
    stored: float | None
    again: float
    exact: bool
    altered: int = 0


def verify(
    folder: Path,
    subjects: Sequence[Subject],
    images: Images,
    *,
    seed: int = 1,
    registry: Registry | None = None,
) -> tuple[list[Verified], int]:
    """Check every kept example of these models.

    Args:
        folder: of an evaluation with kept examples.
        subjects: the models, known by the SHA-256 of their weights.
        images: the data that was evaluated.
        seed: of the fresh draws; another one than the evaluation's.
        registry: by which attacks are named; absent: the default one.

    Returns:
        One entry for each cell, and how many files are of other models.

    Raises:
        ArtifactError: if there are no kept examples, or a file is damaged.
        DataError: if the data's images are others than those that were attacked.
    """
    files = sorted((folder / EXAMPLES).glob("*.safetensors"))
    if not files:
        raise ArtifactError(
            f"{folder} holds no adversarial examples; evaluate with --keep-examples first"
        )
    known = {subject.sha256: subject for subject in subjects}
    store = BlockStore(folder / "cells")
    cells: dict[Cell, list[_Part]] = {}
    others = 0
    for path in files:
        block, examples, whole = _read(path)
        subject = known.get(block.cell.weights)
        if subject is None:
            others += 1
            continue
        cells.setdefault(block.cell, []).append(
            replace(
                _part(
                    path, block, examples, subject=subject, images=images, store=store, seed=seed
                ),
                altered=not whole,
            )
        )
    found = [
        _together(cell, known[cell.weights].name, _label(cell, registry), parts)
        for cell, parts in cells.items()
    ]
    return sorted(found, key=lambda one: (one.defense, one.view, one.attack)), others


@dataclass(frozen=True)
class _Part:
    """One block's examples: how many, how many break the rules or are right; are they altered."""

    images: int
    outside: int
    excess: float
    stored: float | None
    again: float
    exact: bool
    altered: bool = False


def _part(
    path: Path,
    block: Block,
    examples: torch.Tensor,
    *,
    subject: Subject,
    images: Images,
    store: BlockStore,
    seed: int,
) -> _Part:
    batch = images.split.fetch(slice(block.first, block.first + block.rows))
    if digest_of_batch(batch) != block.digest:
        raise DataError(
            f"{path.name} is of rows {block.first} to {block.first + block.rows - 1} of "
            f"{block.cell.data}, and those of {images.name} here are other images; give the data "
            "that was evaluated"
        )
    if examples.shape != batch.x.shape:
        raise ArtifactError(
            f"{path} is damaged: it holds images {tuple(examples.shape)} for {tuple(batch.x.shape)}"
            "; evaluate again"
        )
    over = excess(examples, batch.x, parse_threat(block.cell.threat))
    kept = per_row(over <= TOLERANCE, batch.x)  # one outside breaks no image, as in an evaluation
    device = device_of(subject.model)
    judge = Judge(subject.model, ("verify", seed, block.key))
    judged = torch.where(kept, examples, batch.x).to(device)
    bits = judge.bits(judged, batch.y.to(device), first_row=block.first)
    stored = store.get(block)
    return _Part(
        images=len(examples),
        outside=int((over > TOLERANCE).sum()),
        excess=float(over.max()),
        stored=None if stored is None else accuracy(stored.bits),
        again=accuracy(bits),
        exact=judge.draws == "exact",
    )


def _together(cell: Cell, defense: str, attack: str, parts: Sequence[_Part]) -> Verified:
    whole = sum(part.images for part in parts)
    stored = [part.stored for part in parts]
    known = [one for one in stored if one is not None]

    def mean(values: Sequence[float]) -> float:
        return sum(v * part.images for v, part in zip(values, parts, strict=True)) / whole

    return Verified(
        defense=defense,
        view=cell.view,
        attack=attack,
        threat=cell.threat,
        images=whole,
        outside=sum(part.outside for part in parts),
        excess=max(part.excess for part in parts),
        stored=mean(known) if len(known) == len(parts) else None,
        again=mean([part.again for part in parts]),
        exact=all(part.exact for part in parts),
        altered=sum(part.altered for part in parts),
    )


def _label(cell: Cell, registry: Registry | None) -> str:
    """The attack as in a report's rows; its name alone where it, or its version, is not here."""
    try:
        name, params = json.loads(cell.attack)
    except (TypeError, ValueError):  # no identity of ours
        return cell.attack
    table, threat = {"use": name, "params": params}, parse_threat(cell.threat)
    try:
        return attack_label(resolve_attack(table, threat=threat, registry=registry))
    except (UnknownComponentError, ConfigError):
        return str(name)


def _read(path: Path) -> tuple[Block, torch.Tensor, bool]:
    """A file's block and images, and whether they are those that its header was written for."""
    tensors, header = read_tensors(path)
    try:
        given: Mapping[str, object] = json.loads(header["block"])
        cell = Cell(**given["cell"])  # type: ignore[arg-type]  # as it was written
        rest = {key: value for key, value in given.items() if key != "cell"}
        whole = header["sha256"] == digest_of_tensors(tensors)
        return Block(cell=cell, **rest), tensors["images"], whole  # type: ignore[arg-type]  # likewise
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}; evaluate again") from error


def problems(found: Sequence[Verified]) -> Iterator[str]:
    """What is wrong with kept examples, a line each."""
    for one in found:
        name = f"{one.defense}, {one.view}, {one.attack} ({one.threat})"
        if one.outside:
            by = f"by up to {one.excess:.2g}"
            yield f"{name}: {one.outside} of {one.images} leave ball or box {by}"
        elif one.altered:
            yield (
                f"{name}: {one.altered} files hold other images than were written, by their "
                "SHA-256; evaluate again with --keep-examples"
            )
        elif one.exact and one.stored is not None and abs(one.again - one.stored) > ROUNDING:
            yield (
                f"{name}: {100 * one.stored:.2f} % as stored, {100 * one.again:.2f} % again, "
                "though the model has no draws that could differ; were its files changed?"
            )
