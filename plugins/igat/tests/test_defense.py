"""Phases and terms: iGAT over simultaneous and round-robin bases, on small networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from phalanx.api import Adversarial, Batch, ConfigError, Phase, PhaseContext, Task, generator
from phalanx.config import TrainingConfig
from phalanx.randomness import seeded
from phalanx.training.plan import planned
from phalanx_igat.config import IGATConfig
from phalanx_igat.defense import IGAT, MaxEnsemble
from phalanx_igat.losses import (
    combined,
    distributed,
    is_wrong,
    misclassification,
    owners,
    true_class,
)
from phalanx_igat.regularizer import IGATRegularizer

TASK = Task(name="toy", shape=(1, 8, 8), classes=10, train_size=64, mean=(0.3,), std=(0.4,))
SMALL = {"members": 2, "backbone": {"use": "small_cnn", "params": {"width": 2}}}
PGD = {"use": "pgd", "params": {"threat": "linf:0.1", "steps": 2}}
BASES = {
    "adp": {"use": "adp", "params": {**SMALL, "attack": PGD}},
    "adp-plain": {"use": "adp", "params": SMALL},
    "pdd": {"use": "pdd", "params": {**SMALL, "variant": "pdd+deg"}},
    "dverge": {"use": "dverge", "params": {**SMALL, "steps": 2, "attack": PGD}},
    "adp-norm": {
        "use": "adp",
        "params": {
            "members": 2,
            "backbone": {"use": "resnet20_cifar", "params": {"width": 2}},
            "attack": PGD,
        },
    },
    "pgd-at": {"use": "pgd-at", "params": {**SMALL, "attack": PGD}},
}


class Context(PhaseContext):
    """A place in a phase, with a seed of its own; keeps the losses that are minimised."""

    def __init__(self, phase: Phase, seed: int = 0) -> None:
        self.phase, self.seed = phase, seed
        self.epoch, self.index, self.batches = 0, 0, 1
        self.device = torch.device("cpu")
        self.losses: list[Tensor] = []

    def generator(self, *purpose: str | int) -> Generator:
        return generator(self.seed, *purpose)

    def batch(self, stream: str) -> Batch:
        return images(seed=9)

    def minimise(self, loss: Tensor, *groups: str) -> None:
        self.losses.append(loss)


def images(n: int = 12, seed: int = 0) -> Batch:
    g = generator(seed, "images")
    return Batch(torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g))


def make(base: str = "adp", **settings: Any) -> tuple[Phase, Context]:
    """The phase that iGAT runs, always from the same initial weights."""
    defense = IGAT(
        IGATConfig.model_validate({"base": BASES[base], "attack": PGD, **settings}), TASK
    )
    with seeded(0, "build"):
        model = defense.build()
    phase = defense.phases(model)[-1]
    return phase, Context(phase)


def transformed(phase: Phase, ctx: Context, batch: Batch | None = None) -> Batch:
    batch = batch or images()
    for transform in phase.transforms:
        batch = transform(batch, ctx)
    return batch


def terms(phase: Phase, ctx: Context, batch: Batch) -> dict[str, Tensor]:
    (rider,) = phase.regularizers
    assert isinstance(rider, IGATRegularizer)
    return rider.terms(batch, ctx)


def scores(phase: Phase, x: Tensor) -> Tensor:
    return torch.stack([member(x) for member in phase.module.members])


# ---------------------------------------------------------------- with zero weights: the base


@pytest.mark.parametrize("base", ["adp", "adp-plain", "pdd", "dverge"])
def test_zero_weights_give_the_bases_loss_and_gradients(base: str) -> None:
    ours, ctx = make(base, alpha=0, beta=0)
    defense = IGAT(IGATConfig.model_validate({"base": BASES[base]}), TASK).base
    with seeded(0, "build"):
        model = defense.build()
    own = defense.phases(model)[-1]
    assert (ours.name, len(ours.transforms), ours.regularizers) == (
        own.name,
        len(own.transforms),
        (),
    )
    found = []
    for phase in (ours, own):
        ctx = Context(phase)
        batch = transformed(phase, ctx)
        phase.before_epoch(ctx)
        phase.step(batch, ctx)
        slopes = [
            slope
            for loss in ctx.losses
            for slope in torch.autograd.grad(
                loss, list(phase.module.parameters()), allow_unused=True, retain_graph=True
            )
        ]
        found.append((ctx.losses, [s for s in slopes if s is not None]))
    (losses, slopes), (their_losses, their_slopes) = found
    assert len(losses) == len(their_losses) == (2 if base == "dverge" else 1)
    assert all(torch.equal(a, b) for a, b in zip(losses, their_losses, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(slopes, their_slopes, strict=True))


# ---------------------------------------------------------------- the phases


def test_the_last_phase_alone_keeps_its_name() -> None:
    phase, _ = make("dverge")
    assert (phase.name, phase.depends_on) == ("dverge", ())
    settings = {"base": BASES["dverge"], "attack": PGD}
    defense = IGAT(IGATConfig.model_validate(settings), TASK)
    assert [phase.name for phase in defense.phases(defense.build())] == ["dverge"]


def test_with_pretraining_the_base_goes_before() -> None:
    settings = {"base": BASES["dverge"], "attack": PGD, "pretrain": True}
    defense = IGAT(IGATConfig.model_validate(settings), TASK)
    model = defense.build()
    phases = defense.phases(model)
    assert [p.name for p in phases] == ["baseline/1", "baseline/2", "dverge", "igat"]
    assert [bool(p.regularizers) for p in phases] == [False, False, False, True]
    assert phases[2].transforms == ()
    assert phases[-1].depends_on == ("baseline/1", "baseline/2", "dverge")
    assert len(planned(phases, TrainingConfig(), model)) == 4


def test_the_bases_own_twin_is_shared() -> None:
    phase, ctx = make("adp")
    (transform,) = phase.transforms
    own = IGAT(IGATConfig.model_validate({"base": BASES["adp"]}), TASK).base
    assert transform.attack.config == own.phases(phase.module)[0].transforms[0].attack.config
    batch = transformed(phase, ctx)
    assert batch.adv is not None


@pytest.mark.parametrize("base", ["adp-plain", "pdd", "dverge"])
def test_a_base_without_a_twin_is_given_one_of_the_ensemble(base: str) -> None:
    phase, ctx = make(base)
    transform = phase.transforms[-1]
    assert isinstance(transform, Adversarial)
    assert (transform.mode, transform.batchnorm) == ("twin", "train")
    batch = transformed(phase, ctx)
    made = transform.attack(phase.module, batch.x, batch.y, generator=ctx.generator("adversarial"))
    assert torch.equal(batch.adv, made)
    assert torch.equal(batch.x, images().x)


def test_a_round_robin_base_leaves_the_twin_to_igat_and_takes_one_update_more() -> None:
    phase, ctx = make("dverge")
    batch = transformed(phase, ctx)
    phase.before_epoch(ctx)
    values = phase.step(batch, ctx)
    assert len(ctx.losses) == 2 + 1  # each member's own, then the joint one
    joint = values["igat/distributed"] + values["igat/misclassification"]
    torch.testing.assert_close(ctx.losses[-1].detach(), joint)
    without = Context(replace(phase, regularizers=()))
    without.phase.before_epoch(without)
    without.phase.step(replace(batch, adv=None), without)
    assert all(torch.equal(a, b) for a, b in zip(ctx.losses, without.losses, strict=False))


def test_a_base_whose_loss_knows_twins_learns_igats() -> None:
    phase, ctx = make("adp-plain")
    values = phase.step(transformed(phase, ctx), ctx)
    assert {"adversarial/cross_entropy", "igat/distributed"} <= values.keys()


def test_a_joint_base_adds_the_terms_to_its_own() -> None:
    phase, ctx = make("adp")
    batch = transformed(phase, ctx)
    values = phase.step(batch, ctx)
    (loss,) = ctx.losses
    own = replace(phase, regularizers=())
    other = Context(own)
    own.step(batch, other)
    added = values["igat/distributed"] + values["igat/misclassification"]
    torch.testing.assert_close(loss, other.losses[0] + added)


# ---------------------------------------------------------------- the terms


def test_quotients_of_logged_means_are_those_of_the_epoch() -> None:
    """Batches of which much and little is given: a mean of quotients would be another number."""
    phase, ctx = make("adp")
    kept, own, sums = 0, 0.0, {"given": 0.0, "owner_right": 0.0}
    for seed in range(3):
        batch = transformed(phase, ctx, images(seed=seed))
        z = scores(phase, batch.adv)
        answer = combined(z, "average").argmax(1)
        y = torch.where(torch.arange(12) < 4 * seed, answer, (answer + 1) % 10)
        y[-1] = (answer[-1] + 1) % 10
        found = terms(phase, ctx, replace(batch, y=y))
        owner = owners(true_class(z, y), "soft", ctx.generator("igat", "owner"))
        keep = is_wrong(z, y, "average")
        kept += int(keep.sum())
        own += float(((z.argmax(2) == y).gather(0, owner[None])[0] & keep).sum())
        for name in sums:
            sums[name] += 12 * float(found[f"log/igat/{name}"])
    assert sums["given"] == pytest.approx(kept)
    assert sums["owner_right"] == pytest.approx(own)


@pytest.mark.parametrize(
    ("base", "combiner", "rule", "distribute"),
    [
        *product(
            ["adp"],
            ["average", "max"],
            ["soft", "hard", "random", "opposite"],
            ["misclassified", "all"],
        ),
        ("adp-norm", "average", "soft", "misclassified"),  # batch statistics of each kind alone
    ],
)
def test_terms_are_the_formula(base: str, combiner: str, rule: str, distribute: str) -> None:
    settings = {"combiner": combiner, "rule": rule, "distribute": distribute}
    phase, ctx = make(base, alpha=3.0, beta=2.0, regularizer="max", **settings)
    batch = transformed(phase, ctx)
    found = terms(phase, ctx, batch)
    natural, adversarial = scores(phase, batch.x), scores(phase, batch.adv)
    wrong = [is_wrong(z, batch.y, combiner) for z in (natural, adversarial)]
    drawn = ctx.generator("igat", "owner")
    owner = owners(true_class(adversarial, batch.y), rule, drawn)
    keep = wrong[1] if distribute == "misclassified" else torch.ones(12, dtype=torch.bool)
    expected = 3.0 * distributed(adversarial, batch.y, owner, keep)
    torch.testing.assert_close(found["igat/distributed"], expected)
    halves = [
        misclassification(z, batch.y, w, "max") for z, w in zip((natural, adversarial), wrong)
    ]
    torch.testing.assert_close(found["igat/misclassification"], 2.0 * sum(halves) / 2)  # of 2B rows
    assert float(found["log/igat/wrong/natural"]) == pytest.approx(float(wrong[0].float().mean()))
    assert float(found["log/igat/wrong/adversarial"]) == pytest.approx(
        float(wrong[1].float().mean())
    )
    right = adversarial.argmax(2) == batch.y
    own = (
        right.gather(0, owner[None])[0] & keep
    ).sum() / 12  # of all, so that epochs can be summed
    assert float(found["log/igat/owner_right"]) == pytest.approx(float(own))
    anybody = (right.float().mean(0) * keep).sum() / 12
    assert float(found["log/igat/member_right"]) == pytest.approx(float(anybody))
    assert float(found["log/igat/given"]) == pytest.approx(float(keep.float().mean()))
    histogram = [float(found[f"log/igat/owner/{i + 1}"]) for i in range(2)]
    assert sum(histogram) == pytest.approx(float(found["log/igat/given"]))
    assert histogram[0] == pytest.approx(float(((owner == 0) & keep).float().mean()))


def test_a_weight_of_zero_leaves_its_term_out() -> None:
    for settings, name in (
        ({"alpha": 0}, "igat/misclassification"),
        ({"beta": 0}, "igat/distributed"),
    ):
        phase, ctx = make("adp", **settings)
        found = terms(phase, ctx, transformed(phase, ctx))
        assert [key for key in found if not key.startswith("log/")] == [name]


def test_nothing_wrong_adds_zeros() -> None:
    phase, ctx = make("adp", alpha=3.0, beta=2.0)
    batch = transformed(phase, ctx)
    z = torch.cat([scores(phase, batch.x), scores(phase, batch.adv)], dim=1)
    answer = combined(z, "average").argmax(1)
    agreed = answer[:12] == answer[12:]
    assert bool(agreed.any())
    easy = Batch(batch.x[agreed], answer[:12][agreed], batch.adv[agreed])
    found = terms(phase, ctx, easy)
    for name in ("igat/distributed", "igat/misclassification"):
        assert found[name].item() == 0.0
        assert found[name].requires_grad  # so that a round of nothing but zeros can go backward
    assert float(found["log/igat/owner_right"]) == 0.0


def test_half_of_the_batch_is_adversarial() -> None:
    phase, ctx = make("adp-plain", batch="half", distribute="all")
    (transform,) = phase.transforms
    assert transform.mode == "half"
    batch = transformed(phase, ctx)
    assert batch.adv is None
    assert torch.equal(batch.x[6:], images().x[6:])
    found = terms(phase, ctx, batch)
    z = scores(phase, batch.x)
    owner = owners(true_class(z[:, :6], batch.y[:6]), "soft", ctx.generator("igat", "owner"))
    every = torch.ones(6, dtype=torch.bool)
    expected = 5.0 * distributed(z[:, :6], batch.y[:6], owner, every)
    torch.testing.assert_close(found["igat/distributed"], expected)
    loss = misclassification(z, batch.y, is_wrong(z, batch.y, "average"), "sum")
    torch.testing.assert_close(found["igat/misclassification"], 10.0 * loss)
    one = terms(phase, ctx, transformed(phase, ctx, images(1)))  # half of one is none
    assert float(one["log/igat/given"]) == 0.0


def test_where_all_images_are_replaced_all_are_adversarial() -> None:
    """The base pgd-at, and a run file's own adversarial training."""
    phase, ctx = make("pgd-at", distribute="all")
    batch = transformed(phase, ctx)
    found = terms(phase, ctx, batch)
    z = scores(phase, batch.x)
    loss = misclassification(z, batch.y, is_wrong(z, batch.y, "average"), "sum")
    torch.testing.assert_close(found["igat/misclassification"], 10.0 * loss)
    assert float(found["log/igat/given"]) == 1.0
    assert "log/igat/wrong/natural" not in found  # there are none
    phase, _ = make("adp")
    training = TrainingConfig.model_validate({"adversarial": {"attack": PGD, "mode": "replace"}})
    (changed,) = planned([phase], training, phase.module)
    again = terms(changed, Context(changed), batch)
    assert "log/igat/wrong/natural" not in again


def test_without_any_adversarial_examples_it_says_so() -> None:
    phase, ctx = make("adp")
    ctx.phase = replace(phase, transforms=())
    message = r'write training.adversarial = { attack = …, mode = "twin" }'
    with pytest.raises(ConfigError, match=message):
        terms(phase, ctx, images())


def test_a_few_steps_lower_the_terms() -> None:
    phase, ctx = make("adp", rule="hard", distribute="all")
    batch = transformed(phase, ctx)
    optimizer = torch.optim.Adam(phase.module.parameters(), lr=3e-3)
    logged = []
    for _ in range(40):
        found = terms(phase, ctx, batch)
        loss = found["igat/distributed"] + found["igat/misclassification"]
        logged.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logged[-1] < 0.5 * logged[0]


# ---------------------------------------------------------------- what is served


def test_the_average_serves_the_bases_own_model() -> None:
    phase, _ = make("adp")
    assert type(phase.module).__name__ == "ADPEnsemble"
    assert "one-member" in phase.module.views()


def test_the_maximum_serves_and_attacks_the_largest_probability() -> None:
    phase, ctx = make("adp", combiner="max")
    model, x = phase.module.eval(), images().x
    assert isinstance(model, MaxEnsemble)
    assert phase.target(ctx) is model
    h = torch.stack([member(x).softmax(1) for member in model.members]).amax(0)
    torch.testing.assert_close(model(x).softmax(1), h / h.sum(1, keepdim=True))
    mean, _ = make("adp")
    own = mean.module.state_dict()
    assert model.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_global_random_state_is_untouched() -> None:
    phase, ctx = make("adp")
    before = torch.get_rng_state()
    terms(phase, ctx, transformed(phase, ctx))
    assert torch.equal(before, torch.get_rng_state())
