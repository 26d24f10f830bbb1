"""What a report holds besides rows and checks: comparisons, transfer, curves, pictures, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from phalanx import catalog
from phalanx.attack import answering, attacking
from phalanx.attacks.config import PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.data.sets import Split
from phalanx.evaluation import scoring, statistics
from phalanx.evaluation.cell import Outcome
from phalanx.evaluation.diversity import diversity
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.findings import (
    Comparison,
    Curve,
    CurvePoint,
    LedgerEntry,
    ModelFacts,
    Transfer,
)
from phalanx.evaluation.loop import Measurements
from phalanx.evaluation.matrix import members_transfer, transfer_matrix
from phalanx.evaluation.paired import compare
from phalanx.evaluation.rows import grouped
from phalanx.evaluation.subjects import Subject
from phalanx.nn.size import latencies, size_of, tensor_bytes
from phalanx.specs import L1, L2, Kind, Linf

CURVE = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Radii of a security curve, in units of the threat's."""
LOOKED = 128
"""Images of curves, diversity and the members' matrix."""


# ---------------------------------------------------------------- between defenses


def comparisons(subjects: Sequence[Subject], measured: Measurements, seed: int) -> list[Comparison]:
    """Every pair of defenses at every threat they share, image by image, on their worst cases."""
    found = []
    for first, second in combinations([one for one in subjects if not one.surrogate], 2):
        count = min(measured.counts[first.name], measured.counts[second.name])
        both = [_worst(one, measured, count) for one in (first, second)] if count else [{}, {}]
        for threat in both[0].keys() & both[1].keys():
            paired = compare(both[0][threat], both[1][threat], seed=seed)
            found.append(
                Comparison(
                    first=first.name,
                    second=second.name,
                    threat=threat,
                    n=count,
                    difference=paired.difference,
                    ci95=paired.ci95,
                    p_value=paired.p_value,
                    test=paired.test,
                )
            )
    return sorted(found, key=lambda one: (one.first, one.second, one.threat))


def _worst(subject: Subject, measured: Measurements, count: int) -> dict[str, Tensor]:
    """Threat, or union of threats -> the smallest share of right draws of the first images."""
    job = measured.clean[subject.name]
    if job.error is not None:
        return {}
    rows = slice(0, count)
    cells: list[tuple[str, Tensor]] = []
    clean = job.outcome(measured.counts[subject.name]).of_rows(rows)
    for one in measured.finished(subject.name):
        whole = one.job.outcome(measured.counts[subject.name])
        cells.append((one.task.threat, whole.of_rows(rows).bits))
    for (_, threat), outcomes in measured.received(subject.name, subject.sha256).items():
        cells += [(threat, one.of_rows(rows).bits) for one in outcomes]
    return {
        threat: scoring.worst_shares([clean.bits, *bits], clean.draws)
        for threat, bits in grouped(cells).items()
    }


def transfers(subjects: Sequence[Subject], measured: Measurements) -> list[Transfer]:
    """Models against sources at each threat; a model on its own examples on the diagonal."""
    targets = [one for one in subjects if not one.surrogate]
    threats = dict.fromkeys(
        one.task.threat
        for cells in measured.attacked.values()
        for one in cells
        if one.task.asks_model and one.task.threat != "none"
    )
    found = []
    for threat in threats:
        table, counts = [], []
        for target in targets:
            own = measured.received(target.name, target.sha256)
            line: list[float | None] = []
            for source in subjects:
                outcomes = own.get((source.name, threat), [])
                if source is target:
                    count = measured.counts[target.name]
                    outcomes = [
                        one.job.outcome(count)
                        for one in measured.finished(target.name)
                        if one.task.threat == threat
                    ]
                line.append(_joint(outcomes))
            table.append(tuple(line))
            counts.append(measured.counts[target.name])
        if len(subjects) > 1 and any(x is not None for line in table for x in line):
            found.append(
                Transfer(
                    kind="models",
                    threat=threat,
                    attack="all attacks of the source",
                    targets=tuple(one.name for one in targets),
                    sources=tuple(one.name for one in subjects),
                    accuracy=tuple(table),
                    n=min(counts),
                )
            )
    return found


def _joint(outcomes: Sequence[Outcome]) -> float | None:
    """What several outcomes on the same images leave together; None of none."""
    if not outcomes:
        return None
    bits = [one.bits for one in outcomes]
    return float(scoring.worst_shares(bits, outcomes[0].draws).mean())


# ---------------------------------------------------------------- of one defense


def curve(examined: Examined) -> Curve | None:
    """Accuracy against radius by APGD-CE of 50 steps, each radius attacked afresh."""
    threat = examined.threat
    if not isinstance(threat, Linf | L2 | L1) or not threat.eps:
        return None
    count = min(LOOKED, examined.measured.counts[examined.subject.name])
    split = examined.loop.images.split.subset(torch.arange(count))
    clean = examined.measured.clean[examined.subject.name].outcome(
        examined.measured.counts[examined.subject.name]
    )
    at_zero = scoring.shares(clean.of_rows(slice(0, count)).bits)
    points = [_point(0.0, at_zero, examined)]
    for factor in CURVE:
        eps = _plain(factor * threat.eps)
        if isinstance(threat, Linf) and eps > 1.0:
            continue
        outcome = examined.attacked("apgd-ce", {"steps": 50}, threat=type(threat)(eps), split=split)
        if outcome is not None:
            q = torch.minimum(scoring.shares(outcome.bits), at_zero)
            points.append(_point(eps, q, examined))
    if len(points) < 3:
        return None
    norm = str(threat).partition(":")[0]
    return Curve(
        defense=examined.subject.name,
        norm=norm,
        view=examined.main_view,
        attack="apgd-ce:steps=50",
        n=count,
        points=tuple(points),
    )


def _plain(number: float) -> float:
    """0.15 for 0.15000000000000002; any number that is no rounding error beside a short one."""
    short = round(number, 12)
    return short if math.isclose(short, number, rel_tol=1e-15) else number


def _point(eps: float, q: Tensor, examined: Examined) -> CurvePoint:
    interval = statistics.interval(q, examined.loop.maker.seed)
    return CurvePoint(eps=eps, accuracy=float(q.mean()), ci95=interval)


def diversity_of(examined: Examined) -> dict[str, float]:
    """Diversity of an ensemble's members on correct images; {} of a single network."""
    members = examined.model.members
    if len(members) < 2:
        return {}

    def make() -> dict[str, float]:
        x, y = examined.images(LOOKED)
        with answering(examined.model):
            return diversity(members, x, y, batch=examined.batch)

    found: dict[str, float] = examined.kept_value("diversity", make)
    return {name: value for name, value in found.items() if value == value}  # JSON has no NaN


def members_of(examined: Examined) -> Transfer | None:
    """Members judged on each other's examples, by PGD of 20 steps; None of a single network."""
    members, threat = examined.model.members, examined.threat
    if len(members) < 2:
        return None
    x, y = examined.images(LOOKED)

    def make() -> list[list[float]]:
        attack = PGD(PGDConfig(threat=threat, steps=20))
        stream = examined.generator("members")
        with attacking(examined.model):
            found: list[list[float]] = transfer_matrix(
                members, attack, x, y, generator=stream, batch=examined.batch
            ).tolist()
        return found

    matrix = torch.tensor(examined.kept_value("members", make), dtype=torch.float64)
    return members_transfer(
        matrix,
        defense=examined.subject.name,
        attack="pgd:steps=20",
        threat=str(threat),
        n=len(x),
    )


def robustness_average(between: Sequence[Transfer]) -> dict[str, float]:
    """The model robustness average, from members' accuracies on each other's examples.

    It is the mean of the whole matrix where each image is attacked through a member at random
    (Jasser and Garibay, arXiv 2111.10272, eq. 6): here each image is attacked through every one.
    """
    if not between:
        return {}
    (matrix, *_) = between
    values = [value for line in matrix.accuracy for value in line if value is not None]
    return {"mra": sum(values) / len(values)}


def facts(subject: Subject, split: Split) -> ModelFacts:
    """Size and latency of a model, and what its training took."""
    model = subject.model
    size = size_of(model)
    timed = None
    with answering(model), torch.no_grad():
        x = split.fetch(slice(0, 1)).x.to(next(iter(model.parameters()), torch.zeros(0)).device)
        served = model.serve(0).eval()

        def answered(images: Tensor) -> Tensor:
            scores: Tensor = served(images)
            if images.is_cuda:  # else the clock sees the call, not the work
                torch.cuda.synchronize(images.device)
            return scores

        timed = latencies([answered], x, passes=5)[0]
    forwards, backwards = subject.training or (None, None)
    return ModelFacts(
        parameters=size.parameters,
        nonzero=size.nonzero,
        bytes=tensor_bytes(model.state_dict().values()),
        latency=timed.seconds,
        latency_batch=timed.batch,
        training_forwards=forwards,
        training_backwards=backwards,
    )


def ledger(subject: Subject) -> tuple[LedgerEntry, ...]:
    """What is claimed of a defense, as the index of plugins has it."""
    plugin = catalog.load().find(Kind.DEFENSE, subject.component) if subject.component else None
    known = plugin.component(Kind.DEFENSE, subject.component) if plugin else None
    return tuple(
        LedgerEntry(
            source=claim.source,
            dataset=claim.dataset,
            threat="" if claim.threat is None else str(claim.threat),
            attack=claim.attack,
            metric=claim.metric,
            value=claim.value,
            conditional=claim.conditional,
            setting=claim.setting,
            status=claim.status,
            evidence=claim.evidence,
        )
        for claim in (known.claims if known else ())
    )
