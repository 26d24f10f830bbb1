"""Channels followed through a trace: who writes them, who reads them, and where they are zero.

A trace (`torch.fx`) is gone through once, in order. A convolution or linear layer reads all
channels of its input and writes new ones; other known operations keep channels apart, and may join
two sets of them; an unknown one keeps all that it sees as they are. A channel may go if each reader
finds zeros in it, or has only zeros as weights for it.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Cut = Callable[[Tensor], None]
"""Keeps the channels of these indices, in one dimension of one layer's tensors."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign, nn.Dropout, nn.Dropout2d),
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu),
    *(F.mish, F.hardswish, F.tanh, torch.tanh, F.dropout),
    *("relu", "relu_", "tanh", "tanh_", "contiguous", "clone", "detach"),
)
"""What makes zeros of zeros: types of modules, functions, names of methods."""
_POOLS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
)
"""What makes zeros of zeros in each map."""
_GATES = (nn.Sigmoid, nn.Hardsigmoid, torch.sigmoid, F.sigmoid, F.hardsigmoid, "sigmoid")
"""What makes something else of zeros."""
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_FLATTENINGS = (nn.Flatten, torch.flatten, "flatten")
_MEANS = (torch.mean, "mean")
_PLACES = ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
"""Dimensions of height and width."""
_HARMLESS = ("ndim", "dtype", "device", "is_cuda")
"""Attributes that do not tell how many channels there are."""


def tensors_of(layer: nn.Module) -> list[Tensor]:
    """A layer's own parameters and buffers."""
    own = [*layer._parameters.values(), *layer._buffers.values()]
    return [tensor for tensor in own if tensor is not None]


# ---------------------------------------------------------------- channels


class _Channels:
    """Channels that are kept or taken out together, wherever they stand.

    Attributes:
        silent: ``(C,)``, those that nobody who mixes channels would miss.
        fixed: whether all must stay.
        read: whether anybody mixes them.
        cuts: how each tensor that has them is cut.
        joined: what they were joined to.
    """

    def __init__(self, count: int) -> None:
        self.silent = torch.ones(count, dtype=torch.bool)
        self.fixed = False
        self.read = False
        self.cuts: list[Cut] = []
        self.joined: _Channels | None = None

    def root(self) -> _Channels:
        """What they were joined to at last."""
        return self if self.joined is None else self.joined.root()

    def join(self, other: _Channels) -> None:
        """Keep or take out these and the other ones together."""
        one, two = self.root(), other.root()
        if one is not two:
            one.silent = one.silent & two.silent
            one.fixed, one.read = one.fixed or two.fixed, one.read or two.read
            one.cuts += two.cuts
            two.joined = one

    def reads(self, without: Tensor, cut: Cut) -> None:
        """Somebody mixes these channels, and those `without` effect change nothing for him."""
        root = self.root()
        root.read, root.silent = True, root.silent & without
        root.cuts.append(cut)


Layout = Literal["maps", "rows", "last"]
"""``(N, C, H, W)``; ``(N, C · places)``, as flattened; or channels last in any dimensions."""


@dataclass
class _Value:
    """What a node of the trace gives.

    Attributes:
        channels: its own.
        zero: ``(C,)``, where it is 0 for every image; shared by what may be the same tensor.
        layout: where its channels are.
    """

    channels: _Channels
    zero: Tensor
    layout: Layout = "maps"


# ---------------------------------------------------------------- the trace


class Flow:
    """Follows channels through a trace, and takes the silent ones out of the network.

    Args:
        network: changed in place.
        graph: its trace.
        special: layers that keep all their channels.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph, special: set[nn.Module]) -> None:
        self.network = network
        self.values: dict[fx.Node, _Value | None] = {}
        self.made: list[_Channels] = []
        calls = Counter(self._layer(node) for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            if node.target is F.batch_norm:
                calls[self._layer(node)] += 1
            elif node.op == "get_attr" and any(u.target is not F.batch_norm for u in node.users):
                calls[self._layer(node)] += 2
        several = {layer for layer, count in calls.items() if count > 1 and layer is not None}
        self.special = special | {layer for layer in several if tensors_of(layer)}
        for node in graph.nodes:
            self.values[node] = self._value(node)

    def cut(self) -> None:
        """Take out what nobody would miss."""
        for channels in self.made:
            if channels.joined is None and channels.read and not channels.fixed:
                keep = ~channels.silent
                keep[0] |= not bool(keep.any())  # torch's layers want one channel
                if not bool(keep.all()):
                    for cut in channels.cuts:
                        cut(keep.nonzero().flatten())

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or whose tensors it uses."""
        if node.op == "call_module":
            return self.network.get_submodule(str(node.target))
        if node.op == "get_attr":
            return self.network.get_submodule(str(node.target).rpartition(".")[0])
        own = (one for one in node.all_input_nodes if one.op == "get_attr")
        return next((self._layer(one) for one in own), None)

    def _value(self, node: fx.Node) -> _Value | None:
        """What a node gives; None where its channels are not followed, and those it sees stay."""
        called = node.op == "call_module"
        layer = self._layer(node) if called or node.target is F.batch_norm else None
        op: Any = type(layer) if called else node.target
        known = [v for v in (self.values[one] for one in node.all_input_nodes) if v is not None]
        found: _Value | None = None
        if node.op == "get_attr" or (op is getattr and node.args[1] in _HARMLESS):
            return None
        if op in (nn.Conv2d, nn.Linear) and layer is not None and layer not in self.special:
            return self._mixed(layer, known[0] if known else None)
        if known and layer not in self.special:
            found = self._followed(node, op, layer, known[0])
        if found is None:
            for value in known:
                value.channels.root().fixed = True
                value.zero &= False  # it may work in place, or give a view for others to work on
        return found

    def _followed(
        self, node: fx.Node, op: Any, layer: nn.Module | None, value: _Value
    ) -> _Value | None:
        """The same for what keeps channels apart."""
        if (op in _NORMS or op is F.batch_norm) and layer is not None:
            return _normalised(layer, value)
        alone, maps = len(node.all_input_nodes) == 1, value.layout == "maps"
        if alone and (op in _ELEMENTWISE or (op in _POOLS and maps)):
            return value
        if op in _GATES:
            value.zero &= False  # in place, since some gates are
            return value
        if (op in _SUMS or op in _PRODUCTS) and len(node.args) == 2 and not node.kwargs:
            pair = [self.values[a] if isinstance(a, fx.Node) else a for a in node.args]
            return _combined(pair, product=op in _PRODUCTS)
        if op in _FLATTENINGS and maps and _flattens(node, layer):
            return _Value(value.channels, value.zero, "rows")
        if op in _MEANS and maps and _argument(node, 1, "dim") in _PLACES:
            kept = _argument(node, 2, "keepdim")
            return _Value(value.channels, value.zero.clone(), "maps" if kept else "rows")
        return None

    def _mixed(self, layer: Any, value: _Value | None) -> _Value | None:
        """A convolution or linear layer, which reads all its channels and writes new ones."""
        convolves = isinstance(layer, nn.Conv2d)
        if value is not None and (value.layout == "maps") != convolves:
            value.channels.root().fixed, value = True, None
        if convolves and layer.groups > 1:
            return self._grouped(layer, value)
        weight = layer.weight.detach()
        if value is not None:
            places = weight.shape[1] // len(value.zero)  # of a channel in a flattened map
            weight = weight.reshape(len(weight), len(value.zero), -1)
            unread = (weight == 0).all(2).all(0).cpu()
            value.channels.reads(value.zero | unread, partial(_cut_inputs, layer, places))
            weight = weight[:, ~value.zero]
        channels = _Channels(len(weight))
        channels.cuts.append(partial(_cut_outputs, layer))
        self.made.append(channels)
        layout: Layout = "last" if value is None else value.layout
        return _Value(channels, _silent(layer, weight), "maps" if convolves else layout)

    def _grouped(self, layer: Any, value: _Value | None) -> _Value | None:
        """A depthwise convolution keeps channels apart; any other grouped one keeps them all."""
        if value is None or not layer.groups == layer.in_channels == layer.out_channels:
            if value is not None:
                value.channels.root().fixed = True
            return None
        weight = layer.weight.detach().clone()
        weight[value.zero] = 0.0
        value.channels.root().cuts.append(partial(_cut_outputs, layer))
        return _Value(value.channels, _silent(layer, weight))


def _silent(layer: Any, weight: Tensor) -> Tensor:
    """Filters ``(O,)`` of zeros in `weight` ``(O, …)``, without a bias."""
    zero = (weight == 0).flatten(1).all(1)
    return (zero if layer.bias is None else zero & (layer.bias == 0)).cpu()


def _normalised(layer: Any, value: _Value) -> _Value | None:
    """Batch normalisation in evaluation mode: a factor and a shift of each channel."""
    own = [tensor for tensor in (layer.weight, layer.running_mean) if tensor is not None]
    if not own or len(own[0]) != len(value.zero) or value.layout == "last":
        return None
    value.channels.root().cuts.append(partial(_cut_norm, layer))
    if layer.weight is None:
        return _Value(value.channels, torch.zeros_like(value.zero), value.layout)
    return _Value(value.channels, ((layer.weight == 0) & (layer.bias == 0)).cpu(), value.layout)


def _combined(pair: list[Any], *, product: bool) -> _Value | None:
    """A sum or product of two tensors, or of one and a number."""
    a, b = pair
    numbers = [one for one in pair if isinstance(one, int | float)]
    if numbers and not isinstance(a, _Value):
        a, b = b, a
    if numbers and product:
        return a if math.isfinite(numbers[0]) else None
    if numbers:
        a.zero &= False  # in place, as all that sums may be
        return a
    if not (isinstance(a, _Value) and isinstance(b, _Value)):
        return None
    if a.layout != b.layout or len(a.zero) != len(b.zero):
        return None
    a.channels.join(b.channels)
    if product:
        return _Value(a.channels, a.zero | b.zero, a.layout)
    a.zero &= b.zero
    return a


def _flattens(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether it makes ``(N, C · places)`` of ``(N, C, H, W)``."""
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    end = _argument(node, 2, "end_dim")
    return _argument(node, 1, "start_dim") == 1 and end in (None, -1)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


# ---------------------------------------------------------------- the layers


def _cut_outputs(layer: Any, index: Tensor) -> None:
    _cut(layer, 0, index, "weight", "bias")
    _resize(layer)


def _cut_inputs(layer: Any, places: int, index: Tensor) -> None:
    spread = index[:, None] * places + torch.arange(places)
    _cut(layer, 1, spread.flatten(), "weight")
    _resize(layer)


def _cut_norm(layer: Any, index: Tensor) -> None:
    _cut(layer, 0, index, "weight", "bias", "running_mean", "running_var")
    layer.num_features = len(index)


def _cut(layer: nn.Module, dim: int, index: Tensor, *names: str) -> None:
    """Keep these indices of a layer's tensors in one dimension."""
    for name in names:
        tensor = getattr(layer, name)
        if tensor is not None:
            kept = tensor.detach().index_select(dim, index.to(tensor.device))
            if isinstance(tensor, nn.Parameter):
                kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
            setattr(layer, name, kept)


def _resize(layer: Any) -> None:
    """What a layer says of its size, from its weight."""
    count, channels = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = count, channels
    else:
        layer.groups = count if layer.groups > 1 else 1  # a depthwise one
        layer.out_channels, layer.in_channels = count, channels * layer.groups
