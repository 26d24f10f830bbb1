"""Our attacks in an ART pipeline: any `Attack` as an evasion attack of ART."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from phalanx import randomness
from phalanx.attack import Attack, Targeted, attacking
from phalanx.errors import AttackInapplicable


def as_art_attack(
    attack: Attack[Any], estimator: PyTorchClassifier, *, seed: int = 0
) -> ArtEvasion:
    """One of our attacks, as ART's metrics and trainers take it.

    Args:
        attack: any attack, with its threat.
        estimator: ``model.as_art()``, or any PyTorch classifier of ART on images in [0, 1].
        seed: keys the attack's draws, with the number of the batch.

    Raises:
        AttackInapplicable: if the estimator's images are not in [0, 1].
    """
    return ArtEvasion(estimator, attack, seed=seed)


class ArtEvasion(EvasionAttack):
    """An evasion attack of ART that runs an attack of ours on the estimator's module.

    Attributes:
        attack: ours.
        seed: keys its draws.
        batch_size: images at a time.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        "attack",
        "seed",
        "batch_size",
        "targeted",
    ]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        attack: Attack[Any],
        *,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        super().__init__(estimator=estimator)
        clip = estimator.clip_values
        if clip is None or not np.array_equal(np.asarray(clip), [0.0, 1.0]):
            raise AttackInapplicable(
                f"our attacks work on images in [0, 1], and the estimator's clip_values are "
                f"{clip}: build it with clip_values=(0, 1)"
            )
        self.attack = attack
        self.seed = seed
        self.batch_size = batch_size

    def generate(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Adversarial examples of `x` ``(N, C, H, W)`` in [0, 1].

        Args:
            x: clean images.
            y: labels ``(N,)`` or one-hot ``(N, K)``, to be reached if `targeted` is set; absent:
                the estimator's own predictions.
            kwargs: ignored.
        """
        device = self.estimator.device
        if y is None:
            y = self.estimator.predict(x, batch_size=self.batch_size)
        labels = torch.from_numpy(np.asarray(y)).to(device)
        labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.flatten()
        images = torch.from_numpy(np.asarray(x, dtype=np.float32)).to(device)
        found = []
        with attacking(self.estimator.model):
            for number, start in enumerate(range(0, len(images), self.batch_size)):
                rows = slice(start, start + self.batch_size)
                goal = labels[rows].long()
                found.append(
                    self.attack(
                        self._scores(),
                        images[rows],
                        Targeted(goal) if self.targeted else goal,
                        generator=randomness.generator(self.seed, "art", number, device=device),
                    )
                )
        return torch.cat([images[:0], *found]).cpu().numpy()

    def _scores(self) -> Any:
        """The module itself, or its composition with the estimator's preprocessing defences."""
        if not self.estimator.preprocessing_operations:
            return self.estimator.model

        def through(images: Tensor) -> Tensor:
            scores: Tensor = self.estimator._predict_framework(images)[0]
            return scores

        return through
