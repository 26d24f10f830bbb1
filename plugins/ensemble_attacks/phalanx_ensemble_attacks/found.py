"""What an attack of several runs has found so far, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.api import per_row


class Found:
    """Each row's best example.

    Attributes:
        x: examples ``(N, C, H, W)``; the clean images where nothing was found.
        lead: by how much each reaches the goal, ``(N,)``; infinity for a decided row.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach().clone()
        self.lead = x.new_full((len(x),), -torch.inf)

    @property
    def all(self) -> Tensor:
        """Indices of all rows, ``(N,)``."""
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def undecided(self) -> Tensor:
        """Indices of the rows to go on with, ``(n,)``."""
        return (self.lead < torch.inf).nonzero().squeeze(1)

    def take(self, rows: Tensor, x: Tensor, lead: Tensor) -> None:
        """Keep, in these rows, what leads by more than what is there; NaN does not.

        Args:
            rows: indices ``(n,)``.
            x: examples ``(n, C, H, W)``.
            lead: of each, ``(n,)``; infinity decides its row.
        """
        more = lead > self.lead[rows]
        self.x[rows] = torch.where(per_row(more, x), x, self.x[rows])
        self.lead[rows] = torch.where(more, lead, self.lead[rows])
