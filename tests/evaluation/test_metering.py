from __future__ import annotations

import pytest
import torch
from evaluation_toys import Threshold, images

from phalanx import randomness
from phalanx.attack import attacking, may_drop_rows
from phalanx.evaluation.metering import Metered
from phalanx.evaluation.protocol import resolve_attack
from phalanx.registry import default_registry
from phalanx.specs import Kind, Linf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_counted_both_ways(dtype: torch.dtype) -> None:
    module = Metered(Threshold().to(dtype), rowwise=True)
    x = torch.rand(5, 1, 4, 4, dtype=dtype)
    with torch.no_grad():
        assert module(x).dtype == dtype
    assert (module.passes.forwards, module.passes.backwards) == (5, 0)
    x.requires_grad_()
    scores = module(x)
    torch.autograd.grad(scores[:, 0].sum(), x, retain_graph=True)
    torch.autograd.grad(scores[:, 1].sum(), x)
    assert (module.passes.forwards, module.passes.backwards) == (10, 10)


@pytest.mark.parametrize("rowwise", [True, False])
def test_attacks_see_whether_they_may_drop_rows(rowwise: bool) -> None:
    assert may_drop_rows(Metered(Threshold(), rowwise=rowwise)) is rowwise


def test_three_steps_of_pgd_are_three_passes_each_way() -> None:
    use = resolve_attack({"use": "pgd", "params": {"steps": 3}}, threat=Linf(0.1))
    attack = default_registry().create(Kind.ATTACK, "pgd", use.params)
    module = Metered(Threshold(), rowwise=True)
    batch = images(7).test.fetch(slice(0, 7))
    with attacking(module):
        attack(module, batch.x, batch.y, generator=randomness.generator(0))
    assert (module.passes.forwards, module.passes.backwards) == (21, 21)
