"""Reads the output of a layer in the middle of a network, by the layer's name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from phalanx.errors import InputError
from phalanx.nn.member import Member


class Box:
    """What `capture` has seen: the layer's output in the latest forward pass."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The layer's latest output, in its own shape and still in the graph.

        It is a copy: an activation in place behind the layer does not change it. So it leads back
        to the images and the layers before, and later outputs do not come from it: there is no
        gradient of the scores with respect to it.

        Raises:
            InputError: if the layer has not run yet.
        """
        if self._value is None:
            raise InputError(
                f"layer {self._name!r} has not run: send images through the module inside "
                "'with capture(...)', and name a layer that its forward pass uses"
            )
        return self._value

    def _keep(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._value = output.clone() if isinstance(output, Tensor) else output


@contextmanager
def capture(module: nn.Module, name: str) -> Iterator[Box]:
    """Keep what the layer `name` gives out, by a hook that is removed at the end.

    Args:
        module: a network; the names are those of its `named_modules`. Those of a `Member` may be
            given without their ``backbone.``.
        name: the layer, such as ``layer2.0.bn1``.

    Yields:
        A box whose `value` is the output in the latest forward pass; it may be read afterwards.

    Raises:
        InputError: if there is no such layer; names near ones.
    """
    box = Box(name)
    handle = _find(module, name).register_forward_hook(box._keep)
    try:
        yield box
    finally:
        handle.remove()


def _find(module: nn.Module, name: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if isinstance(module, Member):
        layers = {**dict(module.backbone.named_modules()), **layers}
    if name and name in layers:
        return layers[name]
    known = [layer for layer in layers if layer]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known[:8])}, …"
    raise InputError(f"{type(module).__name__} has no layer {name!r}; {hint}")
