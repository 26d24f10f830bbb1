"""The exponential moving average of a phase's weights.

After each step ``average = decay · average + (1 - decay) · weights``, the plain rule, without a
warm-up of the decay: the average begins with the phase's first weights, and of these ``decay^t``
is left after t steps. Running statistics and other buffers are not averaged; those of the weights
in training serve both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from phalanx.errors import ArtifactError


class Average:
    """The moving average of a module's parameters, frozen ones among them.

    Args:
        module: whose parameters; they stay as they are.
        decay: in [0, 1).

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 0.0)
    >>> average = Average(layer, decay=0.75)
    >>> _ = nn.init.constant_(layer.weight, 8.0)
    >>> average.update()
    >>> average.state()["weight"].item()
    2.0
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._parameters = dict(module.named_parameters())
        self._values = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._move = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the module's weights as they are now."""
        kinds = {value.dtype for value in self._values.values()}
        for kind in kinds:  # torch averages a list of one type at a time
            names = [name for name, value in self._values.items() if value.dtype == kind]
            self._move(
                [self._values[name] for name in names],
                [self._parameters[name].detach() for name in names],
                None,
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the average inside, and its own weights again after it."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            _copy(kept, self._parameters)

    def apply(self) -> None:
        """Give the module the average for good."""
        _copy(self._values, self._parameters)

    def state(self) -> dict[str, Tensor]:
        """The average under the parameters' names."""
        return dict(self._values)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a stored average back.

        Raises:
            ArtifactError: if it is not of this module.
        """
        if tensors.keys() != self._values.keys():
            wrong = sorted(tensors.keys() ^ self._values.keys())
            raise ArtifactError(
                f"the stored average of the weights does not fit: {len(wrong)} tensors differ, "
                f"such as {wrong[0]}; begin the phase anew with --restart-phase"
            )
        _copy(tensors, self._values)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        places[name].copy_(value)
