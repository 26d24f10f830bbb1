"""A private copy of a network whose forward and backward passes cost less.

In evaluation mode batch normalisation is a fixed factor and shift of each channel, so it folds
into the convolution before it: ``γ (w * x + b − μ) / σ + β`` is a convolution with weights
``γ w / σ`` and bias ``γ (b − μ) / σ + β``. And on a CPU convolutions are faster with channels last.
Which normalisation follows which convolution is seen in one pass: its input *is* the output of
the convolution.

A copy is handed out only if its scores and its gradient agree with the network's own on the images
at hand. Whether one is tried is decided by rule and never by a clock, so that a computation comes
out the same each time. The network itself, its memory layout included, is left as it was:
safetensors refuses channels last.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from phalanx import randomness

SCORES = 1e-5
"""How far scores may differ, relative to the largest one."""
GRADIENTS = 1e-3
"""How far the gradient may differ in norm, relative to the network's own: ReLUs whose input is 0
up to rounding may turn."""
_NOISE = 0.01
"""Share of noise in the images that a copy is tried on. Where a max-pool sees equal values, as on a
white page, the gradient may go to any of them, and rounding says to which."""
_FEWEST = 2
"""Convolutions below which nothing is gained: a vision transformer has one."""
_LARGEST = 8 * 2**20
"""Bytes of a convolution's output above which a batch is cut, where weights are no larger: memory
in larger pieces goes back to the system at every pass."""
_PLANS = (
    (True, torch.channels_last),
    (True, torch.contiguous_format),
    (False, torch.channels_last),
)
"""Whether to fold, and the memory layout, in the order tried."""


def prepared(module: nn.Module, example: Tensor) -> nn.Module | None:
    """A cheaper copy of a module, or None where there is none or it does not agree.

    Args:
        module: a function of independent rows, images ``(N, C, H, W)`` to scores ``(N, K)``, in
            evaluation mode; left as it is. It is copied with everything in it, the state of its
            random streams included, and no draw is taken from them or from the global ones.
        example: images on which the copy must agree, ``(n, C, H, W)`` float32 on a CPU; about
            eight are enough.

    Returns:
        The copy, its parameters frozen, in evaluation mode. None for modules with hooks (but for
        forward hooks with a true attribute ``travels``, which the copy has too where its layer is
        still there), parametrizations or parts in training mode, compiled ones, other types than
        float32, autocast, other devices than a CPU, fewer than two convolutions, and where copying
        fails.
    """
    if not _is_simple(module, example):
        return None
    seen = _Seen()
    own = _try(_unwatched, module)
    answer = None if own is None else _try(_traced, own, example, seen)
    if answer is None:
        return None
    for folds, layout in _PLANS:
        if folds and not seen.pairs():
            continue
        pairs = seen.pairs() if folds else []
        found: Prepared | None = _try(_changed, module, pairs, layout, seen.rows)
        if found is None:
            continue
        tried = _try(_answer, _unwatched(found), example)  # its streams stay at their beginning
        if tried is not None and _agree(answer, tried):
            return found
    return None


class Prepared(nn.Module):
    """A changed copy, and the layout that its images are brought into.

    Args:
        module: images ``(N, C, H, W)`` to scores ``(N, K)``, row by row.
        layout: memory format of the images.
        rows: images in a pass at most; a larger batch is cut into even parts.
    """

    def __init__(self, module: nn.Module, layout: torch.memory_format, rows: int) -> None:
        super().__init__()
        self.module = module
        self.layout = layout
        self.rows = rows

    @property
    def members(self) -> tuple[Prepared, ...]:
        """The module's members, prepared; () where it has none."""
        parts = getattr(self.module, "members", ())
        return tuple(Prepared(one, self.layout, self.rows) for one in parts)

    def combined(self, x: Tensor) -> Any:
        """What the module says that it averages (`DefendedModel.combined`); None if it does not."""
        ask = getattr(self.module, "combined", None)
        return None if ask is None else ask(_laid_out(x, self.layout))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in any layout to scores ``(N, K)``."""
        x = _laid_out(x, self.layout)
        parts = x.tensor_split(max(1, -(-len(x) // self.rows)))
        scores: list[Tensor] = [self.module(part) for part in parts]
        return scores[0] if len(scores) == 1 else torch.cat(scores)


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Images in this layout; a gradient that comes back is in the ordinary one.

    Whoever attacks may take a view of it, which one with channels last refuses.
    """
    if x.is_contiguous(memory_format=layout):
        return x
    found: Tensor = _LaidOut.apply(x, layout)
    return found


class _LaidOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: torch.memory_format) -> Tensor:
        return x.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous(), None


def _is_simple(module: nn.Module, example: Tensor) -> bool:
    """Whether a copy may be made and is likely to be faster."""
    tensors = [example, *module.parameters(), *module.buffers()]
    return (
        example.ndim == 4
        and len(example) > 0
        and example.dtype == torch.float32
        and all(part.device.type == "cpu" for part in tensors)
        and not torch.is_autocast_enabled("cpu")  # scores are then too rough to agree
        and all(part.dtype == torch.float32 for part in tensors if part.is_floating_point())
        and not any(_is_special(part) for part in module.modules())
        and sum(type(part) is nn.Conv2d for part in module.modules()) >= _FEWEST
    )


def _is_special(part: nn.Module) -> bool:
    """In training mode, watched by a hook that stays behind, parametrized, scripted or compiled."""
    return (
        part.training
        or not all(getattr(hook, "travels", False) for hook in part._forward_hooks.values())
        or any((part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks))
        or is_parametrized(part)
        or isinstance(part, torch.jit.ScriptModule)
        or hasattr(part, "_orig_mod")  # what torch.compile puts around a module
    )


def _unwatched(module: nn.Module) -> nn.Module:
    """A copy without the hooks that travelled with it: trying it is nobody's pass."""
    found = copy.deepcopy(module)
    for part in found.modules():
        part._forward_hooks.clear()
    return found


def _try(function: Any, *arguments: Any) -> Any:
    """The function's value under seeded global generators; None if it raises."""
    try:
        with randomness.seeded("prepared"):
            return function(*arguments)
    except Exception:  # a third-party module fails in copying or in another layout as it likes
        return None


# ---------------------------------------------------------------- the network's own pass


@dataclass
class _Seen:
    """What one pass showed.

    Attributes:
        followed: convolutions by name, each with the normalisation that took its output.
        calls: how often each of these layers ran.
        several: layers that stand under more than one name, or share a weight with another.
        rows: images in a pass at most.
    """

    followed: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    several: set[str] = field(default_factory=set)
    rows: int = 1

    def pairs(self) -> list[tuple[str, str]]:
        """The convolutions that a normalisation can be folded into."""
        return [
            pair
            for pair in self.followed
            if all(self.calls[name] == 1 and name not in self.several for name in pair)
        ]


def _traced(module: nn.Module, example: Tensor, seen: _Seen) -> tuple[Tensor, Tensor] | None:
    """Scores and gradient of a copy that may be watched by hooks; `seen` is filled."""
    outputs: dict[int, tuple[str, Tensor, int]] = {}

    def watch_convolution(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.calls[name] += 1
            outputs[id(output)] = (name, output, output._version)

        return hook

    def watch_normalisation(name: str) -> Any:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.calls[name] += 1
            convolution, given, version = outputs.get(id(inputs[0]), ("", output, 0))
            if convolution and given._version == version:  # else something was done to it in place
                seen.followed.append((convolution, name))

        return hook

    for name, part in module.named_modules():
        if type(part) is nn.Conv2d:
            part.register_forward_hook(watch_convolution(name))
        elif type(part) in (nn.BatchNorm2d, BatchNormAct2d) and part.running_mean is not None:
            part.register_forward_hook(watch_normalisation(name))
    answer = _answer(module, example)
    seen.several = _several(module)
    seen.rows = _rows_of([output for _, output, _ in outputs.values()], module, len(example))
    return answer


def _several(module: nn.Module) -> set[str]:
    """Names of layers that are used, or whose tensors are used, under another name too."""
    layers = list(module.named_modules(remove_duplicate=False))
    names = Counter(id(part) for _, part in layers)
    owners = Counter(
        id(tensor)
        for part in module.modules()
        for tensor in itertools.chain(part._parameters.values(), part._buffers.values())
        if tensor is not None
    )
    return {
        name
        for name, part in layers
        if names[id(part)] > 1 or any(owners[id(t)] > 1 for t in part.parameters(recurse=False))
    }


def _rows_of(outputs: list[Tensor], module: nn.Module, rows: int) -> int:
    """Images in a pass at most; no limit where the weights are larger than the outputs."""
    whole = 2**31
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    largest = max(output.numel() * output.element_size() // rows for output in outputs)
    return whole if weights > _LARGEST else max(1, _LARGEST // max(1, largest))


def _answer(module: nn.Module, example: Tensor) -> tuple[Tensor, Tensor] | None:
    """Scores ``(n, K)`` and the gradient of a fixed mixture of them; None if there is none."""
    with torch.enable_grad():
        noise = torch.rand(example.shape, generator=randomness.generator("prepared"))
        x = ((1.0 - _NOISE) * example.detach() + _NOISE * noise).requires_grad_()
        scores: Tensor = module(x)
        if not scores.requires_grad or scores.ndim != 2:
            return None
        mixture = torch.arange(scores.shape[1], dtype=scores.dtype).cos()
        (gradient,) = torch.autograd.grad((scores * mixture).sum(), x)
    return scores.detach(), gradient


def _agree(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether scores and gradients are the same up to rounding; False for NaN."""
    scores, gradient = own
    gap = (other[0] - scores).abs().max()
    slip = torch.linalg.vector_norm(other[1] - gradient)
    return bool(gap <= SCORES * scores.abs().max()) and bool(
        slip <= GRADIENTS * torch.linalg.vector_norm(gradient)
    )


# ---------------------------------------------------------------- the copy


def _changed(
    module: nn.Module, pairs: list[tuple[str, str]], layout: torch.memory_format, rows: int
) -> Prepared:
    """A copy with these normalisations folded, frozen and laid out."""
    found = copy.deepcopy(module)
    for convolution, normalisation in pairs:
        before: Any = found.get_submodule(convolution)
        norm: Any = found.get_submodule(normalisation)
        fused: nn.Module = fuse_conv_bn_eval(before, norm)
        rest: list[nn.Module] = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        _put(found, convolution, fused)
        _put(found, normalisation, nn.Sequential(*rest))  # an empty one is the identity
    for parameter in found.parameters():
        parameter.requires_grad_(False)  # noqa: FBT003  # torch has no keyword for it
    return Prepared(found.to(memory_format=layout), layout, rows).eval()


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, part)
