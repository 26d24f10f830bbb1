"""Pruned weights stay at zero through any optimizer; retrainings stand where they belong."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from phalanx.config import Backbone, OptimizerConfig, PrunerConfig, TrainingConfig
from phalanx.data import load_data
from phalanx.errors import ConfigError
from phalanx.nn import MeanEnsemble, build_member
from phalanx.phase import JointPhase
from phalanx.pruner import Pruner, convolutions
from phalanx.randomness import seeded
from phalanx.regularizer import Regularizer
from phalanx.training.context import TrainerContext
from phalanx.training.masked import Masked, with_retraining
from phalanx.training.phases import CrossEntropyPhase
from phalanx.training.plan import planned

DATA = load_data("digits", limit=32)


@pytest.fixture
def model():
    with seeded(0):
        return MeanEnsemble(
            [
                build_member(Backbone(use="resnet18_cifar", params={"width": 2}), DATA.task)
                for _ in range(2)
            ]
        )


def prune(network, share=0.5):
    """Zero that share of each convolution's weights, its first filter among them, silenced."""
    masks = {}
    for index, (name, layer) in enumerate(convolutions(network).items()):
        chance = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(index))
        masks[name] = chance >= share
        masks[name][0] = False
        layer.weight.data *= masks[name]
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.weight.data[0] = norm.bias.data[0] = 0.0
    return masks


def fit(module, *regularizers, **changes):
    return CrossEntropyPhase(
        name="fit", module=module, epochs=1, batch_size=8, regularizers=regularizers, **changes
    )


def steps(phase, count=3):
    """A beginning and some updates of a phase, as the trainer makes them."""
    ctx = TrainerContext(phase, seed=0, data=DATA.train, device=torch.device("cpu"))
    phase.module.train()
    for regularizer in phase.regularizers:
        regularizer.begin(ctx)
    ctx.build_optimizers()
    for _ in range(count):
        phase.step(ctx.batch(""), ctx)
        ctx.index += 1
    return ctx


OPTIMIZERS = [
    OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one.name)
def test_zeros_stay_and_the_others_move(model, optimizer):
    masks = prune(model)
    before = {name: layer.weight.detach().clone() for name, layer in convolutions(model).items()}
    steps(fit(model, Masked(), optimizer=optimizer))
    for name, layer in convolutions(model).items():
        assert torch.equal(layer.weight != 0, masks[name])
        assert bool((layer.weight != before[name])[masks[name]].any())
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    shifts = torch.stack([torch.stack([norm.weight[:2], norm.bias[:2]]) for norm in norms])
    assert bool((shifts[..., 0] == 0).all())
    assert bool((shifts[:, 1, 1] != 0).any())  # of filters that are not pruned


def test_without_it_momentum_brings_them_back(model):
    masks = prune(model)
    steps(fit(model))
    assert not any(
        torch.equal(layer.weight != 0, masks[name]) for name, layer in convolutions(model).items()
    )


def test_a_shift_that_the_pruner_left_is_trained_on(model):
    prune(model)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.bias.data[0] = 0.5
    steps(fit(model, Masked()))
    shifts = torch.stack([norm.bias.detach()[0] for norm in norms])
    assert bool((shifts != 0).all())
    assert bool((shifts != 0.5).any())


def test_it_holds_the_layers_that_it_is_told(model):
    masks = prune(model)

    def stem(module):
        return {n: part for n, part in convolutions(module).items() if n.endswith("backbone.conv1")}

    phase = fit(model, Masked(stem))
    steps(phase)
    kept = {
        name
        for name, layer in convolutions(model).items()
        if torch.equal(layer.weight != 0, masks[name])
    }
    assert kept == set(stem(model))


def test_it_leaves_alone_what_the_phase_does_not_train(model):
    prune(model)
    frozen = model.members[0].backbone.layer1
    frozen.requires_grad_(False)
    phase = fit(model, Masked())
    steps(phase, 0)
    frozen[0].conv1.weight.data += 1.0  # as if another phase had: a mask would undo it
    before = {name: value.clone() for name, value in frozen.named_parameters()}
    phase.regularizers[0].after_step(None)
    assert all(torch.equal(value, before[name]) for name, value in frozen.named_parameters())


def test_its_masks_are_what_a_checkpoint_holds(model):
    masks = prune(model)
    phase = fit(model, Masked())
    steps(phase)
    stored = phase.regularizers[0].state_dict()
    assert all(value.dtype == torch.bool for value in stored.values())
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]

    def fill():
        for layer in (*convolutions(model).values(), *norms):
            for parameter in layer.parameters():
                parameter.data.fill_(1.0)

    fill()
    for layer in convolutions(model).values():
        layer.weight.data[1] = 0.0
    again = Masked()
    steps(replace(phase, regularizers=(again,)), 0)
    begun = {name: value.clone() for name, value in again.state_dict().items()}
    assert begun.keys() == stored.keys()
    assert not any(value.equal(begun[name]) for name, value in stored.items())
    again.load_state_dict(stored)
    fill()
    again.after_step(None)  # what was stored decides, not what the weights were at the beginning
    for name, layer in convolutions(model).items():
        assert torch.equal(layer.weight != 0, masks[name])
    for norm in norms:
        assert torch.equal(norm.weight != 0, torch.arange(len(norm.weight)) > 0)
        assert norm.bias[0] == 0


# ---------------------------------------------------------------- with_retraining


class Halving(Pruner[PrunerConfig]):
    def project(self, name, weight):
        return weight.where(torch.arange(len(weight)).view(-1, 1, 1, 1) % 2 == 0, 0.0)

    def compact(self, model):
        return model


class Other(Regularizer):
    pass


@dataclass(kw_only=True)
class Plain(JointPhase):
    def objective(self, batch, ctx):
        return {"loss": F.cross_entropy(self.module(batch.x), batch.y)}


def three(model):
    one, two = model.members
    return [
        Plain(name="fit/1", module=one, epochs=3, regularizers=(Other(),)),
        Plain(name="fit/2", module=two, epochs=3),
        Plain(name="joint", module=model, epochs=5, depends_on=("fit/1", "fit/2")),
    ]


def kinds(phase):
    return [type(one).__name__ for one in phase.regularizers]


def test_each_chosen_phase_is_pruned_and_followed_by_its_retraining(model):
    found = with_retraining(three(model), Halving(PrunerConfig()))
    assert [phase.name for phase in found] == [
        "fit/1",
        "fit/1/retrain",
        "fit/2",
        "fit/2/retrain",
        "joint",
        "joint/retrain",
    ]
    assert kinds(found[0]) == ["Other", "Halving"]  # the pruner comes last
    assert kinds(found[1]) == ["Other", "Masked"]
    assert [phase.depends_on for phase in found] == [
        (),
        ("fit/1",),
        (),
        ("fit/2",),
        ("fit/1/retrain", "fit/2/retrain"),
        ("joint",),
    ]
    assert [phase.epochs for phase in found] == [3, 3, 3, 3, 5, 5]
    assert found[1].module is found[0].module
    assert [p.name for p in planned(found, TrainingConfig(), model)] == [p.name for p in found]


def test_a_later_phase_keeps_the_zeros_of_those_before(model):
    given = three(model)
    found = {p.name: p for p in with_retraining(given, Halving(PrunerConfig()), chosen="fit/1")}
    assert list(found) == ["fit/1", "fit/1/retrain", "fit/2", "joint"]
    assert kinds(found["fit/2"]) == []
    assert kinds(found["joint"]) == ["Masked"]
    assert found["joint"].depends_on == ("fit/1/retrain", "fit/2")
    assert kinds(given[0]) == ["Other"]  # what was given is as it was


def test_a_phase_with_nothing_to_prune_stays_as_it_is(model):
    head = Plain(
        name="head",
        module=model.members[0].backbone.fc,
        epochs=1,
        depends_on=("fit/1", "fit/2", "joint"),
    )
    *_, last = with_retraining([*three(model), head], Halving(PrunerConfig()))
    assert (last.name, kinds(last)) == ("head", [])
    assert last.depends_on == ("fit/1/retrain", "fit/2/retrain", "joint/retrain")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("ulm/*", "phases: 'ulm/*' fits no phase; the phases are fit, head"),
        (
            "head",
            "phases: head has no layer that the pruner would prune; the phases are fit, head",
        ),
    ],
)
def test_patterns_that_fit_nothing_are_refused(model, chosen, message):
    given = [
        Plain(name="fit", module=model, epochs=1),
        Plain(name="head", module=model.members[0].backbone.fc, epochs=1, depends_on=("fit",)),
    ]
    with pytest.raises(ConfigError) as caught:
        with_retraining(given, Halving(PrunerConfig()), chosen=chosen)
    assert caught.value.problems == (message,)
