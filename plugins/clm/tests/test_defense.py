"""The population, its phases, and what one step of the clm phase moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from phalanx.api import Batch, PhaseContext, Task
from phalanx.randomness import generator, seeded
from phalanx_clm.config import CLMConfig
from phalanx_clm.defense import CLM, CounterLinked, first_weight
from phalanx_clm.linking import is_prse_due, other_weight, prse

TASK = Task(name="digits", shape=(1, 8, 8), classes=10, train_size=90, mean=(0.3,), std=(0.4,))


class Context(PhaseContext):
    """The smallest thing that a phase can run in: no data, one optimizer a group."""

    def __init__(self, phase, *, batches=12, optimizer=torch.optim.Adam):
        self.phase, self.batches, self.device = phase, batches, torch.device("cpu")
        self.epoch = self.index = 0
        self.optimizers = {
            name: optimizer(parameters, lr=1e-2) for name, parameters in phase.groups().items()
        }

    def generator(self, *purpose):
        return generator(0, self.phase.name, self.epoch, self.index, *purpose)

    def batch(self, stream):
        raise NotImplementedError

    def minimise(self, loss, *groups):
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name in groups or self.optimizers:
            self.optimizers[name].step()

    def at(self, epoch, index):
        self.epoch, self.index = epoch, index
        return self


def made(**params):
    params = {"backbone": "small_cnn", "members": 3, **params}
    defense = CLM(CLMConfig(**params), TASK)
    with seeded(7, "build"):
        return defense, defense.build()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return Batch(torch.rand(16, 1, 8, 8, generator=g), torch.randint(10, (16,), generator=g))


def states(model):
    return [{k: v.clone() for k, v in member.state_dict().items()} for member in model.members]


def changed(model, before):
    return [
        i
        for i, member in enumerate(model.members)
        if any(not torch.equal(v, before[i][k]) for k, v in member.state_dict().items())
    ]


# ---------------------------------------------------------------- config


def test_defaults_are_the_papers_lenet():
    config = CLMConfig()
    assert (config.variant, config.members, config.backbone.use) == ("clm", 10, "lenet5")
    assert (config.alpha, config.delta, config.prse_period) == (0.1, 0.1, 10)
    assert (config.prse_unit, config.granularity) == ("batch", "sample")
    assert all(field.description for field in CLMConfig.model_fields.values())


def test_linking_one_submodel_is_refused_but_training_it_is_not():
    with pytest.raises(ValidationError, match="set members to 2 or more, or variant to 'ulm'"):
        CLMConfig(members=1)
    assert CLMConfig(members=1, variant="ulm").members == 1


# ---------------------------------------------------------------- build


def test_mask_is_shared_stored_and_shaped_like_one_kernel():
    _, model = made()
    o, c, k, _ = first_weight(model.members[0]).shape
    assert model.link_mask.shape == (1, c, k, k)
    assert o > 1
    assert "link_mask" in model.state_dict()
    assert not any("link_mask" in key for m in model.members for key in m.state_dict())


@pytest.mark.parametrize(
    ("backbone", "shape", "weight"),
    [("lenet5", (1, 28, 28), (6, 1, 5, 5)), ("resnet18_cifar", (3, 32, 32), (64, 3, 3, 3))],
)
def test_masks_of_the_papers_networks(backbone, shape, weight):
    task = TASK.model_copy(update={"shape": shape, "mean": (0.5,), "std": (0.5,)})
    model = CLM(CLMConfig(backbone=backbone, members=2), task).build()
    assert first_weight(model.members[1]).shape == weight
    assert model.link_mask.shape == (1, *weight[1:])


def test_members_start_from_different_weights():
    _, model = made()
    first = [first_weight(member) for member in model.members]
    assert not any(torch.equal(first[i], first[j]) for i in range(3) for j in range(i))


def test_same_seed_gives_one_ulm_for_both_variants():
    ulm, of_ulm = made(variant="ulm")
    clm, of_clm = made(variant="clm")
    left, right = of_ulm.state_dict(), of_clm.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    first, second = ulm.phases(of_ulm), clm.phases(of_clm)
    assert [p.name for p in first] == ["ulm/1", "ulm/2", "ulm/3"]
    assert [p.name for p in second] == ["ulm/1", "ulm/2", "ulm/3", "clm"]
    for a, b in zip(first, second):
        assert (a.epochs, a.batch_size, a.optimizer) == (b.epochs, b.batch_size, b.optimizer)


def test_first_weight_layer():
    _, model = made()
    member = model.members[0]
    weights = [m.weight for m in member.modules() if isinstance(m, nn.Conv2d)]
    assert first_weight(member) is weights[0]
    assert first_weight(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).shape == (2, 4)
    with pytest.raises(ValueError, match=r"first Conv2d or Linear layer, and backbone Flatten has"):
        first_weight(nn.Flatten())


# ---------------------------------------------------------------- phases


def test_phases_are_the_papers():
    defense, model = made(members=10, retrain_epochs=5, ulm_epochs=20)
    *ulm, clm = defense.phases(model)
    assert len(ulm) == 10
    for number, (phase, member) in enumerate(zip(ulm, model.members, strict=True), start=1):
        assert phase.name == f"ulm/{number}"
        assert phase.module is member
        assert (phase.epochs, phase.batch_size, phase.optimizer.lr) == (20, 128, 1e-3)
        assert phase.depends_on == ()
    assert clm.module is model
    assert clm.epochs == 50
    assert clm.optimizer.lr == 1e-4
    assert clm.depends_on == tuple(phase.name for phase in ulm)
    assert clm.accepts_adversarial


def test_phases_are_cheap_and_pure():
    defense, model = made()
    before = torch.get_rng_state()
    assert [p.name for p in defense.phases(model)] == [p.name for p in defense.phases(model)]
    assert torch.equal(before, torch.get_rng_state())


def test_foreign_model_is_refused():
    defense, _ = made()
    with pytest.raises(TypeError, match=r"CLM trains what its build\(\) returns, found Linear"):
        defense.phases(nn.Linear(2, 2))


def test_groups_are_disjoint_and_complete():
    defense, model = made()
    groups = defense.phases(model)[-1].groups()
    assert list(groups) == ["member/1", "member/2", "member/3"]
    every = [id(p) for parameters in groups.values() for p in parameters]
    assert len(every) == len(set(every))
    assert set(every) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("epochs", [15, 17, 2])
def test_each_submodel_has_a_progress_of_its_own(epochs):
    defense, model = made()
    phase = replace(defense.phases(model)[-1], epochs=epochs)
    ctx = Context(phase, batches=4)
    seen = {}
    for epoch in range(epochs):
        for index in range(ctx.batches):
            turn = phase.turn(ctx.at(epoch, index))
            seen.setdefault(turn, []).append(phase.progress(ctx))
    for turn, values in seen.items():
        its_steps = len(range(turn, epochs, 3)) * ctx.batches
        assert values == pytest.approx([k / its_steps for k in range(its_steps)])


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize("index", [3, 10])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_only_the_submodel_in_training_moves(batch, turn, index):
    defense, model = made()
    phase = defense.phases(model)[-1]
    ctx = Context(phase)
    for epoch in range(3):  # so that every optimizer has momentum that could move its member
        phase.step(batch, ctx.at(epoch, 0))
    before = states(model)
    assert phase.target(ctx.at(3 + turn, index)) is model.members[turn]
    values = phase.step(batch, ctx)
    assert changed(model, before) == [turn]
    assert values["loss"].item() == pytest.approx(values["cross_entropy"].item())
    assert (values["log/linked"] > 0) == is_prse_due(0, index, period=10)
    assert values["log/max_weight"] > 0


@pytest.mark.parametrize("turn", [0, 1])
def test_prse_is_in_place_and_by_the_formula(turn):
    defense, model = made(delta=0.3)
    phase = defense.phases(model)[-1]
    ctx = Context(phase).at(turn, 10)
    weights = [first_weight(member) for member in model.members]
    before = [weight.detach().clone() for weight in weights]
    storage = weights[turn].data_ptr()
    partner = other_weight(before, turn, ctx.generator("partner"))

    linked = phase.examine(ctx)

    expected = prse(before[turn], partner, model.link_mask, alpha=0.1, delta=0.3, index=turn)
    assert first_weight(model.members[turn]) is weights[turn]
    assert weights[turn].data_ptr() == storage
    held = ctx.optimizers[f"member/{turn + 1}"].param_groups[0]["params"]
    assert any(p is weights[turn] for p in held)
    assert torch.equal(weights[turn], expected)
    assert all(torch.equal(weights[j], before[j]) for j in range(3) if j != turn)
    assert linked.item() == pytest.approx((expected != before[turn]).float().mean().item())
    assert (weights[turn] <= before[turn]).all() == (turn == 0)  # odd ones, 1-based, go down


def test_prse_comes_before_the_training_step(batch):
    """With a learning rate of zero, the step's loss is that of the pushed weights."""
    defense, model = made(alpha=0.5)
    phase = defense.phases(model)[-1]
    ctx = Context(phase, optimizer=lambda p, lr: torch.optim.SGD(p, lr=0.0)).at(0, 10)
    loss = phase.step(batch, ctx)["loss"]
    after = nn.functional.cross_entropy(model.members[0](batch.x), batch.y)
    assert loss.item() == pytest.approx(after.item())


def test_unlinked_retraining_without_push(batch):
    """α = 0 and δ = 0 both leave plain retraining: same weights, bit for bit."""
    ends = []
    for params in ({"alpha": 0.0}, {"delta": 0.0}):
        defense, model = made(**params)
        phase = defense.phases(model)[-1]
        ctx = Context(phase)
        for index in range(ctx.batches):
            phase.step(batch, ctx.at(0, index))
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_twin_is_averaged(batch):
    defense, model = made()
    phase = defense.phases(model)[-1]
    twin = batch.x.flip(-1)
    ctx = Context(phase)
    both = phase.objective(replace(batch, adv=twin), ctx)["cross_entropy"]
    one = phase.objective(batch, ctx)["cross_entropy"]
    other = phase.objective(Batch(twin, batch.y), ctx)["cross_entropy"]
    torch.testing.assert_close(both, (one + other) / 2)


def test_linked_weights_drift_apart(batch):
    """Figs. 4 and 5: linked weights go down in odd, up in even sub-models; the rest stays."""
    defense, model = made(prse_period=1)
    before = [first_weight(member).detach().clone() for member in model.members]
    phase = defense.phases(model)[-1]
    ctx = Context(phase, batches=6, optimizer=lambda p, lr: torch.optim.SGD(p, lr=0.0))
    for epoch in range(6):
        for index in range(ctx.batches):
            phase.step(batch, ctx.at(epoch, index))
    linked = model.link_mask.expand_as(before[0])
    moves = [first_weight(m).detach() - w for m, w in zip(model.members, before)]
    assert all((move[~linked] == 0).all() for move in moves)
    assert [torch.sign(move[linked].mean()).item() for move in moves] == [-1, 1, -1]
    after = torch.stack([w + move for w, move in zip(before, moves)])
    assert after.std(0)[linked].mean() > torch.stack(before).std(0)[linked].mean()


# ---------------------------------------------------------------- views


def test_population_views(batch):
    _, model = made()
    model.eval()
    assert isinstance(model, CounterLinked)
    assert model.stochastic
    assert len(model.support()) == len(model.members) == 3
    views = model.views()
    assert set(views) == {"deployed", "one-draw", "expected"}
    assert views["one-draw"].rowwise
    assert views["one-draw"].fixed_draw
    assert views["expected"].rowwise
    assert any(views["one-draw"].open(5) is member for member in model.support())
    with torch.no_grad():
        each = torch.stack([member(batch.x).softmax(1) for member in model.members])
        expected = views["expected"].open(0)(batch.x).softmax(1)
    torch.testing.assert_close(expected, each.mean(0))


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_each_answer_is_one_submodels(batch, granularity):
    _, model = made(granularity=granularity)
    model.eval()
    with torch.no_grad():
        each = torch.stack([member(batch.x).softmax(1) for member in model.members])
        answer = model.draw(batch.x, generator(3)).softmax(1)
    right = (answer - each).abs().amax(2) < 1e-5
    assert right.any(0).all()
    chosen = right.int().argmax(0)
    assert (len(chosen.unique()) > 1) == (granularity == "sample")
