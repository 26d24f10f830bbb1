"""ART's evasion attacks as attacks of ours: ``art/DeepFool``.

Everything that ART does not do by itself is done around it: the budget comes from the threat,
every draw from the generator, minimum-norm examples over the budget count as failures, and what
goes wrong inside ART says so in one sentence.
"""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

import art
import art.attacks.evasion as evasion
import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from torch import Generator, Tensor, nn

from phalanx import randomness
from phalanx.art import parameters
from phalanx.art.config import ArtAttackConfig, refusal, require_packages
from phalanx.art.estimator import Estimator
from phalanx.attack import Attack, Observer, Scores, Targeted, may_drop_rows
from phalanx.attacks.balls import per_row, project, within
from phalanx.errors import AttackInapplicable, ConfigError, PhalanxError, UnknownComponentError
from phalanx.specs import L1, L2, Linf, NoBall, Threat

_WANT_PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")
_PATCH = "AdversarialPatchPyTorch"


class ArtAttack(Attack[ArtAttackConfig]):
    """An evasion attack of ART by its class name: ``ArtAttack("DeepFool", threat=Linf(0.1))``.

    Attacks that take an `eps` get the threat's. All others look for the nearest adversarial
    example: an example of theirs outside the threat is given up, its clean image returned, so
    the image counts as robust. ART offers no path, so `observe` is never called.

    Args:
        config: a whole config, or the name of ART's class.
        params: beside a name, the config's other fields: `threat` and the class's parameters.

    Raises:
        UnknownComponentError: if ART has no such evasion attack.
        AttackInapplicable: if it cannot attack image classifiers in PyTorch, or lacks a package.
        ConfigError: for parameters that the class does not take, or any beside a config.
        ThreatModelError: for a threat that the class does not take.
    """

    supports: ClassVar[tuple[type[Threat], ...]] = (Linf, L2, L1, NoBall)

    def __init__(self, config: ArtAttackConfig | str, **params: Any) -> None:
        if isinstance(config, str):
            reason = refusal(config)
            if reason is not None:
                raise AttackInapplicable(reason)
            config = ArtAttackConfig(name=config, **params)
        elif params:
            problems = [f"{key}: set it in the config, not beside it" for key in params]
            raise ConfigError(problems, source="ArtAttack")
        super().__init__(config)
        reason = refusal(config.name, self.threat)
        if reason is not None:
            raise AttackInapplicable(reason)
        require_packages(config)
        self.kind = _find(config.name)
        parameters.check(config, self.kind, self.threat)

    def __call__(
        self,
        model: Scores,
        x: Tensor,
        y: Tensor | Targeted,
        *,
        generator: Generator,
        observe: Observer | None = None,
    ) -> Tensor:
        """Adversarial examples of ART's attack; see `Attack`.

        Where the model's rows are independent, images that it gets wrong already stay as they
        are: several of ART's attacks would lead them away from the wrong class.

        Raises:
            AttackInapplicable: whatever ART raised, chained, or if it cannot aim at labels.
        """
        name = self.config.name
        labels = y.labels if isinstance(y, Targeted) else y
        if isinstance(y, Targeted) and not parameters.can_target(name, self.kind):
            raise AttackInapplicable(f"ART's {name} cannot aim at labels; attack without targets")
        if name == "TargetedUniversalPerturbation" and not isinstance(y, Targeted):
            raise AttackInapplicable(f"ART's {name} needs labels to aim at; pass Targeted(labels)")
        if not len(x) or getattr(self.threat, "eps", None) == 0.0:
            return x.clone()
        seed = torch.randint(2**31 - 1, (), generator=generator, device=generator.device)
        with randomness.seeded("art", int(seed), "clean"), torch.no_grad():
            scores = model(x)
        module = _Module(model, x, probabilities=name in _WANT_PROBABILITIES)
        estimator = Estimator(module, None, tuple(x.shape[1:]), scores.shape[1])
        one_hot: Tensor | None = nn.functional.one_hot(labels, scores.shape[1])
        if name == "SaliencyMapMethod" and not isinstance(y, Targeted):
            one_hot = None  # to this class, labels are always targets; without, it picks its own
        # ART divides by zero without harm: SquareAttack in windows that are still clean
        with randomness.seeded("art", int(seed)), np.errstate(divide="ignore", invalid="ignore"):
            found = self._generate(estimator, x, one_hot, targeted=isinstance(y, Targeted))
        finite = found.flatten(1).isfinite().all(1)
        found = torch.where(per_row(finite, x), found.clamp(0.0, 1.0), x)
        found = self._within(found, x)
        if may_drop_rows(model) and not isinstance(y, Targeted):
            found = torch.where(per_row(scores.argmax(1) != labels, x), x, found)
        return found

    def _generate(
        self, estimator: Estimator, x: Tensor, y: Tensor | None, *, targeted: bool
    ) -> Tensor:
        """What ART's class makes of the images, as a tensor like `x`."""
        images = x.detach().cpu().numpy()
        labels = None if y is None else y.cpu().numpy().astype(np.float32)
        try:
            arguments = parameters.fill(
                self.config, self.kind, self.threat, shape=tuple(x.shape), targeted=targeted
            )
            found = _run(self.config.name, self.kind(estimator, **arguments), images, labels)
        except PhalanxError:
            raise
        except Exception as error:
            what = str(error) or "no message"
            raise AttackInapplicable(
                f"ART's {self.config.name} failed on this model: {type(error).__name__}: {what}"
            ) from error
        return torch.from_numpy(np.asarray(found)).to(x)

    def _within(self, found: Tensor, x: Tensor) -> Tensor:
        """Examples within the threat: projected if the class has a budget, else given up."""
        if isinstance(self.threat, NoBall):
            return found
        if parameters.takes_budget(self.config.name, set(parameters.accepted_by(self.kind))):
            return project(found, x, self.threat)
        return torch.where(per_row(within(found, x, self.threat), x), found, x)


class _Module(nn.Module):
    """Scores as a module for ART. It owns no weights: their modes and flags are the caller's."""

    def __init__(self, model: Scores, x: Tensor, *, probabilities: bool) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that ART's train and eval do not reach it
        # empty, but tells device and dtype, also to the attacks that ask the first parameter
        self.like = nn.Parameter(x.new_empty(0), requires_grad=False)
        self._probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` of any real dtype to scores or probabilities ``(N, K)``."""
        scores = self._model[0](x.to(self.like))
        return scores.softmax(1) if self._probabilities else scores


def names() -> list[str]:
    """ART's evasion attacks that can be asked for here, sorted."""
    return sorted(
        name
        for name in dir(evasion)
        if _is_attack(getattr(evasion, name)) and refusal(name) is None
    )


def _find(name: str) -> type[Any]:
    found = getattr(evasion, name, None)
    if _is_attack(found):
        kind: type[Any] = found  # type: ignore[assignment]  # just tested
        return kind
    known = names()
    by_lower = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean 'art/{by_lower[near[0]]}'? " if near else ""
    raise UnknownComponentError(
        f"unknown attack 'art/{name}': ART {art.__version__} has no evasion attack {name}; "
        f"{hint}it has: {', '.join(known)}"
    )


def _is_attack(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, EvasionAttack)


def _run(name: str, attack: Any, x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """Call `generate` as the class wants it."""
    for part in getattr(attack, "attacks", ()):  # AutoAttack's, whose bars it cannot switch off
        part.verbose = False
    if name == "ShadowAttack":  # takes one image at a time
        rows = range(len(x))
        return np.concatenate([attack.generate(x[i : i + 1], _row(y, i)) for i in rows])
    if name == _PATCH:
        attack.generate(x=x, y=y)
        patched: np.ndarray = attack.apply_patch(x, scale=attack.scale_max)
        return patched
    found: np.ndarray = attack.generate(x=x, y=y)
    return found


def _row(y: np.ndarray | None, i: int) -> np.ndarray | None:
    return None if y is None else y[i : i + 1]
