"""What checks of an evaluation find of a defense, and what a report says of it besides its rows.

Frozen; keys of a newer report are left out, as in `phalanx.evaluation.rows`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["pass", "warn", "fail", "not-run", "not-applicable"]
Masking = Literal["yes", "no", "unknown"]
Tier = Literal["free", "core", "full"]
"""Which checks are made: those that cost nothing, the core's, or all."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Check(_Entry):
    """One check of one defense.

    `value` is the statistic that `threshold` speaks of, `count` of how many of `n` images (or
    draws) it speaks; None where there is no such number. `touches` are the rows that a failure
    bears on, as (view, attack, threat); `bears_on_all` says that it is every row.
    """

    id: str
    status: Status
    value: float | None = None
    count: int | None = None
    n: int | None = None
    threshold: str = Field("", description="When it warns and fails, in words.")
    reason: str = Field("", description="One sentence: what was found, or why it has not run.")
    source: str = Field("", description="Whose check it is.")
    touches: tuple[tuple[str, str, str], ...] = ()
    bears_on_all: bool = False


class ModelFacts(_Entry):
    """Size and cost of a model.

    `latency` is in seconds an image, of batches of `latency_batch`; training passes are per
    training image, over all phases.
    """

    parameters: int | None = None
    nonzero: int | None = None
    bytes: int | None = None
    latency: float | None = None
    latency_batch: int | None = None
    training_forwards: float | None = None
    training_backwards: float | None = None


class LedgerEntry(_Entry):
    """A line of the claims ledger: what a paper claims, or what was reproduced."""

    source: str
    dataset: str
    threat: str = ""
    attack: str = ""
    metric: str
    value: float
    conditional: bool = False
    setting: str = ""
    status: str = "unverified"
    evidence: str = ""


class DefenseFindings(_Entry):
    """All that is said of one defense besides its rows."""

    defense: str
    masking: Masking = "unknown"
    checks: tuple[Check, ...] = ()
    sentence: str = Field("", description="What verdicts and masking rest on.")
    diversity: dict[str, float] = Field(default_factory=dict, description="Name -> value.")
    facts: ModelFacts | None = None
    claims: tuple[LedgerEntry, ...] = ()


class Transfer(_Entry):
    """Accuracy of targets on adversarial examples that were made for sources.

    `kind` is ``models`` (between the models of the report) or ``members`` (within `defense`).
    `accuracy` has a row for each target and a column for each source; None where nothing was
    measured.
    """

    kind: Literal["models", "members"]
    threat: str
    attack: str = ""
    defense: str = ""
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    accuracy: tuple[tuple[float | None, ...], ...]
    n: int


class CurvePoint(_Entry):
    """Accuracy at one radius, with its 95 % interval."""

    eps: float
    accuracy: float
    ci95: tuple[float, float]


class Curve(_Entry):
    """A security curve: accuracy against the radius of one norm, each radius attacked afresh."""

    defense: str
    norm: str
    view: str
    attack: str
    n: int
    points: tuple[CurvePoint, ...]


class Comparison(_Entry):
    """Two defenses on the same images under one threat, image by image.

    `difference` is the worst-case accuracy of `first` minus that of `second`; `p_value` is of
    `test`: exact McNemar where all outcomes are 0 or 1, else a sign-flip permutation.
    """

    first: str
    second: str
    threat: str
    n: int
    difference: float
    ci95: tuple[float, float]
    p_value: float
    test: Literal["mcnemar", "sign-flip"]


class Example(_Entry):
    """An adversarial example as pictures: base64 of PNG files, the difference around mid grey.

    `gain` is the factor by which the difference is shown larger than it is.
    """

    defense: str
    view: str
    attack: str
    threat: str
    row: int
    label: str
    predicted: str
    clean: str
    adversarial: str
    difference: str
    gain: float
