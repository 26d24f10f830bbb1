"""What a running phase is told, and its updates."""

from __future__ import annotations

from collections import abc
from contextlib import closing

import torch
from torch import Generator, Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from phalanx import randomness
from phalanx.config import OptimizerConfig
from phalanx.data.sets import Split
from phalanx.errors import TrainingError
from phalanx.phase import Batch, Phase, PhaseContext


def build_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> Optimizer:
    """The configured optimizer over the parameters."""
    if config.name == "sgd":
        return SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    kind = Adam if config.name == "adam" else AdamW
    return kind(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


class TrainerContext(PhaseContext):
    """Position, generators and updates of one phase of one run."""

    def __init__(self, phase: Phase, *, seed: int, data: Split, device: torch.device) -> None:
        self.phase = phase
        self.seed = seed
        self.data = data
        self.device = device
        self.epoch = 0
        self.index = 0
        self.batches = -(-len(data) // phase.batch_size)
        self.optimizers: dict[str, Optimizer] = {}
        self._orders: dict[str, tuple[int, Tensor]] = {}

    def build_optimizers(self) -> None:
        """One for each group; after the phase's `begin`, which may freeze parameters."""
        self.optimizers = {
            name: build_optimizer(self.phase.optimizer, parameters)
            for name, parameters in self.phase.groups().items()
        }

    def generator(self, *purpose: str | int) -> Generator:
        """A generator keyed by (run seed, phase, epoch, index, purpose)."""
        return randomness.generator(
            self.seed, self.phase.name, self.epoch, self.index, *purpose, device=self.device
        )

    def rows(self, stream: str = "", *, index: int | None = None) -> Tensor:
        """The rows of a batch in a pass that is shuffled by (phase, epoch, stream).

        Args:
            stream: the pass; '' is the one that the phase's steps take.
            index: the batch within the epoch; absent: the current one.
        """
        epoch, order = self._orders.get(stream, (-1, torch.empty(0)))
        if epoch != self.epoch:
            shuffle = randomness.generator(self.seed, self.phase.name, self.epoch, "order", stream)
            order = torch.randperm(len(self.data), generator=shuffle)
            self._orders[stream] = (self.epoch, order)
        start = (self.index if index is None else index) * self.phase.batch_size
        return order[start : start + self.phase.batch_size]

    def batch(self, stream: str) -> Batch:
        """The current batch of a stream, on the device."""
        return self._placed(self.data.fetch(self.rows(stream)))

    def left(self) -> abc.Generator[Batch, None, None]:
        """The epoch's batches from the current one on, on the device; the data may work ahead.

        Whoever leaves before the end closes it.
        """
        rows = (self.rows(index=index) for index in range(self.index, self.batches))
        with closing(self.data.stream(rows)) as batches:
            for batch in batches:
                yield self._placed(batch)

    def _placed(self, batch: Batch) -> Batch:
        return Batch(batch.x.to(self.device), batch.y.to(self.device))

    def minimise(self, loss: Tensor, *groups: str) -> None:
        """One update of the named groups (none named: all).

        Raises:
            TrainingError: if the loss is not finite, before anything has changed.
        """
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of phase {self.phase.name!r} is {float(loss.detach())} at epoch "
                f"{self.epoch + 1}, batch {self.index + 1}; the last checkpoint is kept. "
                "Train into another --out with a lower training.optimizer lr, or a clip_grad (the "
                "table replaces the phase's whole optimizer)"
            )
        unknown = [name for name in groups if name not in self.optimizers]
        if unknown:
            raise TrainingError(
                f"phase {self.phase.name!r} updates groups {', '.join(unknown)}; it has "
                f"{', '.join(self.optimizers)}"
            )
        self.phase.module.zero_grad(set_to_none=True)
        loss.backward()
        factor = self.phase.schedule(self.phase.progress(self))
        config = self.phase.optimizer
        for name in groups or tuple(self.optimizers):
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
                if config.clip_grad is not None:
                    nn.utils.clip_grad_norm_(group["params"], config.clip_grad)
            optimizer.step()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were
        for regularizer in self.phase.regularizers:
            regularizer.after_step(self)

    def state(self) -> dict[str, Tensor]:
        """The optimizers' tensors as ``optimizer/<group>/<parameter>/<name>``."""
        return {
            f"optimizer/{group}/{index}/{name}": value
            for group, optimizer in self.optimizers.items()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the optimizers' tensors back."""
        for group, optimizer in self.optimizers.items():
            start = f"optimizer/{group}/"
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                parts = key.removeprefix(start).split("/")
                if key.startswith(start) and len(parts) == 2:
                    state.setdefault(int(parts[0]), {})[parts[1]] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
