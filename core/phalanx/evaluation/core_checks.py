"""The checks of any protocol, and those of tier core, each given what it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from phalanx.attack import answering, attacking
from phalanx.attacks.apgd import APGDCE
from phalanx.attacks.config import APGDConfig
from phalanx.errors import PhalanxError, StorageError
from phalanx.evaluation import checks, scoring
from phalanx.evaluation.examined import SHOWN, Examined
from phalanx.evaluation.facts import LOSSES, facts_of, is_black_box, steps_of
from phalanx.evaluation.findings import Check, Status
from phalanx.evaluation.planning import ADAPTIVE, averages
from phalanx.specs import L1, L2, Linf, Threat

NOT_OF_THE_MODEL = (MemoryError, StorageError)
"""What ends an evaluation wherever it is raised: the machine's fault, not the model's."""


def free(examined: Examined) -> Iterator[Check]:
    """The checks of any protocol: some forward passes."""
    model, limits = examined.model, examined.thresholds
    x, _ = examined.images(SHOWN)
    declared = model.stochastic

    def asked(name: str, ask: Callable[[Any], Check]) -> Check:
        def make() -> Check:
            with attacking(model), torch.no_grad():
                served = model.serve(1)
                with answering(served):  # a view may put modules of its own around the model
                    return ask(served)

        return tried(name, lambda: examined.kept(name, make))

    yield asked("logits", lambda served: checks.logits(served(x), thresholds=limits))
    yield asked(
        "stochastic",
        lambda served: checks.stochastic(served, x, declared=declared, thresholds=limits),
    )
    yield asked(
        "batch_dependence",
        lambda served: checks.batch_dependence(served, x, declared=declared, thresholds=limits),
    )
    yield asked("dynamic", lambda served: checks.dynamic(served, x[:8], declared=False))


# ---------------------------------------------------------------- tier core


def core(examined: Examined) -> Iterator[Check]:
    """Gradients, then comparisons of attacks, then the path of one."""
    yield from _gradients(examined)
    base, limits = examined.base(), examined.thresholds
    yield tried("black_box", lambda: _black_box(examined, base))
    yield tried("transfer", lambda: checks.transfer(base, examined.sources(), thresholds=limits))
    yield tried("unbounded", lambda: _unbounded(examined))
    converged = tried("converged_steps", lambda: _converged(examined, base))
    yield converged
    yield tried("one_step", lambda: _one_step(examined, base))
    yield tried("eot_k", lambda: _eot(examined))
    yield tried("ensemble_reweight", lambda: _reweighed(examined, base))
    yield from _adaptive(examined)
    yield from _path(examined, converged.status)


def _black_box(examined: Examined, base: torch.Tensor | None) -> Check:
    uses = [one.task.use for one in examined.cells() if one.task.use is not None]
    names = {use.use for use in uses if is_black_box(use)}
    return checks.black_box(base, examined.outcomes(*names), thresholds=examined.thresholds)


def _gradients(examined: Examined) -> Iterator[Check]:
    model, seed, limits = examined.model, examined.loop.maker.seed, examined.thresholds
    x, y = examined.images()
    uses = [one.task.use for one in examined.cells() if one.task.use is not None]
    ascended = {facts_of(use).loss for use in uses} & LOSSES.keys()

    def asked(name: str, ask: Callable[[Any], Check]) -> Check:
        def make() -> Check:
            with attacking(model):
                function = examined.function_for_gradients()
                with attacking(function):
                    return ask(function)

        return tried(name, lambda: examined.kept(name, make))

    for name in ("margin", *sorted(str(one) for one in ascended - {"margin"})):
        yield asked(f"grad_bad:{name}", partial(_bad, examined=examined, name=name))
    yield asked(
        "grad_fd",
        lambda f: checks.grad_fd(
            f,
            x,
            y,
            generator=examined.generator("fd", seed),
            batch=examined.batch,
            thresholds=limits,
        ),
    )
    if not model.stochastic:
        yield asked("grad_deployed", lambda f: _estimator(examined))
    members = examined.members
    if len(members) > 1:
        yield asked(
            "ensemble_dominance",
            lambda _: checks.ensemble_dominance(
                members, x, y, batch=examined.batch, thresholds=limits
            ),
        )
    threat = examined.threat
    if isinstance(threat, Linf | L2 | L1):
        yield asked(
            "unstable",
            lambda _: checks.unstable(
                examined.opened(examined.main_view),
                x,
                y,
                threat=threat,
                generator=examined.generator("unstable", seed),
                thresholds=limits,
            ),
        )


def _bad(function: Any, *, examined: Examined, name: str) -> Check:
    """Images without a usable gradient of one loss."""
    x, y = examined.images()
    return checks.grad_bad(
        function,
        x,
        y,
        loss=LOSSES[name],
        name=name,
        batch=examined.batch,
        thresholds=examined.thresholds,
    )


def _estimator(examined: Examined) -> Check:
    """ART's gradient of the deployed function beside autograd's."""
    x, y = examined.images(SHOWN)
    count = examined.measured.counts[examined.subject.name]
    classes = examined.measured.clean[examined.subject.name].outcome(count).classes
    estimator = examined.model.as_art(input_shape=examined.split.shape, nb_classes=classes)
    given = estimator.loss_gradient(x.cpu().numpy(), y.cpu().numpy())
    image = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(examined.opened("deployed")(image), y, reduction="sum")
    (own,) = torch.autograd.grad(loss, image)
    return checks.grad_deployed(torch.as_tensor(given).to(own), own, thresholds=examined.thresholds)


def doubled(examined: Examined, factor: int = 2) -> list[tuple[str, dict[str, Any]]]:
    """APGD on cross-entropy and on DLR with that many times the base's steps."""
    steps = [
        steps_of(one.task.use.params)
        for one in examined.cells()
        if one.task.use is not None and one.task.use.use == "apgd-ce"
    ]
    params = {"steps": factor * max(steps, default=100)}
    return [("apgd-ce", params), ("apgd-dlr", params)]


def both(
    examined: Examined, attacks: Sequence[tuple[str, dict[str, Any]]], threat: Threat | None = None
) -> torch.Tensor | None:
    """What several attacks together leave of the subset; None where none could run."""
    outcomes = [examined.attacked(use, params, threat=threat) for use, params in attacks]
    ran = [scoring.shares(one.bits) for one in outcomes if one is not None]
    return checks.all_right(ran) if ran else None


def _unbounded(examined: Examined) -> Check:
    threat, size = examined.threat, math.prod(examined.split.shape)
    whole: dict[type, Threat] = {
        Linf: Linf(1.0),
        L2: L2(math.sqrt(size)),
        L1: L1(float(size)),
    }
    q = both(examined, doubled(examined), whole[type(threat)])
    if q is None:
        why = examined.unable("No gradient attack can run on this model.")
        return checks.not_run("unbounded", why)
    return checks.unbounded(q, thresholds=examined.thresholds)


def _converged(examined: Examined, base: torch.Tensor | None) -> Check:
    if base is None:
        return checks.converged_steps(None, torch.zeros(0), thresholds=examined.thresholds)
    q = both(examined, doubled(examined))
    if q is None:
        why = examined.unable("No gradient attack can run on this model.")
        return checks.not_run("converged_steps", why)
    return checks.converged_steps(base, q, thresholds=examined.thresholds)


def _one_step(examined: Examined, base: torch.Tensor | None) -> Check:
    outcome = examined.attacked("fgsm", {})
    if outcome is None:
        return checks.not_run("one_step", examined.unable("FGSM cannot run on this model."))
    return checks.one_step(base, scoring.shares(outcome.bits), thresholds=examined.thresholds)


def _eot(examined: Examined) -> Check:
    if examined.closed:
        why = "The model is deterministic, or all of its functions are known."
        return checks.not_applicable("eot_k", why)
    draws = {
        getattr(one.task.use.params, "eot", 1): one
        for one in examined.cells()
        if one.task.use is not None
        and one.task.use.use == "apgd-ce"
        and one.task.view_name == "deployed"
    }
    known = sorted(k for k in draws if k > 1 and 2 * k in draws)
    count = examined.measured.counts[examined.subject.name]
    if known:
        plain, double = (examined.q(draws[k * known[-1]].job.outcome(count)) for k in (1, 2))
    else:
        outcomes = [
            examined.attacked("apgd-ce", {"steps": 20, "eot": k}, view="deployed") for k in (10, 20)
        ]
        if None in outcomes:
            why = examined.unable("APGD over several draws cannot run on this model.")
            return checks.not_run("eot_k", why)
        plain, double = (scoring.shares(one.bits) for one in outcomes if one is not None)
    one = examined.frozen()
    frozen = examined.attacked("apgd-ce", {"steps": 100}, view="deployed", subject=one)
    if frozen is None:
        why = examined.unable("APGD cannot run on a frozen draw of this model.")
        return checks.not_run("eot_k", why)
    x, y = examined.images()
    with attacking(one.model), torch.no_grad():
        clean = (one.model.serve(0)(x).argmax(1) == y).cpu()
    return checks.eot_k(
        plain, double, scoring.shares(frozen.bits), clean=clean, thresholds=examined.thresholds
    )


def _reweighed(examined: Examined, base: torch.Tensor | None) -> Check:
    if not averages(examined.subject, examined.split.shape):
        why = "The model serves, or expects, no average of members."
        return checks.not_applicable("ensemble_reweight", why)
    outcomes = list(examined.outcomes("mora").values())
    if not outcomes:
        return checks.not_run(
            "ensemble_reweight",
            "No attack weighed the members anew: protocol 'adaptive' does, with "
            "phalanx-ensemble-attacks (pip install ./plugins/ensemble_attacks).",
        )
    return checks.ensemble_reweight(
        base, checks.all_right(outcomes), thresholds=examined.thresholds
    )


def _adaptive(examined: Examined) -> Iterator[Check]:
    """Whether the plugin's adaptive attack is there, and the strongest."""
    model = examined.model
    cells = examined.cells()
    count = examined.measured.counts[examined.subject.name]

    def outcomes(mine: bool) -> list[torch.Tensor]:  # noqa: FBT001  # private, one use
        return [
            examined.q(one.job.outcome(count))
            for one in cells
            if (one.task.protocol == ADAPTIVE) is mine
        ]

    own, rest = outcomes(True), outcomes(False)  # noqa: FBT003
    asked = any(one.protocol == ADAPTIVE for one in examined.plan.also)
    if own:
        yield checks.adaptive(
            checks.all_right(own), checks.all_right(rest or own), thresholds=examined.thresholds
        )
    elif asked or model.stochastic or len(examined.members) > 1:
        missing = checks.adaptive(None, torch.zeros(0), thresholds=examined.thresholds)
        why = (
            "The defense's adaptive attack did not run; the failed cells say why."
            if asked
            else "No adaptive attack ran: protocol 'adaptive' runs those that the defense's plugin "
            "names."
        )
        yield missing.model_copy(update={"reason": why})
    else:
        why = "For a single, deterministic model the standard set is the adaptive attack."
        yield checks.not_applicable("adaptive", why)


def _path(examined: Examined, converged: Status) -> Iterator[Check]:
    """APGD-CE again, watched: silent success, unfinished ascent, a loss that misleads."""
    names, limits = ("silent", "incomplete", "loss_rank"), examined.thresholds

    def make() -> list[dict[str, Any]]:
        x, y = examined.images()
        function = examined.opened(examined.main_view)
        watched = function if not examined.model.stochastic else examined.opened("expected")
        attack = APGDCE(APGDConfig(threat=examined.threat, steps=100))
        paths: list[checks.Path] = []
        left: list[torch.Tensor] = []
        size = examined.batch
        with attacking(examined.model), attacking(function), attacking(watched):
            for images, labels in zip(x.split(size), y.split(size), strict=True):
                observer = checks.PathObserver(watched, labels)
                final = attack(
                    _Declared(function, rowwise=examined.closed),
                    images,
                    labels,
                    generator=examined.generator("path", examined.loop.maker.seed, len(paths)),
                    observe=observer,
                )
                with torch.no_grad():
                    left.append((watched(final).argmax(1) == labels).cpu())
                paths.append(observer.path())
        path, right = checks.joined(paths), torch.cat(left)
        found = [
            checks.silent(path, right, thresholds=limits),
            checks.incomplete(path, right, converged=converged, thresholds=limits),
            checks.loss_rank(path, thresholds=limits),
        ]
        return [one.model_dump(mode="json") for one in found]

    try:
        made = examined.kept_value(f"path:{converged}", make)
        yield from (Check.model_validate(one) for one in made)
    except NOT_OF_THE_MODEL:
        raise
    except Exception as error:  # somebody's network raises anything
        told = f"It could not run: {type(error).__name__}: {error}."
        yield from (checks.not_run(name, told) for name in names)


class _Declared(torch.nn.Module):
    """A function that says whether its rows are independent."""

    def __init__(self, module: torch.nn.Module, *, rowwise: bool) -> None:
        super().__init__()
        self.module, self.rowwise = module, rowwise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.module(x)
        return scores


def tried(name: str, make: Callable[[], Check]) -> Check:
    """A check, or why it could not run: somebody's network raises anything."""
    try:
        return make()
    except NOT_OF_THE_MODEL:
        raise
    except PhalanxError as error:
        return checks.not_run(name, f"It could not run: {error}.")
    except Exception as error:
        return checks.not_run(name, f"It could not run: {type(error).__name__}: {error}.")
