"""The layers of a network as units, and the network that takes each unit from another sub-model.

Lee et al., arXiv 2005.10757, section 3.1: w_l = r_l ⊗ W_l (eq. 3) selects the layer of one of M
sub-models. A unit is what is selected together: a convolution or linear layer, and the layers of
scales and shifts (batch normalisation, with its running statistics) that take its output as it is.
Whatever else owns weights, such as a position embedding, is a unit of its own. Which normalisation
follows which convolution is seen in one pass (`phalanx.api.unit_leaders`), so any backbone will do.

A sampled network is made of the sub-models' own layers: the containers are copied, the layers are
shared. Nothing is mixed, no weight is copied, and statistics move where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.api import ConfigError, attacking, generator, unit_leaders

Unit = tuple[str, ...]
"""Names of the modules that one draw selects together; the first names the unit."""
Choice = tuple[int, ...]
"""r_1 … r_L: for each unit the index from 0 of the sub-model that it is taken from."""

_SHOWN = 3
"""Layers that an error lists."""


def find_units(network: nn.Module, shape: Sequence[int]) -> tuple[Unit, ...]:
    """The units of a network, in the order of its modules.

    Args:
        network: images to scores; left as it is.
        shape: ``(C, H, W)`` of an image.

    Raises:
        ConfigError: if two layers share a weight, so that they cannot be drawn independently.
    """
    parameters = [p for _, p in network.named_parameters(remove_duplicate=False)]
    if len({id(p) for p in parameters}) < len(parameters):
        raise ConfigError(
            [
                f"backbone: two layers of {_called(network)} share a weight, so they cannot be "
                "drawn independently: choose a backbone without tied weights"
            ]
        )
    units: dict[str, list[str]] = {}
    for name, first in unit_leaders(network, torch.zeros(1, *shape)).items():
        units.setdefault(first, []).append(name)
    return tuple(tuple(sorted(names, key=lambda n: n != first)) for first, names in units.items())


def check_alike(networks: Sequence[nn.Module]) -> None:
    """Refuse networks whose layers do not pair up by name and shape.

    Raises:
        ConfigError: naming some of the layers that differ.
    """
    first = _shapes(networks[0])
    for number, network in enumerate(networks[1:], start=2):
        other = _shapes(network)
        unlike = [n for n in (first | other) if first.get(n) != other.get(n)]
        if unlike:
            shown = ", ".join(
                f"{n}: {first.get(n, 'absent')} and {other.get(n, 'absent')}"
                for n in unlike[:_SHOWN]
            )
            more = ", …" if len(unlike) > _SHOWN else ""
            raise ConfigError(
                [
                    f"members: sub-models 1 and {number} differ in {len(unlike)} tensors "
                    f"({shown}{more}), and layers are drawn by name: give sub-models of one "
                    "architecture with the same keywords"
                ]
            )


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def assemble(networks: Sequence[nn.Module], units: Sequence[Unit], choice: Choice) -> nn.Module:
    """The sampled network of eq. (3): each unit is the chosen sub-model's own.

    Args:
        networks: M sub-models of one architecture.
        units: L units of theirs.
        choice: L indices in [0, M).

    Returns:
        A network of the same architecture that shares the chosen layers with the sub-models.
    """
    chosen = {name: m for unit, m in zip(units, choice, strict=True) for name in unit}
    return _assembled("", networks, chosen)


def _assembled(name: str, parts: Sequence[nn.Module], chosen: dict[str, int]) -> nn.Module:
    """`parts` are the modules of that name in each sub-model."""
    part = parts[chosen.get(name, 0)]
    if not part._modules:
        return part
    copy = part.__new__(type(part))
    copy.__dict__ = part.__dict__.copy()  # as torch replicates modules to other devices
    copy._modules = {}
    for child in part._modules:
        inner: list[Any] = [one._modules[child] for one in parts]
        path = f"{name}.{child}" if name else child
        copy._modules[child] = None if inner[0] is None else _assembled(path, inner, chosen)
    return copy


def check_assembly(
    networks: Sequence[nn.Module], units: Sequence[Unit], shape: Sequence[int]
) -> None:
    """Refuse a backbone whose assembled copy does not compute with the chosen layers.

    A module that keeps another one elsewhere than among its submodules would.

    Args:
        networks: two sub-models or more; left as they are.
        units: theirs.
        shape: ``(C, H, W)`` of an image.

    Raises:
        ConfigError: if features or scores differ from those of one sub-model with the chosen
            tensors put in.
    """
    choice = tuple(place % len(networks) for place in range(len(units)))
    tensors: dict[str, Tensor] = {}
    for unit, m in zip(units, choice, strict=True):
        for layer in unit:
            own = networks[m].get_submodule(layer)
            for name, value in (
                *own.named_parameters(recurse=False),
                *own.named_buffers(recurse=False),
            ):
                tensors[f"network.{layer}.{name}"] = value
    images = torch.rand(2, *shape, generator=generator("rls", "assembly"))
    whole = _Whole(networks[0])
    sampled = _Whole(assemble(networks, units, choice))
    with attacking(whole), attacking(sampled), torch.no_grad():
        expected = torch.func.functional_call(whole, tensors, (images,))
        found = sampled(images)
    if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True)):
        raise ConfigError(
            [
                f"backbone: a network assembled from layers of several {_called(networks[0])} does "
                "not compute with them, since it keeps layers elsewhere than among its "
                "submodules: choose another backbone"
            ]
        )


class _Whole(nn.Module):
    """A member's features and scores in one call; a head of zeros would hide wrong features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(x)
        return features, self.network.head(features)


def _called(network: nn.Module) -> str:
    return type(getattr(network, "backbone", network)).__name__


def alike_units(networks: Sequence[nn.Module], units: Sequence[Unit]) -> list[str]:
    """Names of the units with a weight matrix that all sub-models have in common."""
    found = []
    for unit in units:
        weights = [
            [p for layer in unit for p in network.get_submodule(layer).parameters(recurse=False)]
            for network in networks
        ]
        pairs = [(p, q) for other in weights[1:] for p, q in zip(weights[0], other, strict=True)]
        if any(p.ndim > 1 for p in weights[0]) and all(torch.equal(p, q) for p, q in pairs):
            found.append(unit[0])
    return found
