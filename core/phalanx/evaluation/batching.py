"""How many images are attacked at once: a whole block, or as many as memory has room for."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from phalanx import randomness
from phalanx.attack import answering
from phalanx.defense import DefendedModel
from phalanx.evaluation.cell import BLOCK, CHUNK, device_of

_SHARE = 0.25
"""Of the memory that there is: attacks keep several copies, and other processes live too. What is
free changes from call to call, and the number of images is a part of a block's key."""
_KEPT = 3
"""Copies of each layer's output: itself, its gradient, and what the layer makes on its way."""


def automatic_batch(model: DefendedModel, shape: tuple[int, int, int]) -> int:
    """Images to attack at once: 256, or a smaller power of two from 16 on.

    Every view that may be attacked counts with what its forward pass keeps; a view that fails is
    left to its cell.

    Args:
        model: what is attacked.
        shape: of an image, ``(C, H, W)``.
    """
    whole = _free(device_of(model))
    largest = max((_bytes(model, view.open, shape) for view in model.views().values()), default=0)
    if whole is None or not largest:
        return BLOCK
    batch = BLOCK
    while batch > CHUNK and batch * largest * _KEPT > _SHARE * whole:
        batch //= 2
    return batch


def _bytes(model: DefendedModel, opened: object, shape: tuple[int, int, int]) -> int:
    """Bytes of all layers' outputs for one image."""
    total = 0

    def watch(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    parts = [part for part in model.modules() if not list(part.children())]
    handles: list[RemovableHandle] = []
    try:
        for part in parts:
            handles.append(part.register_forward_hook(watch))
        with randomness.seeded("batch"), answering(model), torch.no_grad():
            opened(0)(torch.zeros(1, *shape, device=device_of(model)))  # type: ignore[operator]
    except Exception:  # a view or a network raises anything; its cell will say what
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return total


def _free(device: torch.device) -> int | None:
    """The device's memory in bytes, where it can be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return None
