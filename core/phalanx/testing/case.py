"""What every conformance check is given: a component and a tiny task to try it on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx.config import RunConfig
from phalanx.data import load_data
from phalanx.data.sets import Data
from phalanx.registry import Registry
from phalanx.runfile import read_run
from phalanx.specs import ComponentSpec
from phalanx.training.run import Run, train

IMAGES = 64
BATCH = 5
"""64 images in batches of 5 make 13 steps, the last of them of 4 images."""


@dataclass
class Case:
    """One component under test.

    Attributes:
        spec: its declaration.
        params: of its config.
        folder: for runs.
        registry: where it is registered.
    """

    spec: ComponentSpec
    params: Mapping[str, Any]
    folder: Path
    registry: Registry

    @functools.cached_property
    def data(self) -> Data:
        """The bundled digits, 64 of them for training."""
        return load_data("digits", limit=IMAGES)

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """Twelve test images ``(12, 1, 8, 8)`` and their labels."""
        batch = self.data.test.fetch(torch.arange(12))
        return batch.x, batch.y

    def config(self, *, adversarial: bool = False) -> RunConfig:
        """A run of one epoch a phase over 64 digits."""
        training: dict[str, Any] = {"epochs": 1, "batch_size": BATCH}
        if adversarial:
            training["adversarial"] = {"attack": {"use": "pgd", "params": {"steps": 2}}}
        return read_run(
            {
                "seed": 3,
                "data": {"use": "digits", "limit": IMAGES},
                "defense": {"use": self.spec.name, "params": dict(self.params)},
                "training": training,
            },
            registry=self.registry,
        )

    @functools.cached_property
    def run(self) -> Run:
        """The component's defense, trained once and kept for the checks that only look."""
        return train(self.config(), out=self.folder / "run")
