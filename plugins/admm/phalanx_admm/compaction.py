"""Networks without their silent channels: smaller tensors, less arithmetic, equal outputs.

A filter of zeros whose bias, or whose batch normalisation's scale and shift, are zero as well gives
a channel of zeros, and activations and pooling keep it so. Such a channel is taken out of whatever
writes it and of whatever reads it (`phalanx_admm.flow`); which layers these are is read off a trace
of the network, by `torch.fx`, never off their names. Channels that meet in a sum or a product must
go together: in a residual network those inside a block go, those of a stage only where all that
write them are zero.

Taken out are channels between convolutions (dense and depthwise ones) and linear layers, through
batch normalisation, activations, pooling, sums, products and flattening. Other grouped
convolutions, concatenations, attention and every operation that is not known there keep the
channels that they see; so do layers with hooks, and layers whose weights stand elsewhere too.
Members keep the features that their classifier reads, since others may read them as well.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import torch
from torch import fx, nn

from phalanx.api import DefendedModel, Member, PhalanxWarning, Task, attacking, generator
from phalanx_admm.flow import Flow, tensors_of

_IMAGES, _SEEDS = 4, 5
"""On how many, and how often each view is opened."""
_FAR = 1e-4
"""Of the largest score: rounding is smaller, and a channel that was not silent shows."""


def compact_filters(model: nn.Module) -> nn.Module:
    """A copy without the channels that are zero for every image; equal outputs to 1e-5.

    Args:
        model: a `DefendedModel`, or any module with members, whose backbones are compacted each on
            its own; else a network. It is left as it is.

    Returns:
        The copy, in the modes of the model; an equal one where nothing is silent. A backbone that
        cannot be traced is left as it is, and a `PhalanxWarning` names it; so is a model that mixes
        its members' layers, which is found out by asking it if it knows its task.
    """
    found = _without_silent(model)
    if isinstance(model, DefendedModel) and model.task and not _agree(model, found, model.task):
        told = f"{type(model).__name__} answers otherwise without its silent channels"
        why = "it puts layers of several networks together"
        warnings.warn(
            f"compact: {told}, as if {why}; it is left as it is", PhalanxWarning, stacklevel=2
        )
        return copy.deepcopy(model)
    return found


def _without_silent(model: nn.Module) -> nn.Module:
    found = copy.deepcopy(model)
    networks = _networks(found)
    parts = [set(network.modules()) for network in networks]
    rest = set(found.modules()).difference(*parts)
    uses = Counter(id(t) for group in [*parts, rest] for part in group for t in tensors_of(part))
    for (network, name), layers in zip(networks.items(), parts):
        graph = _traced(network, name)
        if graph is not None:
            special = {one for one in layers if any(uses[id(t)] > 1 for t in tensors_of(one))}
            special |= {one for one in layers if one._forward_hooks or one._forward_pre_hooks}
            special |= {m.backbone.get_classifier() for m in _members(found).values()}
            with torch.no_grad():
                Flow(network, graph, special).cut()
    return found


def _members(model: nn.Module) -> dict[str, Member]:
    return {name: part for name, part in model.named_modules() if isinstance(part, Member)}


def _networks(model: nn.Module) -> dict[nn.Module, str]:
    """The networks that are traced, each with its name."""
    members = _members(model)
    if members:
        return {one.backbone: f"{name}.backbone".lstrip(".") for name, one in members.items()}
    if isinstance(model, DefendedModel):  # its own forward is more than a network
        return {part: name for name, part in model.named_children() if name != "aux"}
    return {model: "the network"}


def _traced(network: nn.Module, name: str) -> fx.Graph | None:
    """The trace of a network in evaluation mode; None with a warning where there is none."""
    try:
        return fx.Tracer().trace(copy.deepcopy(network).eval())  # its forward may keep what it sees
    except Exception as error:  # a network's own code meets a stand-in for a tensor
        reason = (str(error).splitlines() or [""])[0]
        told = f"{type(network).__name__} cannot be traced ({type(error).__name__}: {reason})"
        warnings.warn(f"compact: {name}: {told}; it is left as it is", PhalanxWarning, stacklevel=4)
        return None


@torch.no_grad()
def _agree(model: DefendedModel, found: nn.Module, task: Task) -> bool:
    """Whether two models give the same scores up to rounding, in each view, on some images."""
    assert isinstance(found, DefendedModel)
    like = next(model.parameters())
    x = torch.rand(_IMAGES, *task.shape, generator=generator("compact")).to(like.device)
    with attacking(model), attacking(found):
        for name, view in model.views().items():
            for seed in range(_SEEDS):
                expected = view.open(seed)(x)
                try:
                    gap = (found.views()[name].open(seed)(x) - expected).abs().max()
                except RuntimeError:  # shapes that do not go together
                    return False
                if not gap <= _FAR * expected.abs().max():
                    return False
    return True
