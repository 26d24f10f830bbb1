"""The three pruners: single weights, filters, or blocks of them.

Ye et al., "Adversarial Robustness vs Model Compression, or Both?", ICCV 2019, arXiv 1903.12561, and
section 3.3.1 of Cheng et al., "More or Less (MoL)", WACV Workshops 2022. What they share, and every
deviation, stands in `phalanx_admm.admm`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from phalanx.api import PhaseContext, filter_parameters
from phalanx_admm import projections
from phalanx_admm.admm import ADMM, trained, weight_of
from phalanx_admm.compaction import compact_filters
from phalanx_admm.config import BlockConfig, FilterConfig, IrregularConfig


class Irregular(ADMM[IrregularConfig]):
    """Leaves the weights of largest magnitude."""

    def project(self, name: str, weight: Tensor) -> Tensor:
        """The nearest weight with as many entries as the layer's rate leaves."""
        return projections.irregular(weight, rate=self.rate(name))

    def compact(self, model: nn.Module) -> nn.Module:
        """An equal copy: single zeros make no tensor smaller; on disk they are left out."""
        return copy.deepcopy(model)


class Block(ADMM[BlockConfig]):
    """Leaves the blocks of filters and channels of largest norm (MoL's eq. 9)."""

    def project(self, name: str, weight: Tensor) -> Tensor:
        """The nearest weight with as many blocks as the layer's rate leaves."""
        config = self.config
        return projections.blocks(
            weight, rate=self.rate(name), block=config.block, scheme=config.scheme
        )

    def compact(self, model: nn.Module) -> nn.Module:
        """An equal copy: blocks of zeros make no tensor smaller; on disk they are left out."""
        return copy.deepcopy(model)


class Filter(ADMM[FilterConfig]):
    """Leaves the filters of largest norm, and makes the network smaller by the others."""

    def __init__(self, config: FilterConfig) -> None:
        super().__init__(config)
        self._besides: dict[nn.Module, list[nn.Parameter]] = {}

    def begin(self, ctx: PhaseContext) -> None:
        """As every pruner; and find what a filter has besides its weight."""
        super().begin(ctx)
        self._besides = filter_parameters(ctx.phase.module, ctx.batch("pruner").x[:1])

    def project(self, name: str, weight: Tensor) -> Tensor:
        """The nearest weight with as many filters as the layer's rate leaves."""
        return projections.filters(weight, rate=self.rate(name))

    @torch.no_grad()
    def end(self, ctx: PhaseContext) -> None:
        """As every pruner; and silence pruned filters, which else go on saying their shift."""
        super().end(ctx)
        own = trained(ctx)
        for layer in self.pruned_layers.values():
            silent = (weight_of(layer) == 0).flatten(1).all(1)
            for tensor in self._besides.get(layer, ()):
                if id(tensor) in own:
                    tensor.masked_fill_(silent, 0.0)

    def compact(self, model: nn.Module) -> nn.Module:
        """A copy without the filters that are silent, with equal outputs to 1e-5."""
        return compact_filters(model)
