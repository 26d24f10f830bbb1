"""One defense under examination: its validity subset, and what was measured on it.

The subset is of images that are right without an attack, at most 256 of them, chosen with a fixed
seed. What the protocol's cells came to on it is read from them; attacks beyond the protocol run on
the subset as jobs of the same engine, so that they are stored, shared and resumed alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from phalanx import randomness
from phalanx.data.sets import Split
from phalanx.defense import DefendedModel, View, one_draw
from phalanx.errors import ArtifactError
from phalanx.evaluation import scoring
from phalanx.evaluation.cell import BLOCK, CHUNK, FORMAT, Outcome, device_of
from phalanx.evaluation.checks import Thresholds, all_right
from phalanx.evaluation.facts import is_base
from phalanx.evaluation.findings import Check
from phalanx.evaluation.loop import Attacked, Loop, Measurements
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Plan, Subject, digest_of_batch, members_of
from phalanx.evaluation.tasks import Task
from phalanx.specs import Threat
from phalanx.training.files import read_json, write_json

SUBSET = 256
"""Images of the validity subset at most."""
SHOWN = 64
"""Images on which the checks that cost nothing look."""


class Frozen(DefendedModel):
    """A stochastic model with its randomness frozen: one draw, fixed by a seed, as the model."""

    def __init__(self, model: DefendedModel, seed: int) -> None:
        super().__init__()
        self.function = one_draw(model, seed)
        self._closed = bool(model.support())

    def draw(self, x: Tensor, generator: Generator | None) -> Tensor:
        """The fixed draw: images ``(N, C, H, W)`` to scores ``(N, K)``."""
        parts = [self.function(part) for part in x.split(CHUNK)]  # the same draws in any batch
        return torch.cat(parts)

    def views(self) -> dict[str, View]:
        """``deployed`` alone; a fixed draw meets other batches with other numbers."""
        return {"deployed": View(self.serve, rowwise=self._closed)}


@dataclass
class Examined:
    """What checks may ask of one defense at one threat.

    Attributes:
        subject: the defense.
        plan: how it was attacked.
        loop: runs further attacks.
        measured: what came of the protocol.
        threat: at which it is examined.
        folder: where answers are kept; None: nowhere.
        rows: of the validity subset, within the evaluated images.
        split: these images.
        digest: of these images and labels.
    """

    subject: Subject
    plan: Plan
    loop: Loop
    measured: Measurements
    threat: Threat
    folder: Path | None = None
    rows: Tensor = field(init=False)
    split: Split = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        name = self.subject.name
        clean = self.measured.clean[name].outcome(self.measured.counts[name])
        right = (scoring.shares(clean.bits) > 0.5).nonzero().squeeze(1)
        stream = randomness.generator("validity", self.loop.images.name)
        chosen = right[torch.randperm(len(right), generator=stream)[:SUBSET]]
        self.rows = chosen.sort().values
        self.split = self.loop.images.split.subset(self.rows)
        self.digest = digest_of_batch(self.split.fetch(slice(None)))

    # ------------------------------------------------------------ images and functions

    @property
    def model(self) -> DefendedModel:
        """The defense's model."""
        return self.subject.model

    @property
    def thresholds(self) -> Thresholds:
        """When checks warn and fail."""
        return self.plan.thresholds

    @property
    def members(self) -> Sequence[nn.Module]:
        """The model's members; () where it fails to tell them."""
        return members_of(self.model)

    def unable(self, otherwise: str) -> str:
        """Why `attacked` gave nothing, where it is not the time."""
        late = self.loop.engine.late
        return "The time budget was over before it could run." if late else otherwise

    @property
    def closed(self) -> bool:
        """Whether all functions that the model serves are known: it is no random one, or few."""
        return not self.model.stochastic or bool(self.model.support())

    def images(self, count: int = SUBSET) -> tuple[Tensor, Tensor]:
        """The subset's first images ``(n, C, H, W)`` and labels, on the model's device."""
        batch = self.split.fetch(slice(0, min(count, len(self.rows))))
        device = device_of(self.model)
        return batch.x.to(device), batch.y.to(device)

    @property
    def batch(self) -> int:
        """Images of which gradients are taken at once."""
        return self.loop.maker.batch_of(self.subject, self.split)

    def generator(self, *purpose: str | int) -> Generator:
        """A generator of a check's draws, on the model's device."""
        key = ("validity", self.loop.maker.seed, *purpose)
        return randomness.generator(*key, device=device_of(self.model))

    @property
    def main_view(self) -> str:
        """The view that path checks look at: ``expected`` of a stochastic model."""
        return "expected" if self.model.stochastic else "deployed"

    def opened(self, view: str) -> nn.Module:
        """A view's module, opened with a fixed seed."""
        return self.model.views()[view].open(randomness.key("validity", view))

    def function_for_gradients(self) -> nn.Module:
        """What gradient checks look at: one frozen draw of a stochastic model."""
        return self.opened("one-draw" if self.model.stochastic else "deployed")

    # ------------------------------------------------------------ outcomes on the subset

    def q(self, outcome: Outcome) -> Tensor:
        """Shares of right draws of the subset's images, ``(n,)``."""
        return scoring.shares(outcome.of_rows(self.rows).bits)

    def cells(self) -> list[Attacked]:
        """The defense's finished cells at this threat."""
        text = str(self.threat)
        return [one for one in self.measured.finished(self.subject.name) if one.task.threat == text]

    def outcomes(self, *names: str, view: str | None = None) -> dict[str, Tensor]:
        """Label -> outcome on the subset of the cells of these attacks."""
        count = self.measured.counts[self.subject.name]
        return {
            f"{one.task.label} on {one.task.view_name}": self.q(one.job.outcome(count))
            for one in self.cells()
            if one.task.use is not None
            and one.task.use.use in names
            and view in (None, one.task.view_name)
        }

    def base(self) -> Tensor | None:
        """What the white-box gradient attacks leave of the subset; None where too few ran."""
        from phalanx.evaluation.facts import has_base

        used = [one.task.use for one in self.cells() if one.task.use is not None]
        names = [use for use in used if is_base(use)]
        if not has_base(names):
            return None
        return all_right(list(self.outcomes(*{use.use for use in names}).values()))

    def sources(self) -> dict[str, Tensor]:
        """Source -> what the defense makes of its examples: other models', and its members'."""
        received = self.measured.received(self.subject.name, self.subject.sha256)
        found = {
            source: all_right([self.q(one) for one in outcomes])
            for (source, threat), outcomes in received.items()
            if threat == str(self.threat)
        }
        members = list(self.outcomes("member-transfer").values())
        return found | ({"its members": all_right(members)} if members else {})

    # ------------------------------------------------------------ more attacks

    def attacked(
        self,
        use: str,
        params: dict[str, Any],
        *,
        threat: Threat | None = None,
        view: str | None = None,
        subject: Subject | None = None,
        split: Split | None = None,
    ) -> Outcome | None:
        """What an attack beyond the protocol comes to on the subset; None if it cannot run.

        Args:
            use: the attack's name.
            params: its parameters, without the threat.
            threat: absent: the one examined.
            view: absent: `main_view`.
            subject: absent: the defense; its frozen form, perhaps.
            split: absent: the subset's images.
        """
        who, view = subject or self.subject, view or self.main_view
        registry = self.loop.maker.registry
        attack = resolve_attack(
            {"use": use, "params": params}, threat=threat or self.threat, registry=registry
        )
        task = Task(who, view, who.model.views()[view], attack)
        images = split if split is not None else self.split
        job = self.loop.maker.job(task, images, len(images))
        job.shown, job.keeps = f"{task.shown}, check", False
        self.loop.engine.progress.started(cells=1, images=job.count)
        self.loop.engine.work([job])
        return job.outcome(job.count) if job.error is None and job.done() == job.count else None

    def frozen(self) -> Subject:
        """The model with its randomness frozen, as a subject."""
        seed = randomness.key("validity", "frozen")
        sha256 = hashlib.sha256(f"{self.subject.sha256} frozen {seed}".encode()).hexdigest()
        return Subject(f"{self.subject.name}, frozen", Frozen(self.model, seed), sha256)

    # ------------------------------------------------------------ answers that are kept

    def kept(self, what: str, make: Callable[[], Check]) -> Check:
        """A check's answer, from the folder if it was given before."""
        found = self.kept_value(what, lambda: make().model_dump(mode="json"))
        return Check.model_validate(found)

    def kept_value(self, what: str, make: Callable[[], Any]) -> Any:
        """JSON data, from the folder if it was made before."""
        key = {
            "what": what,
            "weights": self.subject.sha256,
            "format": FORMAT,
            "data": self.loop.images.name,
            "rows": self.rows.tolist(),
            "images": self.digest,
            "block": [self.loop.maker.seed, str(self.threat)],
            "thresholds": self.thresholds.model_dump(mode="json"),
        }
        if self.folder is None:
            return self._seeded(what, make)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.json"
        if path.exists():
            try:
                return read_json(path)
            except ArtifactError:
                pass  # damaged: it is made again
        value = self._seeded(what, make)
        write_json(path, value)
        return value

    def _seeded(self, what: str, make: Callable[[], Any]) -> Any:
        """What is made with the global generators keyed, for models that draw from them."""
        with randomness.seeded("validity", self.loop.maker.seed, what):
            return make()


def blocks_of(count: int) -> int:
    """How many blocks so many images are."""
    return -(-count // BLOCK)
