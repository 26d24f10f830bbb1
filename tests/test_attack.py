"""The mode in which a model is attacked, and what an attack refuses."""

import pytest
import torch
from torch import nn

from phalanx.attack import Attack, attacking, may_drop_rows
from phalanx.config import AttackConfig
from phalanx.errors import ThreatModelError
from phalanx.specs import L2, Linf


class Nothing(Attack[AttackConfig]):
    supports = (Linf,)

    def __call__(self, model, x, y, *, generator, observe=None):
        return x


def test_an_attack_needs_a_threat():
    with pytest.raises(ThreatModelError, match="attack Nothing has no threat, and the data set"):
        Nothing(AttackConfig())


def test_an_attack_refuses_a_norm_that_it_does_not_know():
    with pytest.raises(
        ThreatModelError, match=r"attack Nothing cannot take threat l2:0\.5; it takes: linf"
    ):
        Nothing(AttackConfig(threat=L2(0.5)))


def test_at_gives_the_same_attack_elsewhere():
    attack = Nothing(AttackConfig(threat=Linf(0.1)))
    moved = attack.at(Linf(0.2))
    assert (attack.threat, moved.threat) == (Linf(0.1), Linf(0.2))
    assert isinstance(moved, Nothing)


@pytest.fixture
def module():
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    made[2].eval()
    made[0].bias.requires_grad_(False)
    return made


def state(module):
    return (
        [part.training for part in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [b.clone() for b in module.buffers()],
    )


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(module, batchnorm, fails):
    before = state(module)
    try:
        with attacking(module, batchnorm):
            assert not any(p.requires_grad for p in module.parameters())
            assert [part.training for part in module] == [False, batchnorm == "train", False]
            module(torch.rand(4, 2))
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    after = state(module)
    assert before[:2] == after[:2]
    assert all(torch.equal(one, two) for one, two in zip(before[2], after[2], strict=True))


def test_rows_may_be_dropped_only_where_the_function_says_so(module):
    assert not may_drop_rows(module)
    module.rowwise = True
    assert may_drop_rows(module)
