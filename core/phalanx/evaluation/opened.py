"""A view as a cell attacks it: opened for the cell or by chunks, and prepared where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from phalanx import randomness
from phalanx.attacks.crafting import EXAMPLES
from phalanx.defense import View
from phalanx.evaluation.metering import Metered, Passes
from phalanx.nn.prepare import prepared

_KEPT = 32
"""Functions that are kept for later chunks: more members than a population has; a view that makes
a new module at each opening must not keep them all."""


@dataclass
class Function:
    """What is attacked.

    Attributes:
        own: the view's module.
        copy: the same on a prepared copy, once images have been seen; None if there is none.
        asked: whether a copy has been looked for.
    """

    own: Metered
    copy: Metered | None = None
    asked: bool = False

    def prepare(self, x: Tensor) -> Metered | None:
        """The copy, which must agree on the first of these images; inside `attacking`."""
        if not self.asked and self.own.rowwise:
            found = prepared(self.own.module, x[:EXAMPLES])
            if found is not None:
                self.copy = Metered(found, rowwise=True, passes=self.own.passes)
        self.asked = True
        return self.copy


class Opened:
    """The functions of a view: one for the whole cell, or one for each chunk or block of images.

    A fixed draw is another one in each chunk; a function with a stream of its own begins it anew
    in each block, so that a block does not depend on those before.

    Args:
        view: what is opened.
        stream: key of the cell's draws.
        passes: where all functions count.
    """

    def __init__(self, view: View, stream: Sequence[str | int], passes: Passes) -> None:
        self._view = view
        self._stream = stream
        self._passes = passes
        self._functions: dict[int, Function] = {}
        self._last: tuple[tuple[int, ...], Function] | None = None
        self._block: int | None = None

    def at(self, *, block: int, chunk: int) -> Function:
        """The function that images of this chunk of this block are attacked through."""
        if block != self._block:  # a copy is tried on its own block's images, in any order
            self._block, self._last, self._functions = block, None, {}
        if self._view.fixed_draw:
            return self._open(chunk)
        parts = () if self._view.rowwise else (block,)
        if self._last is None or self._last[0] != parts:
            self._last = (parts, self._open(*parts))
        return self._last[1]

    def _open(self, *parts: int) -> Function:
        """The view opened; a function that comes again (one of a few members) is prepared once."""
        module: nn.Module = self._view.open(randomness.key(*self._stream, "view", *parts))
        known = self._functions.get(id(module))
        if known is not None:
            return known
        function = Function(Metered(module, rowwise=self._view.rowwise, passes=self._passes))
        if self._view.rowwise:  # holds no state, so one may serve several chunks
            if len(self._functions) == _KEPT:
                self._functions.pop(next(iter(self._functions)))
            self._functions[id(module)] = function  # keeps the module, so its id stays its own
        return function
