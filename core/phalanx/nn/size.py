"""What a network costs: parameters, those not zero, bytes on disk, seconds for an image."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from phalanx.pruner import convolutions

FEWEST = 5
"""Passes timed at least."""
SECONDS = 1.0
"""Passes are repeated for so long, where `FEWEST` take less."""


@dataclass(frozen=True)
class Size:
    """Numbers of a module's parameters; buffers are not counted, shared parameters once.

    Attributes:
        parameters: all of them.
        nonzero: those that are not 0.
        convolution_weights: weights of convolutions, without biases.
        convolution_nonzero: those of them that are not 0.
    """

    parameters: int
    nonzero: int
    convolution_weights: int
    convolution_nonzero: int

    @property
    def sparsity(self) -> float:
        """Share of convolutions' weights that are 0; 0 where there are none."""
        zeros = self.convolution_weights - self.convolution_nonzero
        return zeros / max(1, self.convolution_weights)


@dataclass(frozen=True)
class Latency:
    """How long a module takes for an image.

    Attributes:
        batch: images in a pass.
        seconds: for an image: the median over passes, divided by `batch`.
        passes: that were timed.
        threads: torch's.
    """

    batch: int
    seconds: float
    passes: int
    threads: int


def size_of(module: nn.Module) -> Size:
    """Numbers of a module's parameters."""
    weights = [layer.get_parameter("weight") for layer in convolutions(module).values()]
    return Size(
        parameters=sum(p.numel() for p in module.parameters()),
        nonzero=_nonzero(module.parameters()),
        convolution_weights=sum(weight.numel() for weight in weights),
        convolution_nonzero=_nonzero(weights),
    )


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors as they are, zeros included."""
    return sum(tensor.nbytes for tensor in tensors)


@torch.no_grad()
def latencies(
    functions: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    *,
    threads: int = 1,
    passes: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Time functions on a batch of images, in turn, so that other processes slow all of them down.

    The first pass of each is not counted. Who begins changes from round to round, so that nobody
    is always warm.

    Args:
        functions: modules in evaluation mode, or any other functions of images.
        x: images ``(N, C, H, W)``.
        threads: torch's, while they are timed.
        passes: of each; absent: `FEWEST`, and more until one of them has taken `SECONDS`.
        clock: seconds; of the wall, or `time.process_time` for the processor's own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    taken: list[list[float]] = [[] for _ in functions]
    try:
        for function in functions:
            function(x)
        while _goes_on(taken, passes):
            turn = len(taken[0]) % len(functions)
            pairs = list(zip(functions, taken, strict=True))
            for function, times in pairs[turn:] + pairs[:turn]:
                start = clock()
                function(x)
                times.append(clock() - start)
    finally:
        torch.set_num_threads(before)
    return [Latency(len(x), statistics.median(t) / len(x), len(t), threads) for t in taken]


def _goes_on(taken: list[list[float]], passes: int | None) -> bool:
    done = len(taken[0])
    return done < (passes or FEWEST) or (passes is None and max(map(sum, taken)) < SECONDS)


def processor() -> str:
    """What this machine's processor is called."""
    with suppress(OSError):  # only Linux has the file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _nonzero(tensors: Iterable[Tensor]) -> int:
    return sum(int(tensor.count_nonzero()) for tensor in tensors)
