"""The rows of a report: what a number was measured on, the number, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from phalanx.evaluation import scoring, statistics
from phalanx.evaluation.cell import CHUNK, Outcome

WORST = "worst"
"""Attack and view of a row that takes the worst over all cells of a defense and threat."""
T = TypeVar("T")
JOIN = "+"
"""Between the parts of a union of threats."""
MANY_CHUNKS = 20
"""A fixed-draw view of fewer chunks is marked: its accuracy rests on few draws."""

Verdict = Literal["incomplete", "screened", "unreliable", "caution", "trusted"]


class _Entry(BaseModel):
    """Frozen; keys of a newer report are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Row(_Entry):
    """One number of a report.

    `conditional_accuracy` is that among the images that are right without an attack. `worst_draw`
    and `majority` are those of a stochastic model: the smallest accuracy over the judge's draws,
    and the share of images that most draws classify rightly. `protocol` is ``paper`` for what the
    paper's own protocol asks for, where that was asked for beside another.
    """

    defense: str
    view: str
    attack: str
    threat: str
    clean_accuracy: float = Field(ge=0.0, le=1.0)
    robust_accuracy: float = Field(ge=0.0, le=1.0)
    n: int = Field(ge=1, description="Images.")
    ci95: tuple[float, float] = Field(description="95 % interval of robust_accuracy.")
    forwards: float = Field(ge=0.0, description="Passes of the attack per image.")
    backwards: float = Field(ge=0.0, description="Passes of the attack per image.")
    verdict: Verdict = "incomplete"
    note: str | None = None
    conditional_accuracy: float | None = None
    majority: float | None = None
    worst_draw: float | None = None
    protocol: str | None = None


class Failure(_Entry):
    """A cell that could not be run, and why."""

    defense: str
    view: str
    attack: str
    threat: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """A finished cell under the names that a report gives it, and `more` under the same ones.

    `holds_clean` is whether its attack may leave an image as it is; `protocol` as in `Row`.
    """

    view: str
    attack: str
    threat: str
    outcome: Outcome
    holds_clean: bool = True
    protocol: str | None = None
    more: tuple[Outcome, ...] = ()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """All of them."""
        return (self.outcome, *self.more)


def rows_of(
    defense: str,
    clean: Outcome,
    cells: Sequence[Measured],
    *,
    seed: int,
    missing: Mapping[str, int] | None = None,
) -> list[Row]:
    """A row for each cell of one defense, then for each threat a `worst` one.

    Where the threats are of several kinds (norms, or none), one `worst` row more is of all cells:
    its threat is their union, written with +. It is "all attacks" of work on several norms.

    Args:
        defense: the defense's name.
        clean: its outcome without an attack.
        cells: its finished cells.
        seed: of the bootstrap.
        missing: threat -> how many of its cells could not be run; its `worst` row says so.
    """
    clean_q = scoring.shares(clean.bits)
    clean_accuracy = float(clean_q.mean())
    rows = [_cell_row(defense, clean_q, cell, seed) for cell in cells]
    for threat, group in grouped([(c.threat, one) for c in cells for one in c.outcomes]).items():
        q = scoring.worst_shares([clean.bits, *(one.bits for one in group)], clean.draws)
        rows.append(
            Row(
                defense=defense,
                view=WORST,
                attack=WORST,
                threat=threat,
                clean_accuracy=clean_accuracy,
                robust_accuracy=float(q.mean()),
                n=len(q),
                ci95=statistics.interval(q, seed),
                forwards=sum(one.forwards for one in group),
                backwards=sum(one.backwards for one in group),
                note=_missing_note(_missing(missing or {}, threat)),
                conditional_accuracy=scoring.conditional(q, clean_q),
            )
        )
    return rows


def grouped(cells: Sequence[tuple[str, T]]) -> dict[str, list[T]]:
    """Threat -> what was given of it; where threats are of several kinds, of their union too.

    Args:
        cells: the threat of each cell, as text, and anything of it.
    """
    threats = dict.fromkeys(threat for threat, _ in cells)
    groups = {threat: [one for other, one in cells if other == threat] for threat in threats}
    if len(_kinds(threats)) > 1:
        parts = _parts(threats)
        same = [threat for threat in threats if _parts([threat]).keys() == parts.keys()]
        groups[same[0] if same else JOIN.join(parts)] = [one for _, one in cells]
    return groups


def _parts(threats: Iterable[str]) -> dict[str, None]:
    """The single threats that they are made of, each once, in order."""
    return dict.fromkeys(part for threat in threats for part in threat.split(JOIN))


def _kinds(threats: Iterable[str]) -> set[str]:
    """``linf:8/255`` and ``linf:4/255`` are of one kind."""
    return {part.partition(":")[0] for part in _parts(threats)}


def _missing(missing: Mapping[str, int], threat: str) -> int:
    """How many cells could not be run of a threat, or of the parts of a union."""
    parts = _parts([threat])
    return sum(count for one, count in missing.items() if parts.keys() >= _parts([one]).keys())


def _missing_note(missing: int) -> str | None:
    if not missing:
        return None
    return f"{missing} {'cell' if missing == 1 else 'cells'} could not be run"


def _cell_row(defense: str, clean_q: Tensor, cell: Measured, seed: int) -> Row:
    outcome = cell.outcome
    q = scoring.worst_shares([one.bits for one in cell.outcomes], outcome.draws)
    several = len(outcome.bits) > 1
    drawn = several and len(cell.outcomes) == 1
    if len(cell.outcomes) == 1:
        q = scoring.shares(outcome.bits)
    if not several and cell.holds_clean:
        # an image that is wrong without an attack stays an error; where every image is changed the
        # accuracy is of the changed ones alone, and may be above the clean one
        q = torch.minimum(q, clean_q)
    return Row(
        defense=defense,
        view=cell.view,
        attack=cell.attack,
        threat=cell.threat,
        clean_accuracy=float(clean_q.mean()),
        robust_accuracy=float(q.mean()),
        n=len(q),
        ci95=statistics.interval(q, seed),
        forwards=outcome.forwards,
        backwards=outcome.backwards,
        note=note_of(cell.outcomes) or None,
        conditional_accuracy=scoring.conditional(q, clean_q),
        majority=scoring.majority(outcome.bits) if drawn else None,
        worst_draw=scoring.worst_draw(outcome.bits) if drawn else None,
        protocol=cell.protocol,
    )


def note_of(outcomes: Sequence[Outcome]) -> str:
    """What a reader of the number should know of its cell, in sentences; '' if nothing."""
    if len(outcomes) > 1:
        return f"Examples of {len(outcomes)} cells, each the worst for some images."
    (outcome,) = outcomes
    said = [outcome.note] if outcome.note else []
    if outcome.chunks:
        few = "; few draws" if outcome.chunks < MANY_CHUNKS else ""
        said.append(
            f"Drawn afresh for each of {outcome.chunks} chunks of {CHUNK} images, whose accuracies "
            f"spread by {outcome.spread:.3f} (standard deviation){few}."
        )
    if outcome.violations:
        said.append(
            f"{outcome.violations} examples outside budget or box, or not finite, were replaced "
            "by their clean images."
        )
    return " ".join(said)
