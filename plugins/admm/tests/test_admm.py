"""ADMM by its worked steps, its schedule, and on a problem whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from phalanx.api import (
    Batch,
    ConfigError,
    CrossEntropyPhase,
    PhalanxWarning,
    Phase,
    PhaseContext,
    generator,
)
from phalanx_admm.admm import ADMM, PULL, penalty, updates_by
from phalanx_admm.config import BlockConfig, FilterConfig, IrregularConfig
from phalanx_admm.projections import irregular
from phalanx_admm.pruner import Block, Filter, Irregular

WORKED = torch.tensor([[0.5, -0.1, 0.3, 0.05], [-0.7, 0.2, -0.02, 0.4]])
NOTHING = Batch(torch.zeros(0), torch.zeros(0))


class Context(PhaseContext):
    """A place in a phase."""

    def __init__(self, phase: Phase, *, batches: int = 1, images: Tensor | None = None) -> None:
        self.phase, self.batches = phase, batches
        self.epoch, self.index = 0, 0
        self.device = torch.device("cpu")
        self.images = torch.zeros(1, 4, 3, 3) if images is None else images

    def generator(self, *purpose: str | int) -> Generator:
        return generator(0, *purpose)

    def batch(self, stream: str) -> Batch:
        return Batch(self.images, torch.zeros(len(self.images), dtype=torch.long))

    def minimise(self, loss: Tensor, *groups: str) -> None:
        raise LookupError(groups)

    def at(self, step: int) -> Context:
        self.epoch, self.index = divmod(step, self.batches)
        return self


def layer(weight: Tensor) -> nn.Conv2d:
    """A 1 x 1 convolution with a copy of that weight ``(O, I)``."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight.data = weight.clone()[..., None, None]
    return conv


def begun(pruner: ADMM, module: nn.Module, *, epochs: int = 10, batches: int = 1) -> Context:
    phase = CrossEntropyPhase(name="fit", module=module, epochs=epochs)
    ctx = Context(phase, batches=batches)
    pruner.begin(ctx)
    return ctx


def make(**params: Any) -> Irregular:
    return Irregular(IrregularConfig.model_validate({"rho": 1e-3, **params}))


def variables(pruner: ADMM) -> tuple[Tensor, Tensor]:
    buffers = dict(pruner.named_buffers())
    return tuple(next(v for k, v in buffers.items() if k[0] == kind) for kind in "ZU")


# ---------------------------------------------------------------- worked steps


def test_penalty_and_gradient() -> None:
    conv, pruner = layer(WORKED), make()
    ctx = begun(pruner, conv)
    terms = pruner.terms(NOTHING, ctx)
    assert float(terms["admm/penalty"].detach()) == pytest.approx(1.5145e-4, rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["admm/penalty"], conv.weight)
    expected = torch.tensor([[0, -1e-4, 3e-4, 5e-5], [0, 2e-4, -2e-5, 4e-4]])
    torch.testing.assert_close(gradient[..., 0, 0], expected)
    assert all(not value.requires_grad for value in pruner.buffers())


def test_two_dual_steps() -> None:
    conv, pruner = layer(WORKED), make()
    ctx = begun(pruner, conv)
    pruner.terms(NOTHING, ctx.at(1))  # the first of nine updates in ten steps
    z, u = variables(pruner)
    zero = torch.zeros_like(z)
    assert torch.equal(z, irregular(conv.weight.detach(), rate=4))
    first = torch.tensor([[0, -0.1, 0.3, 0.05], [0, 0.2, -0.02, 0.4]])
    torch.testing.assert_close(u[..., 0, 0], first)
    conv.weight.data *= 0.9
    pruner.terms(NOTHING, ctx.at(2))
    expected = zero.clone()
    expected[1, 0], expected[1, 3] = -0.63, 0.76  # the dual brings .4's entry back
    torch.testing.assert_close(z, expected)
    second = torch.tensor([[0.45, -0.19, 0.57, 0.095], [0, 0.38, -0.038, 0]])
    torch.testing.assert_close(u[..., 0, 0], second)


class Second(Irregular):
    """Leaves the second of two weights, whatever the first has become."""

    def project(self, name: str, weight: Tensor) -> Tensor:
        return weight * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)


def test_the_dual_carries_no_graph() -> None:
    """W = (1, 2) and Z = (0, 2) stay: after k updates the gradient is k + 1, not (k + 1)²."""
    conv = layer(torch.tensor([[1.0, 2.0]]))
    pruner = Second(IrregularConfig(rate=2, rho=1.0))
    ctx = begun(pruner, conv)
    found = []
    for step in range(4):
        terms = pruner.terms(NOTHING, ctx.at(step))
        (gradient,) = torch.autograd.grad(terms["admm/penalty"], conv.weight)
        found.append(gradient.flatten().tolist())
        assert not variables(pruner)[1].requires_grad
    assert found == [[1, 0], [2, 0], [3, 0], [4, 0]]


def test_the_dual_stays_zero_where_the_weight_is_in_the_set() -> None:
    conv, pruner = layer(irregular(WORKED, rate=4)), make()
    ctx = begun(pruner, conv)
    for step in range(10):
        terms = pruner.terms(NOTHING, ctx.at(step))
        assert float(terms["admm/penalty"].detach()) == float(terms["log/admm/gap"]) == 0
    assert not bool(variables(pruner)[1].any())


def test_penalty_has_a_gradient_at_zero() -> None:
    weight = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(weight, torch.zeros(3), torch.zeros(3)), weight)
    assert torch.equal(gradient, torch.zeros(3))


def test_least_squares_with_three_unknowns() -> None:
    draws = torch.Generator().manual_seed(0)
    a = torch.randn(40, 8, generator=draws)
    true = torch.zeros(8)
    true[[1, 4, 6]] = torch.tensor([2.0, -1.5, 1.0])
    b = a @ true + 0.01 * torch.randn(40, generator=draws)
    conv = layer(torch.zeros(1, 8))
    pruner = make(rate=8 / 3, rho=1.0, updates=50)
    ctx = begun(pruner, conv, epochs=51 * 20)
    for step in range(51 * 20):
        loss = (a @ conv.weight.flatten() - b).square().mean()
        terms = pruner.terms(NOTHING, ctx.at(step))
        (gradient,) = torch.autograd.grad(loss + terms["admm/penalty"], conv.weight)
        conv.weight.data -= 0.1 * gradient
    weight, z = conv.weight.detach().flatten(), variables(pruner)[0].flatten()
    assert z.nonzero().flatten().tolist() == [1, 4, 6]
    assert float((weight - z).norm()) < 1e-6
    pruner.end(ctx)
    assert conv.weight.flatten().nonzero().flatten().tolist() == [1, 4, 6]
    torch.testing.assert_close(conv.weight.detach().flatten(), true, atol=0.02, rtol=0)


# ---------------------------------------------------------------- when and how hard


def test_the_papers_updates() -> None:
    pruner = make(update_every=20)
    ctx = begun(pruner, layer(WORKED), epochs=200, batches=391)
    spread = make()
    for step in range(0, 200 * 391, 391):
        assert pruner.updates_done(ctx.at(step)) == spread.updates_done(ctx) == step // 391 // 20
    assert pruner.rho(ctx) == 1e-3
    assert make(rho=None).rho(ctx) == pytest.approx(1e-3)
    assert pytest.approx(78.2) == PULL


@pytest.mark.parametrize(("epochs", "batches"), [(1, 13), (3, 2), (1, 1), (7, 5)])
def test_short_phases_have_their_updates_within_epochs(epochs: int, batches: int) -> None:
    pruner, steps = make(rho=None), epochs * batches
    ctx = begun(pruner, layer(WORKED), epochs=epochs, batches=batches)
    done = [pruner.updates_done(ctx.at(step)) for step in range(steps)]
    assert done[0] == 0
    assert done == sorted(done)
    assert len(set(done)) == min(10, steps)
    assert pruner.rho(ctx) * steps == pytest.approx(PULL)


def test_moments_are_evenly_spaced() -> None:
    done = [updates_by(step, steps=100, updates=4) for step in range(100)]
    assert [done.index(k) for k in range(5)] == [0, 20, 40, 60, 80]


def test_rho_grows_at_each_update() -> None:
    conv = layer(WORKED)
    plain, grown = make(), make(rho_growth=1.3)
    found = []
    for pruner in (plain, grown):
        ctx = begun(pruner, conv)
        found.append(float(pruner.terms(NOTHING, ctx.at(3))["admm/penalty"].detach()))
    assert found[1] == pytest.approx(found[0] * 1.3**3)


def test_gap_is_of_all_layers_together() -> None:
    module = nn.Sequential(layer(WORKED), layer(torch.tensor([[3.0, 4.0]])))
    pruner = make(rate=2)
    ctx = begun(pruner, module)
    w = torch.cat([part.weight.detach().flatten() for part in module])
    z = torch.cat([irregular(part.weight.detach(), rate=2).flatten() for part in module])
    gap = pruner.terms(NOTHING, ctx)["log/admm/gap"]
    assert float(gap) == pytest.approx(float((w - z).norm() / w.norm()))


# ---------------------------------------------------------------- the end


def test_the_end_projects_and_says_when_that_made_the_zeros() -> None:
    conv, pruner = layer(WORKED), make(rho=0.25)
    ctx = begun(pruner, conv)
    message = (
        r"phase 'fit': ADMM ends with weights that are 0\.5\d of their norm away from pruned ones "
        r"\(more than 0\.1; most in , 0\.5\d\), so cutting them off makes the zeros and the "
        r"training does not: train more epochs, or set a larger pruner\.params\.rho than 0\.25"
    )
    with pytest.warns(PhalanxWarning, match=message):
        pruner.end(ctx)
    assert torch.equal(conv.weight[..., 0, 0], irregular(WORKED, rate=4))


def test_a_phase_without_epochs_is_pruned_at_one_shot_and_in_silence() -> None:
    conv, pruner = layer(WORKED), make(rho=None)
    pruner.end(begun(pruner, conv, epochs=0))
    assert torch.equal(conv.weight[..., 0, 0], irregular(WORKED, rate=4))


def test_near_weights_end_in_silence() -> None:
    conv, pruner = layer(irregular(WORKED, rate=4) + 0.01), make()
    pruner.end(begun(pruner, conv))
    assert int((conv.weight != 0).sum()) == 2


# ---------------------------------------------------------------- which layers


class Net(nn.Module):
    """A stem, a block of the same layer names, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3)
        self.layer1 = nn.Sequential()
        self.layer1.conv1 = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 3)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([nn.Module(), nn.Module()])
        for network in self.networks:
            network.backbone = Net()


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"conv1": 2}, [2, 4, 2, 4]),
        ({"*conv1": 2}, [2, 2, 2, 2]),
        ({"*": 3, "layer1.*": 8}, [3, 8, 3, 8]),
        ({}, [4, 4, 4, 4]),
    ],
)
def test_rates_by_name(rates: dict[str, float], expected: list[float]) -> None:
    pruner, module = make(rates=rates), Holder()
    pruner.check(module)
    assert [pruner.rate(name) for name in pruner.layers(module)] == expected


def test_a_layer_is_called_the_same_whatever_module_a_phase_trains() -> None:
    holder = Holder()
    pruner = make(rates={"conv1": 2, "layer1.*": 8})
    for module in (holder, holder.networks[0], holder.networks[0].backbone):
        assert [pruner.rate(name) for name in pruner.layers(module)][:2] == [2, 8]


def test_skipped_layers() -> None:
    pruner = make(skip=["conv1"])
    assert list(pruner.layers(Holder())) == [f"networks.{i}.backbone.layer1.conv1" for i in (0, 1)]


@pytest.mark.parametrize(
    ("params", "problems"),
    [
        (
            {"rates": {"conv9": 2}, "skip": ["stem.*"]},
            [
                "pruner.params.rates: 'conv9' fits no layer; the layers are conv1, layer1.conv1",
                "pruner.params.skip: 'stem.*' fits no layer; the layers are conv1, layer1.conv1",
            ],
        ),
        (
            {"skip": ["networks.0.backbone.conv1"], "rates": {"networks.*": 2}},
            [
                "pruner.params.rates: 'networks.*' fits no layer; the layers are conv1, "
                "layer1.conv1",
                "pruner.params.skip: 'networks.0.backbone.conv1' fits no layer; the layers are "
                "conv1, layer1.conv1",
            ],
        ),
        (
            {"skip": ["*"]},
            [
                "pruner: all 4 convolutions of Holder are left out: let it prune one, such as "
                "'conv1', with fewer or narrower patterns in its skip"
            ],
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(params: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**params).check(Holder())
    assert list(caught.value.problems) == problems


def test_frozen_layers_are_left_alone() -> None:
    module = Holder()
    frozen = module.networks[0].requires_grad_(False)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    pruner = make()
    ctx = begun(pruner, module, epochs=0)
    pruner.end(ctx)
    assert list(pruner.pruned_layers) == [
        "networks.1.backbone.conv1",
        "networks.1.backbone.layer1.conv1",
    ]
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


class Turns(CrossEntropyPhase):
    """Trains one of the module's networks a step, as a population's phase does."""

    def target(self, ctx: PhaseContext) -> nn.Module:
        return self.module.networks[ctx.index % 2]


def test_the_sub_model_in_turn_is_pulled_and_no_other() -> None:
    module, pruner = Holder(), make()
    phase = Turns(name="fit", module=module, epochs=1)
    ctx = Context(phase, batches=4)
    pruner.begin(ctx)
    for step in (1, 2):
        term = pruner.terms(NOTHING, ctx.at(step))["admm/penalty"]
        gradients = torch.autograd.grad(
            term, [net.backbone.conv1.weight for net in module.networks], allow_unused=True
        )
        assert [gradient is not None for gradient in gradients] == [step % 2 == 0, step % 2 == 1]


def test_a_phase_that_trains_no_convolution_gets_no_terms() -> None:
    module, pruner = Net(), make()
    module.conv1.requires_grad_(False)
    module.layer1.requires_grad_(False)
    ctx = begun(pruner, module)
    assert pruner.terms(NOTHING, ctx) == {}
    pruner.end(ctx)


def test_buffers_are_a_checkpoint() -> None:
    module = Holder()
    pruner, again = make(), make()
    ctx = begun(pruner, module)
    pruner.terms(NOTHING, ctx.at(9))
    begun(again, module)
    again.load_state_dict(pruner.state_dict())
    own, other = pruner.state_dict(), again.state_dict()
    assert len(own) == 8
    assert all(torch.equal(own[name], other[name]) for name in own)


# ---------------------------------------------------------------- the three


class Two(nn.Module):
    def __init__(self, *, bias: bool, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(4, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("bias", [False, True])
def test_pruned_filters_are_silenced(bias: bool) -> None:
    module = Two(bias=bias)
    module.norm.bias.data += 1.0
    pruner = Filter(FilterConfig(rate=2))
    pruner.end(begun(pruner, module, epochs=0))
    silent = (module.conv.weight == 0).flatten(1).all(1)
    assert int(silent.sum()) == 2
    own = [module.norm.weight, module.norm.bias, *([module.conv.bias] if bias else [])]
    for tensor in own:
        assert torch.equal(tensor == 0, silent)
    for mode in (True, False):
        out = module.train(mode)(torch.randn(2, 4, 3, 3))
        assert not bool(out[:, silent].any())
        assert bool(out[:, ~silent].any())


def test_a_normalisation_without_scales_does_no_harm() -> None:
    module, pruner = Two(bias=False, affine=False), Filter(FilterConfig(rate=2))
    pruner.end(begun(pruner, module, epochs=0))
    assert int((module.conv.weight == 0).flatten(1).all(1).sum()) == 2


def test_each_scheme_is_its_projection() -> None:
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    nonzero = {
        "irregular": Irregular(IrregularConfig()).project("c", weight),
        "filter": Filter(FilterConfig()).project("c", weight),
        "kgs": Block(BlockConfig()).project("c", weight),
        "vanilla": Block(BlockConfig(scheme="vanilla")).project("c", weight),
    }
    assert {int((one != 0).sum()) for one in nonzero.values()} == {8 * 8 * 9 // 4}
    assert int(nonzero["filter"].flatten(1).any(1).sum()) == 2
    assert int(nonzero["vanilla"].flatten(2).any(2).sum()) == 16  # one block of 4 x 4 kernels


@pytest.mark.parametrize("kind", ["irregular", "block"])
def test_zeros_within_filters_make_no_tensor_smaller(kind: str) -> None:
    pruner = make() if kind == "irregular" else Block(BlockConfig())
    module = Two(bias=True)
    found = pruner.compact(module)
    assert found is not module
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.state_dict().values(), module.state_dict().values(), strict=True)
    )
