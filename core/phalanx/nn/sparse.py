"""Tensors with many zeros in fewer bytes: a bit for each group, and the values of groups not zero.

A pruned convolution's zeros lie in groups: single weights, blocks of filters and channels at one
kernel position, whole filters, whole columns. Each tensor is kept in the group that makes it
smallest, and as it is where none does. What is unpacked is what was packed, bit for bit: NaN and
-0.0 are no zeros, so a mask must set weights to zero and not multiply them, which turns negative
ones into -0.0.

In a file, the values stand under the tensor's name and the bits under ``<name>/groups``; shapes
and groups stand in the header, with the `VERSION` of this form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VERSION = 1
"""Of the form in which groups are written; files of another are refused."""
KEY = "sparse"
"""Where a file's header says what is packed."""
SUFFIX = "/groups"
OVERHEAD = 256
"""Bytes that a packed tensor costs in a file's header; what saves no more stays as it is."""

Group = tuple[int, int, int]
"""Filters, channels and kernel positions that are kept or left out together."""

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""Types that are packed, and the integers of their size."""
_SQUARES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Packed:
    """A tensor in groups.

    Attributes:
        shape: of the tensor: filters O, channels I, kernel positions in any number of dimensions.
        group: size of a group; those at an edge are cut off there.
        bits: ``(ceil(groups / 8),)`` bytes; bit i of byte j is 1 if group 8 j + i holds anything
            but zeros. Groups are counted as a tensor ``(O', I', K')``.
        values: ``(n,)``, the elements of those groups in the tensor's order.
    """

    shape: tuple[int, ...]
    group: Group
    bits: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of bits and values."""
        return int(self.bits.nbytes + self.values.nbytes)


def pack(tensor: Tensor) -> Packed | None:
    """The smallest form of a tensor; None if it saves nothing.

    Args:
        tensor: floating, of at least two dimensions, on a CPU; any other gives None.
    """
    if tensor.ndim < 2 or tensor.dtype not in _BITS:
        return None
    held = _held(tensor)
    affordable = tensor.nbytes - OVERHEAD
    if int(held.sum()) * tensor.element_size() >= affordable:
        return None
    smallest, best = affordable, None
    for group in _candidates(held.shape):
        kept = _grouped(held, group)
        size = _elements(kept, held.shape, group) * tensor.element_size()
        size += math.ceil(kept.numel() / 8)
        if size < smallest:
            smallest, best = size, (group, kept)
    if best is None:
        return None
    group, kept = best
    values = tensor.reshape(held.shape)[_spread(kept, held.shape, group)]
    return Packed(tuple(tensor.shape), group, _to_bits(kept.flatten()), values)


def unpack(packed: Packed) -> Tensor:
    """The tensor that was packed.

    Raises:
        ValueError: if bits, values and shape do not belong together.
    """
    shape = _three(packed.shape)
    counts = [math.ceil(size / part) for size, part in zip(shape, packed.group)]
    groups = math.prod(counts)
    if packed.bits.dtype != torch.uint8 or tuple(packed.bits.shape) != (math.ceil(groups / 8),):
        raise ValueError(f"{packed.bits.numel()} bytes of bits for {groups} groups")
    kept = _from_bits(packed.bits)[:groups].view(counts)
    where = _spread(kept, shape, packed.group)
    wanted = int(where.sum())
    if tuple(packed.values.shape) != (wanted,):
        raise ValueError(f"{packed.values.numel()} values for groups of {wanted}")
    whole = packed.values.new_zeros(shape)
    whole[where] = packed.values
    return whole.view(packed.shape)


def encode(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as a file holds them, and what its header must say of them.

    Returns:
        The tensors, those packed in two parts, and {} if none is.
    """
    found: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, tensor in tensors.items():
        packed = None if name + SUFFIX in tensors else pack(tensor)
        if packed is None:
            found[name] = tensor
        else:
            found |= {name: packed.values, name + SUFFIX: packed.bits}
            told[name] = {"shape": list(packed.shape), "group": list(packed.group)}
    return found, {"version": VERSION, "tensors": told} if told else {}


def decode(tensors: Mapping[str, Tensor], told: Any) -> dict[str, Tensor]:
    """The tensors that `encode` was given.

    Args:
        tensors: as the file holds them.
        told: what its header says of them; None or {} where nothing is packed.

    Raises:
        ValueError: with what is wrong with the file and what to do, to be put behind its name.
    """
    if not told:
        return dict(tensors)
    if isinstance(told, Mapping) and told.get("version", VERSION) != VERSION:
        raise ValueError(
            f"keeps its zeros in form {told['version']!r}, and this Phalanx knows form {VERSION}: "
            "it was written by a newer one; install that"
        )
    found = dict(tensors)
    name = "header"
    try:
        if "version" not in told:
            raise KeyError("version")
        for name, one in told["tensors"].items():
            shape, group = (tuple(_positive(one[key])) for key in ("shape", "group"))
            if len(shape) < 2 or len(group) != 3 or not _is_sane(shape, group):
                raise ValueError(f"shape {shape} in groups of {group}")
            bits = found.pop(name + SUFFIX)
            found[name] = unpack(Packed(shape, group, bits, found[name]))
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"is damaged: its {name!r}, kept without its zeros, cannot be put together again "
            f"({type(error).__name__}: {error}); restore it from a copy, or make it again"
        ) from error
    return {name: found[name] for name in tensors if name in found}


def _positive(sizes: Any) -> list[int]:
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"sizes {sizes}")
    return list(sizes)


def _is_sane(shape: tuple[int, ...], group: tuple[int, ...]) -> bool:
    """Whether groups are as `pack` makes them: a larger one would ask for memory without end."""
    return all(part <= max(size, _SQUARES[-1]) for size, part in zip(_three(shape), group))


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Filters, channels, kernel positions."""
    return shape[0], shape[1], math.prod(shape[2:])


def _held(tensor: Tensor) -> Tensor:
    """Where anything but +0.0 stands, ``(O, I, K)``."""
    integers = tensor.contiguous().view(_BITS[tensor.dtype])
    return (integers != 0).view(_three(tuple(tensor.shape)))


def _candidates(shape: torch.Size) -> list[Group]:
    """Squares at one kernel position, then whole filters and whole columns."""
    filters, channels, positions = shape
    squares = [(size, size, 1) for size in _SQUARES]
    return [*squares, (1, channels, positions), (filters, 1, 1)]


def _grouped(held: Tensor, group: Group) -> Tensor:
    """Which groups hold anything, ``(O', I', K')``."""
    counts = [math.ceil(size / part) for size, part in zip(held.shape, group)]
    padded = held.new_zeros([count * part for count, part in zip(counts, group)])
    padded[tuple(slice(size) for size in held.shape)] = held
    pairs = [number for pair in zip(counts, group) for number in pair]
    return padded.view(pairs).any(dim=5).any(dim=3).any(dim=1)


def _elements(kept: Tensor, shape: tuple[int, ...], group: Group) -> int:
    """Elements of the groups that hold anything; those at an edge have fewer."""
    counted = kept
    for dim, (size, part) in enumerate(zip(shape, group)):
        inside = (size - part * torch.arange(kept.shape[dim])).clamp(max=part)
        counted = counted * inside.view([-1 if axis == dim else 1 for axis in range(3)])
    return int(counted.sum())


def _spread(kept: Tensor, shape: tuple[int, ...], group: Group) -> Tensor:
    """Each group's value at all its elements, ``(O, I, K)``."""
    for dim, part in enumerate(group):
        kept = kept.repeat_interleave(part, dim).narrow(dim, 0, shape[dim])
    return kept


def _to_bits(kept: Tensor) -> Tensor:
    padded = kept.new_zeros(math.ceil(len(kept) / 8) * 8, dtype=torch.uint8)
    padded[: len(kept)] = kept
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _from_bits(bits: Tensor) -> Tensor:
    return (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()
