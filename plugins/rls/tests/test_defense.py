"""The model set as it is built, the phase, and what one step moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from phalanx.api import Batch, ConfigError, PhalanxWarning, PhaseContext, Task, generator
from phalanx_rls.config import RLSConfig
from phalanx_rls.defense import RLS, GroupPhase

TASK = Task(name="t", shape=(1, 8, 8), classes=10, train_size=90, mean=(0.3,), std=(0.4,))


class Context(PhaseContext):
    """The smallest thing that a phase can run in: no data, one optimizer."""

    def __init__(self, phase, *, batches=10):
        self.phase, self.batches, self.device = phase, batches, torch.device("cpu")
        self.epoch = self.index = 0
        (parameters,) = phase.groups().values()
        self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def generator(self, *purpose):
        return generator(0, self.phase.name, self.epoch, self.index, *purpose)

    def batch(self, stream):
        raise AssertionError(f"RLS trains on one pass over the data, asked for {stream!r}")

    def minimise(self, loss, *groups):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def made(task=TASK, **params):
    config = RLSConfig.model_validate({"backbone": "small_cnn", **params})
    defense = RLS(config, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = defense.build()
    return defense, model


def phase_of(**params):
    defense, model = made(**params)
    (phase,) = defense.phases(model)
    assert isinstance(phase, GroupPhase)
    return phase


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return Batch(torch.rand(16, 1, 8, 8, generator=g), torch.randint(10, (16,), generator=g))


# ---------------------------------------------------------------- build


def test_images_are_scaled_to_minus_one_and_one():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    for normalization, expected in (
        ("symmetric", [-1.0, 0.0, 1.0]),
        ("none", [0.0, 0.5, 1.0]),
        ("dataset", [-0.75, 0.5, 1.75]),
    ):
        _, model = made(normalization=normalization)
        found = model.networks[0].normalize(x).flatten()
        torch.testing.assert_close(found, torch.tensor(expected))


def test_submodels_begin_with_weights_of_their_own():
    _, model = made(members=3)
    weights = [network.backbone.conv1.weight for network in model.networks]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))


def test_more_networks_than_can_be_sampled_are_refused():
    with pytest.raises(ConfigError) as caught:
        made(group=9)
    assert caught.value.problems == (
        "group: 9 different sampled models are trained at once, but 2 sub-models of 3 layers make "
        "8: write a group of at most that, or more members",
    )


# ---------------------------------------------------------------- the phase


def test_phase_is_the_papers():
    phase = phase_of()
    assert (phase.name, phase.epochs, phase.group, phase.loss) == ("rls", 150, 3, "mse")
    optimizer = phase.optimizer
    assert (optimizer.name, optimizer.lr) == ("sgd", 0.01)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    rates = {epoch: phase.schedule((epoch * 391) / (150 * 391)) for epoch in (0, 49, 50, 99, 100)}
    assert rates == pytest.approx({0: 1.0, 49: 1.0, 50: 0.1, 99: 0.1, 100: 0.01})


def test_phases_are_cheap_and_pure():
    defense, model = made()
    before = torch.get_rng_state()
    assert [p.name for p in defense.phases(model)] == [p.name for p in defense.phases(model)]
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(TypeError, match=r"RLS trains what its build\(\) returns, found Linear"):
        defense.phases(nn.Linear(2, 2))


@pytest.mark.parametrize("loss", ["mse", "nll_mean", "mean_ce"])
def test_objective_is_that_of_the_drawn_networks(batch, loss):
    phase = phase_of(loss=loss)
    ctx = Context(phase)
    terms = phase.objective(batch, ctx)
    assert set(terms) == {loss, "log/individual_mse", "log/ambiguity"}
    drawn = phase.module.choose_different(3, ctx.generator("layers"))
    assert len(set(drawn)) == 3
    f = torch.stack([phase.module.sampled(r)(batch.x).softmax(1) for r in drawn])
    rows = torch.arange(len(batch))
    slow = {
        "mse": (f.mean(0) - F.one_hot(batch.y, 10)).square().sum() / len(batch),
        "nll_mean": -f.mean(0)[rows, batch.y].log().mean(),
        "mean_ce": -f[:, rows, batch.y].log().mean(),
    }
    torch.testing.assert_close(terms[loss], slow[loss])
    if loss == "mse":  # eq. (7)
        torch.testing.assert_close(
            terms["mse"].detach(), terms["log/individual_mse"] - terms["log/ambiguity"]
        )


def test_warm_up_is_by_the_mean_predictions_cross_entropy(batch):
    phase = phase_of(warmup_epochs=2)
    ctx = Context(phase)
    names = []
    for ctx.epoch in range(3):
        names.append(next(iter(phase.objective(batch, ctx))))
    assert names == ["nll_mean", "nll_mean", "mse"]


def test_a_twin_adds_its_rows(batch):
    phase = phase_of()
    ctx = Context(phase)
    twin = Batch(batch.x, batch.y, batch.x.flip(-1))
    both = phase.objective(twin, ctx)["mse"]
    parts = [phase.objective(Batch(x, batch.y), ctx)["mse"] for x in (twin.x, twin.adv)]
    torch.testing.assert_close(both, torch.stack(parts).mean())


def test_a_step_moves_the_drawn_layers_alone(batch):
    """Momentum and weight decay would move every layer if gradients were zero instead of None."""
    config = {"backbone": {"use": "resnet18_cifar", "params": {"width": 2}}, "members": 3}
    phase = phase_of(**config, group=2)
    model, ctx = phase.module, Context(phase)
    for ctx.index in range(3):  # so that every layer has momentum
        phase.step(batch, ctx)
    ctx.index = 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = model.choose_different(2, ctx.generator("layers"))
    phase.step(batch, ctx)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    used = {
        f"networks.{m}.{layer}."
        for choice in drawn
        for unit, m in zip(model.units, choice, strict=True)
        for layer in unit
    }
    expected = {n for n in before if f"{n.rpartition('.')[0]}." in used}
    assert moved == expected
    assert len(expected) < len(before)


def test_one_network_by_nll_is_ordinary_training(batch):
    """M = 1, K = 1, nll_mean: the weights of cross-entropy training, bit for bit."""
    phase = phase_of(members=1, group=1, loss="nll_mean")
    _, plain = made(members=1, group=1)
    network = plain.networks[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    ctx = Context(phase)
    for ctx.index in range(4):
        phase.step(batch, ctx)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(batch.x), batch.y).backward()
        optimizer.step()
    trained = phase.module.networks[0].state_dict()
    assert all(torch.equal(value, trained[n]) for n, value in network.state_dict().items())


def test_equal_submodels_are_warned_of():
    phase = phase_of()
    first, second = phase.module.networks
    phase.begin(Context(phase))  # no warning: filterwarnings is "error"
    second.load_state_dict(first.state_dict())
    with pytest.warns(PhalanxWarning, match="give init.from a list of different checkpoints"):
        phase.begin(Context(phase))
