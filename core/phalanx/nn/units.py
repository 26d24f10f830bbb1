"""Which layers belong together: a convolution and the normalisation of its output.

Names do not tell it and the order of modules need not. It is seen in one pass: the input of the
normalisation *is* the output of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from phalanx.attack import attacking
from phalanx.nn.member import Member

_NOTHING = ("", torch.empty(0), -1)


def unit_leaders(network: nn.Module, images: Tensor) -> dict[str, str]:
    """For each module that owns tensors the one that leads its unit; a leader leads itself.

    A unit is a layer and the layers of scales and shifts (batch normalisation, with its running
    statistics) that take its output as it is.

    Args:
        network: of `images`; left as it is.
        images: ``(N, C, H, W)``; one is enough.
    """
    leader = {name: name for name in _owners(network)}
    for name, first in _calls(network, images):
        if first and leader[name] == name:
            leader[name] = leader[first]
    return leader


def filter_parameters(module: nn.Module, images: Tensor) -> dict[nn.Module, list[nn.Parameter]]:
    """What a filter has besides its weight, by the layer: each of ``(O,)``.

    That is the bias of each convolution and linear layer of `module`, and scale and shift of a
    batch normalisation that takes the layer's output as it is, and nothing else ever. A filter of
    zeros, with these at zero as well, is silent; where one is left it says the same of every image.

    Each member of `module` is asked on its own, since one draw of a population shows one of them;
    a module without members is asked itself. Of one that takes no images only biases are known.

    Args:
        module: its members, or itself, of `images`; left as it is.
        images: ``(N, C, H, W)`` in [0, 1]; one is enough.
    """
    found: dict[nn.Module, list[nn.Parameter]] = {}
    for layer in module.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            bias = layer._parameters.get("bias")
            found[layer] = [] if bias is None else [bias]
    feeders: dict[nn.Module, set[nn.Module | None]] = {}
    members = tuple(part for part in module.modules() if isinstance(part, Member))
    for network in members or (module,):
        try:
            calls = _calls(network, images)
        except Exception:
            if isinstance(network, Member):
                raise
            continue  # a part of a network, which its owner asks of something else
        for name, first in calls:
            feeder = network.get_submodule(first) if first else None
            feeders.setdefault(network.get_submodule(name), set()).add(feeder)
    for part, layers in feeders.items():
        if isinstance(part, _BatchNorm) and len(layers) == 1:
            own = found.get(next(iter(layers)) or part)  # none where another normalisation feeds it
            if own is not None:
                own.extend(one for one in part._parameters.values() if one is not None)
    return found


def _owners(network: nn.Module) -> list[str]:
    """The names of modules that own tensors, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in network.state_dict()))


def _calls(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The calls of layers of scales and shifts, in turn: the layer, and whose output it takes.

    The latter is the innermost module that owns tensors and gave out its input as it is; '' where
    there is none.
    """
    found: list[tuple[str, str]] = []
    # holds the tensors, so that no id comes again; the version tells what was done to one in place
    outputs: dict[int, tuple[str, Tensor, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            first, given, version = outputs.get(id(inputs[0]), _NOTHING) if inputs else _NOTHING
            found.append((name, first if given._version == version else ""))

        return hook

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                # a container's output is its last layer's, which is there already
                outputs.setdefault(id(output), (name, output, output._version))

        return hook

    handles = []
    for name in _owners(network):
        part = network.get_submodule(name)
        if all(p.ndim < 2 for p in part.parameters()):
            handles.append(part.register_forward_pre_hook(note(name)))
        handles.append(part.register_forward_hook(record(name)))
    try:
        with attacking(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
