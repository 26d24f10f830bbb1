"""Checks for defenses: training, resume, views, gradients, files, ART."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phalanx.attack import attacking
from phalanx.defense import DefendedModel
from phalanx.phase import Phase
from phalanx.testing.case import Case
from phalanx.training.artifacts import load
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.plan import planned
from phalanx.training.run import train
from phalanx.training.trainer import Settings, Trainer


class _Killed(BaseException):
    """Ends a training as abruptly as a process can from inside."""


class _KillAfter:
    """Ends a training after a number of batches; 0: never."""

    def __init__(self, batches: int = 0) -> None:
        self.left = batches

    def phase_started(self, phase: str, *, epochs: int, batches: int, done: int) -> None:
        pass

    def batch_finished(self, phase: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Killed

    def epoch_finished(self, metrics: Mapping[str, Any]) -> None:
        pass


def _same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def check_training(case: Case) -> None:
    """Losses are finite, weights move, the model ends in evaluation mode."""
    run = case.run
    for line in run.metrics:
        wrong = [k for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)]
        assert not wrong, f"phase {line['phase']} logs values that are not finite: {wrong}"
    assert not any(part.training for part in run.model.modules()), "a module stays in train mode"


def check_same_seed(case: Case) -> None:
    """The same seed gives the same weights, whatever the global generators hold."""
    torch.manual_seed(99)
    again = train(case.config(), out=case.folder / "again")
    assert _same(case.run.model, again.model), "the same seed gives other weights"


def check_resume(case: Case) -> None:
    """Killed every 7 batches and resumed, with adversarial examples where a phase takes them."""
    accepts = any(phase.accepts_adversarial for phase in _phases(case, case.run.model))
    config = case.config(adversarial=accepts)
    whole = train(config, out=case.folder / "whole")
    parts = case.folder / "parts"
    resumed = None
    while resumed is None:  # every phase is cut somewhere: 7 does not divide its 13 batches
        try:
            resumed = train(
                config, out=parts, resume=True, checkpoint_seconds=0, progress=_KillAfter(7)
            )
        except _Killed:
            continue
    assert _same(whole.model, resumed.model), (
        "killed and resumed, it ends in other weights: is there state outside tensors under "
        "phase.module, or a draw that is not from ctx.generator?"
    )


class _Watching(Trainer):
    """Remembers what each phase left alone."""

    strayed: list[str]

    def _run_phase(self, phase: Phase) -> None:
        inside = {id(t) for t in (*phase.module.parameters(), *phase.module.buffers())}
        outside = {
            name: t.detach().clone()
            for name, t in _tensors(self.model).items()
            if id(t) not in inside
        }
        grouped = {id(p) for group in phase.groups().values() for p in group}
        idle = {
            name: p.detach().clone()
            for name, p in self.model.named_parameters()
            if id(p) in inside and id(p) not in grouped
        }
        super()._run_phase(phase)
        after = _tensors(self.model)
        for kept, what in ((outside, "outside its module"), (idle, "in no group")):
            for name, value in kept.items():
                if not torch.equal(value, after[name]):
                    self.strayed.append(f"{phase.name} changes {name}, {what}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _phases(case: Case, model: DefendedModel) -> list[Phase]:
    config = case.config()
    return planned(config.defense.create(case.data.task).phases(model), config.training, model)


def check_phase_ownership(case: Case) -> None:
    """A phase changes nothing outside its module, nor parameters in no group."""
    config = case.config()
    model: DefendedModel = config.defense.create(case.data.task).build()
    folder = case.folder / "watched"
    folder.mkdir()
    trainer = _Watching(
        model,
        case.data,
        folder=folder,
        checkpoints=Checkpoints.open(folder, config_hash="watched", threads=1),
        settings=Settings(seed=config.seed),
        progress=_KillAfter(),
    )
    trainer.strayed = []
    trainer.run(_phases(case, model))
    assert not trainer.strayed, "; ".join(trainer.strayed[:3])


def check_scores(case: Case) -> None:
    """Scores are (N, K), finite, not probabilities; one image and float64 input work."""
    model = case.run.model
    x, _ = case.images
    with torch.no_grad():
        for images in (x, x[:1], x.double()):
            scores = model(images)
            assert scores.shape == (len(images), 10), f"scores are {tuple(scores.shape)}"
            assert bool(torch.isfinite(scores).all()), "scores are not finite"
    looks = bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-5).all())
    assert not looks, "scores look like probabilities; give logits or log-probabilities"
    assert isinstance(model.draw(x, torch.Generator().manual_seed(0)), Tensor)


def check_views(case: Case) -> None:
    """Each view opens by seed; in a row-wise one, batch-mates and earlier calls do not matter."""
    model = case.run.model
    x, _ = case.images
    views = model.views()
    assert "deployed" in views, "views() has no 'deployed'"
    if model.stochastic:
        missing = {"one-draw", "expected"} - views.keys()
        assert not missing, f"a stochastic model lacks the views {sorted(missing)}"
    for name, view in views.items():
        with torch.no_grad():
            first, second = (view.open(5)(x) for _ in range(2))
            assert torch.equal(first, second), f"view {name}: one seed opens two functions"
            if view.rowwise:
                module = view.open(5)
                module(x.flip(0))
                alone = torch.cat([module(row) for row in x.split(1)])
                assert torch.allclose(alone, first, atol=1e-5), (
                    f"view {name} claims rowwise, but an image's scores depend on its batch-mates "
                    "or on earlier calls"
                )


def check_gradients(case: Case) -> None:
    """Autograd's gradient of each row-wise view is that of its values (central differences)."""
    if not case.spec.traits.differentiable:
        return
    model = case.run.model
    x, y = case.images
    generator = torch.Generator().manual_seed(0)
    for name, view in model.views().items():
        if not view.rowwise:
            continue
        module = view.open(5)
        start = (x + 1e-3 * torch.randn(x.shape, generator=generator)).requires_grad_()
        with attacking(module):
            (gradient,) = torch.autograd.grad(_margin(module(start), y).sum(), start)
            assert bool(torch.isfinite(gradient).all()), f"view {name}: gradient is not finite"
            estimates, slopes = [], []
            for _ in range(16):
                step = torch.randn(x.shape, generator=generator)
                step = 1e-3 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                with torch.no_grad():
                    rise = _margin(module(start + step), y) - _margin(module(start - step), y)
                estimates.append(rise / 2)
                slopes.append((gradient * step).flatten(1).sum(1))
        cosine = F.cosine_similarity(torch.stack(slopes), torch.stack(estimates), dim=0)
        assert cosine.median() > 0.95, (
            f"view {name}: its gradient is not that of its values (median cosine with central "
            f"differences {float(cosine.median()):.2f})"
        )


def _margin(scores: Tensor, y: Tensor) -> Tensor:
    others = scores.scatter(1, y[:, None], -math.inf).amax(1)
    return others - scores.gather(1, y[:, None]).squeeze(1)


def check_save_load(case: Case) -> None:
    """The loaded model answers as the trained one, from the folder and from the file alone."""
    x, _ = case.images
    folder: Path = case.run.path
    with torch.no_grad():
        expected = case.run.model.serve(7)(x)
        for path in (folder, folder / "weights.safetensors"):
            found = load(path).serve(7)(x)
            assert torch.equal(found, expected), f"{path.name}: a loaded model answers otherwise"


def check_art(case: Case) -> None:
    """The ART estimator's gradient is the view's, and ART's FGSM, PGD and APGD run on it."""
    from art.attacks.evasion import (
        AutoProjectedGradientDescent,
        FastGradientMethod,
        ProjectedGradientDescent,
    )

    model = case.run.model
    x, y = case.images
    view = "expected" if model.stochastic else "deployed"
    estimator = model.as_art(view, seed=5)
    module = model.views()[view].open(5)
    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(module(start), y, reduction="sum"), start)
    found = estimator.loss_gradient(x.numpy(), y.numpy())
    # ART's loss is the batch's mean or sum: equal up to one factor
    cosine = F.cosine_similarity(torch.from_numpy(found).flatten(), gradient.flatten(), dim=0)
    if model.views()[view].rowwise:
        assert cosine > 0.999, f"as_art().loss_gradient differs from autograd (cosine {cosine:.4f})"
    for attack in (
        FastGradientMethod(estimator, eps=0.1),
        ProjectedGradientDescent(estimator, eps=0.1, eps_step=0.05, max_iter=3, verbose=False),
        AutoProjectedGradientDescent(
            estimator,
            eps=0.1,
            eps_step=0.05,
            max_iter=3,
            nb_random_init=1,
            loss_type="cross_entropy",
            verbose=False,
        ),
    ):
        adversarial = attack.generate(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()])
        assert np.abs(adversarial - x.numpy()).max() <= 0.1 + 1e-6, f"{attack} leaves the ball"


def check_global_state(case: Case) -> None:
    """Training and answering leave the global random state as they found it."""
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = _random_states()
    run = train(case.config(), out=case.folder / "state")
    with torch.no_grad():
        run.model(case.images[0])
    after = _random_states()
    moved = [name for name in before if before[name] != after[name]]
    assert not moved, f"global random state moved: {', '.join(moved)}"


def _random_states() -> dict[str, str]:
    """The three global generators' states, as text."""
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str([str(part) for part in np.random.get_state(legacy=True)]),
        "Python": str(random.getstate()),
    }


CHECKS = (
    check_training,
    check_same_seed,
    check_resume,
    check_phase_ownership,
    check_scores,
    check_views,
    check_gradients,
    check_save_load,
    check_art,
    check_global_state,
)
