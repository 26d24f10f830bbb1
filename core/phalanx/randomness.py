"""Keyed randomness: every draw is a function of what it is for, so nothing has to be stored.

A key is any tuple of strings and numbers, such as (run seed, phase, epoch, index, purpose).
Equal keys give equal draws in any process; a draw that is added does not shift another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator

Part = str | int


def key(*parts: Part) -> int:
    """A 32-bit seed from the parts: stable across processes, platforms and Python versions.

    32 bits, because torch's CPU generator uses no more.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def generator(*parts: Part, device: torch.device | str = "cpu") -> Generator:
    """A fresh generator on `device`, seeded by the key of the parts."""
    return Generator(device=device).manual_seed(key(*parts))


@contextmanager
def seeded(*parts: Part) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators inside, restore them outside.

    For code that takes no generator: Dropout, layer initialisers, third-party models and attacks.
    """
    seed = key(*parts)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
