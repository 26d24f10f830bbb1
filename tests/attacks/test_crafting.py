from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from phalanx.attack import Attack, Targeted, attacking
from phalanx.attacks.config import BIMConfig, PGDConfig
from phalanx.attacks.crafting import Rowwise, craft, doubtful, lighter
from phalanx.attacks.gradient import BIM, PGD
from phalanx.nn import MeanEnsemble, Member, Population
from phalanx.nn.prepare import Prepared
from phalanx.specs import Linf


class Scores(nn.Module):
    """Two classes: scores (0, mean pixel − cut)."""

    def __init__(self, cut: float) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) - self.cut
        return torch.stack([torch.zeros_like(value), value], 1)


def grey(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_doubtful_are_rows_that_the_copy_alone_takes_for_fooled():
    y = torch.zeros(4, dtype=torch.long)
    x = grey(0.1, 0.5 + 1e-7, 0.5 + 4e-7, 0.9)  # the second fools the copy alone, by rounding
    assert doubtful(Scores(0.5 + 2e-7), Scores(0.5), x, y).tolist() == [1]
    assert doubtful(Scores(0.5), Scores(0.5 + 2e-7), x, y).tolist() == []
    assert doubtful(Scores(0.5 + 2e-7), Scores(0.5), x, Targeted(1 - y)).tolist() == [1]
    assert doubtful(Scores(0.0), Scores(0.0), x, y).tolist() == []  # all fooled


def test_doubtful_are_rows_that_withstand_with_other_scores():
    y = torch.zeros(3, dtype=torch.long)
    x = grey(0.1, 0.2, 0.9)
    assert doubtful(Scores(0.5), Scores(0.6), x, y).tolist() == [0, 1]
    broken = Scores(float("nan"))
    assert doubtful(Scores(0.5), broken, x, y).tolist() == [0, 1]


IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def network(*, width: int = 4) -> nn.Module:
    """Untrained, but not of one mind on all images: their mean score is 0 for each class."""
    torch.manual_seed(width)
    made = timm.create_model("resnet20_cifar", num_classes=10, width=width)
    made.linear.bias -= made.eval()(IMAGES).mean(0)
    return made


@torch.no_grad()
def labelled(model: nn.Module) -> Tensor:
    return copy.deepcopy(model).eval()(IMAGES).argmax(1)


class Watch(Attack[BIMConfig]):
    """Moves rows by 0.01 and notes what it was given."""

    def __call__(self, model, x, y, *, generator, observe=None):
        self.seen = [*getattr(self, "seen", []), (type(model.module), model.rowwise, len(x))]
        return x + 0.01


def watch() -> Watch:
    return Watch(BIMConfig(threat=Linf(0.01)))


def test_steps_are_taken_on_a_copy_and_the_network_is_left_as_it_was(rng):
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    attack = watch()
    found = craft(attack, model, IMAGES, labelled(model), generator=rng)
    assert attack.seen == [(Prepared, True, len(IMAGES))]
    assert torch.equal(found, IMAGES + 0.01)
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()


def test_what_the_copy_decides_otherwise_is_attacked_again_on_the_network(rng, monkeypatch):
    model = network().eval()
    y = labelled(model)
    y[:4] = (y[:4] + 1) % 10  # fooled as they are

    class Wrong(nn.Module):
        """Takes for fooled what is not."""

        def forward(self, x: Tensor) -> Tensor:
            return -model(x)

    attack = watch()
    monkeypatch.setattr("phalanx.attacks.crafting.prepared", lambda module, example: Wrong())
    with torch.no_grad():
        right = model(IMAGES + 0.01).argmax(1) == y
    found = craft(attack, model, IMAGES, y, generator=rng)
    assert 0 < int(right.sum()) < len(y)
    kinds = [(kind, count) for kind, _, count in attack.seen]
    assert kinds == [(Wrong, len(IMAGES)), (type(model), int(right.sum()))]
    assert torch.equal(found, IMAGES + 0.01)


def test_crafted_examples_fool_the_network_as_often_as_those_on_the_network_itself(rng):
    model = network(width=8).eval()
    y = labelled(model)
    attack = PGD(PGDConfig(threat=Linf(0.004), steps=10, start="clean"))
    found = craft(attack, model, IMAGES, y, generator=rng)
    slow = attack(Rowwise(model), IMAGES, y, generator=rng)
    with torch.no_grad():
        fooled, also = model(found).argmax(1) != y, model(slow).argmax(1) != y
    assert 0 < int(fooled.sum()) < len(y)
    assert torch.equal(fooled, also)
    assert ((found - IMAGES).abs() <= 0.004 + 1e-6).all()


def test_targets_are_reached(rng):
    model = network(width=8).eval()
    targets = (labelled(model) + 1) % 10
    attack = BIM(BIMConfig(threat=Linf(0.2), steps=60, step=0.01))
    found = craft(attack, model, IMAGES, Targeted(targets), generator=rng)
    with torch.no_grad():
        assert (model(found).argmax(1) == targets).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["said", "stochastic"])
def test_rows_that_are_not_independent_are_attacked_on_the_model_itself(kind, rng):
    members = [network(), network(width=8)]
    model = Population(members) if kind == "stochastic" else MeanEnsemble(members)
    given = []

    class Seen(Watch):
        def __call__(self, model, x, y, *, generator, observe=None):
            given.append(model)
            return x

    attack = Seen(BIMConfig(threat=Linf(0.01)))
    y = torch.zeros(len(IMAGES), dtype=torch.long)
    craft(attack, model, IMAGES, y, generator=rng, rowwise=kind == "stochastic")
    assert given == [model]


def test_training_takes_its_steps_on_a_copy_that_answers_as_the_network_does():
    own = network()
    x = IMAGES.repeat(8, 1, 1, 1)
    with attacking(own):
        copied = lighter(own, x)
        assert isinstance(copied, Prepared)
        torch.testing.assert_close(copied(x), own(x), rtol=1e-4, atol=1e-5)


def test_training_copies_no_small_batches_no_stochastic_models_and_no_functions():
    x = IMAGES.repeat(8, 1, 1, 1)
    own, population = network(), Population([Member(network(), nn.Identity()) for _ in range(2)])
    with attacking(own), attacking(population):
        assert lighter(own, IMAGES) is own
        assert lighter(population, x) is population
        assert lighter(torch.sin, x) is torch.sin
