"""What the checks say of models whose masking is known, and what they cost.

    python -m bench.verdicts                    # all models; those in verdicts.json are kept
    python -m bench.verdicts --again 'steep*'   # these anew

Each model of `bench.planted` is evaluated by APGD on cross-entropy and on DLR (100 steps each),
Square (1,000 queries), MORA where it averages members, and examples of one other network, followed
by the checks of tier core. A masking model should come out as ``masking: yes``, a sound one as
``no``; intervals of both shares are exact (C. J. Clopper and E. S. Pearson, Biometrika 1934).

Cost: passes (images forward and images backward through the examined function, as
`phalanx.evaluation.metering` counts them) of the required checks per image, over those of the base,
APGD-CE and APGD-DLR on every view. What other cells give a check costs it nothing; the judge's own
forward passes are on neither side.

Writes ``verdicts.json`` and ``verdicts.md`` into ``bench/results``, the former after each model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.planted import IMAGES, PLANTED, THREATS, Case
from bench.verdict_tables import Record, table, too_dear, unexpected
from phalanx.errors import PhalanxError, ValidityWarning
from phalanx.evaluation import contents, core_checks, validity
from phalanx.evaluation.cell import Outcome
from phalanx.evaluation.checks.table import base_id
from phalanx.evaluation.checks.verdict import FOR_ENSEMBLES, FOR_STOCHASTIC, REQUIRED
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.examined import Examined
from phalanx.evaluation.facts import is_base
from phalanx.evaluation.findings import Check
from phalanx.evaluation.metering import Metered, Passes
from phalanx.evaluation.planning import averages, surrogate_plan
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import (
    Also,
    Images,
    Plan,
    Subject,
    digest_of,
    images_of,
    model_of,
)
from phalanx.registry import default_registry
from phalanx.specs import Threat

OUT = Path(__file__).parent / "results"
BASE = ({"use": "apgd-ce", "params": {"steps": 100}}, {"use": "apgd-dlr", "params": {"steps": 100}})
SQUARE = {"use": "square", "params": {"queries": 1000}}
MORA = {"use": "mora"}


# ---------------------------------------------------------------- passes of each check


@dataclass
class Costs:
    """Passes of each check, by its id; the key of what is none of them is ''."""

    current: str = ""
    passes: dict[str, Passes] = field(default_factory=dict)

    @property
    def here(self) -> Passes:
        """Those of the check that is running."""
        return self.passes.setdefault(self.current, Passes())

    def tried(self, name: str, make: Callable[[], Check]) -> Check:
        """A check, under whose name passes are counted meanwhile."""
        self.current = base_id(name)
        try:
            return _tried(name, make)
        finally:
            self.current = ""


_tried = core_checks.tried


class _Counted(nn.Module):
    """A function whose passes count for the check that is running when it is asked."""

    def __init__(self, module: nn.Module, costs: Costs) -> None:
        super().__init__()
        self.module, self.costs = module, costs

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to scores ``(N, K)``."""
        scores: Tensor = Metered(self.module, rowwise=False, passes=self.costs.here)(x)
        return scores


class _Serving:
    """A model whose served functions are counted; all else is its own."""

    def __init__(self, model: Any, costs: Costs) -> None:
        self._model, self._costs = model, costs

    def serve(self, seed: int) -> nn.Module:
        return _Counted(self._model.serve(seed), self._costs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@contextmanager
def counted() -> Iterator[Costs]:
    """Count the passes of each check of the evaluations inside; curves are left out."""
    costs = Costs()

    class Counting(Examined):
        @property
        def model(self) -> Any:
            return _Serving(self.subject.model, costs)

        def opened(self, view: str) -> nn.Module:
            return _Counted(super().opened(view), costs)

        def sources(self) -> dict[str, Tensor]:
            name, sha256 = self.subject.name, self.subject.sha256
            for outcomes in self.measured.received(name, sha256).values():
                costs.here.forwards += len(outcomes) * len(self.rows)  # one each
            return super().sources()

        def attacked(self, *asked: Any, **named: Any) -> Outcome | None:
            outcome = super().attacked(*asked, **named)
            if outcome is not None:
                count = outcome.bits.shape[1]
                costs.here.forwards += round(outcome.forwards * count)
                costs.here.backwards += round(outcome.backwards * count)
            return outcome

    with (
        patch.object(validity, "Examined", Counting),
        patch.object(core_checks, "tried", costs.tried),
        patch.object(contents, "CURVE", ()),
    ):
        yield costs


# ---------------------------------------------------------------- one model


def measure(case: Case, images: Images | None = None) -> Record:
    """Everything that the table needs to know of one model.

    Args:
        case: the model.
        images: absent: the first of its test images, as many as `IMAGES` says.
    """
    count, threat = IMAGES[case.data], THREATS[case.data]
    images = images or images_of(case.data, count)
    started = time.process_time()
    record: Record = {
        "key": key_of(case),
        "name": case.name,
        "kind": case.kind,
        "how": case.how,
        "data": case.data,
        "threat": str(threat),
        "images": min(count, len(images.split)),
    }
    model = case.make()
    subject = Subject(case.name, model, digest_of(model))
    source = model_of(case.source())
    other = Subject("the source", source, digest_of(source), surrogate=True)
    merges = averages(subject, images.split.shape)
    plan = plan_of(threat, count, merges=merges)
    stochastic = model.stochastic and not model.support()
    required = REQUIRED | (FOR_STOCHASTIC if stochastic else frozenset())
    required |= FOR_ENSEMBLES if merges else frozenset()
    record["form"] = (
        "stochastic" if model.stochastic else "ensemble" if len(model.members) > 1 else "single"
    )
    with warnings.catch_warnings(record=True) as told, counted() as costs:
        warnings.simplefilter("always")
        try:
            report = evaluate_models([subject, other], images, [plan, surrogate_plan(plan)])
        except Exception as error:  # what a crash is, the table says
            if isinstance(error, PhalanxError):
                record["refused"] = str(error)
            else:
                record["crashed"] = f"{type(error).__name__}: {error}"
            return record
    (found,) = report.defenses
    base = [row for row in report.rows if row.attack.partition(":")[0] in _names(plan)]
    n = max((one.n or 0 for one in found.checks if base_id(one.id) == "grad_bad"), default=0)
    return record | {
        "masking": found.masking,
        "sentence": found.sentence,
        "checks": {
            one.id: one.model_dump(include={"status", "value", "count", "n"})
            for one in found.checks
        },
        "rows": [
            row.model_dump(include={"view", "attack", "robust_accuracy", "ci95", "verdict"})
            for row in report.rows
        ],
        "clean": report.rows[0].clean_accuracy,
        "failed": sorted(f"{one.attack} on {one.view}: {one.reason}" for one in report.failed),
        "warned": sorted({str(w.message) for w in told if w.category is ValidityWarning}),
        "base_passes": sum((row.forwards or 0) + (row.backwards or 0) for row in base),
        "passes": {
            name: [one.forwards / max(1, n), one.backwards / max(1, n)]
            for name, one in costs.passes.items()
        },
        "required": sorted(required),
        "seconds": time.process_time() - started,
    }


def plan_of(threat: Threat, count: int, *, merges: bool) -> Plan:
    """The attacks, and the checks of tier core; `merges`: it averages members."""
    registry = default_registry()

    def use(table: Any) -> Any:
        return resolve_attack(table, threat=threat, registry=registry)

    served = ("deployed", "expected")
    also = [Also(use(SQUARE), served), *([Also(use(MORA), served)] if merges else [])]
    return Plan(tuple(use(one) for one in BASE), limit=count, also=tuple(also), checks="core")


def _names(plan: Plan) -> set[str]:
    return {use.use for use in plan.uses if is_base(use)}


# ---------------------------------------------------------------- all of them


def key_of(case: Case) -> str:
    """What a result answers to: the model's name and how it is attacked."""
    settings = [case.kind, case.data, case.name, IMAGES[case.data], str(THREATS[case.data])]
    text = json.dumps([*settings, BASE, SQUARE, MORA])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    """Measure what is missing, write, and say what came out otherwise than it should."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--only", default="*", help="names of models to measure, with * and ?")
    parser.add_argument("--again", default="", help="of these models what is there is not kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "verdicts.json"
    kept: dict[str, Record] = {}
    if path.exists():
        kept = {one["key"]: one for one in json.loads(path.read_text())["models"]}
    given.out.mkdir(parents=True, exist_ok=True)
    for case in PLANTED:
        wanted = fnmatchcase(case.name, given.only)
        again = fnmatchcase(case.name, given.again)
        if wanted and (again or key_of(case) not in kept):
            kept[key_of(case)] = record = measure(case)
            print(f"{case.kind}, {case.name}: {record.get('masking', 'no report')}", flush=True)
            _write(path, kept)
    _write(path, kept)
    records = _in_order(kept)
    print(table(records))
    if found := [*too_dear(records), *(line for one in records for line in unexpected(one))]:
        raise SystemExit("\n".join(found))


def _in_order(kept: dict[str, Record]) -> list[Record]:
    keys = [key_of(case) for case in PLANTED]
    return [kept[key] for key in keys if key in kept]


def _write(path: Path, kept: dict[str, Record]) -> None:
    records = _in_order(kept)
    results = {"torch": torch.__version__, "attacks": [*BASE, SQUARE, MORA], "models": records}
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(records))


if __name__ == "__main__":
    main()
