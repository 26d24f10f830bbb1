"""Any defense, pruned by ADMM while it trains and retrained masked.

Ye et al., "Adversarial Robustness vs Model Compression, or Both?", ICCV 2019, arXiv 1903.12561: of
their three stages these are the second and third, ADMM and masked retraining of as many epochs. The
first, a dense robust network to begin with, is a run file's ``[init]``; MoL prunes from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

from phalanx.api import ConfigError, DefendedModel, Defense, Phase, Pruner, Task, with_retraining
from phalanx_admm.config import PrunedConfig


class Pruned(Defense[PrunedConfig]):
    """The base's model, its phases pruned and each followed by ``<name>/retrain``.

    Raises:
        ConfigError: if the base refuses its parameters, which are named within `base`.
    """

    def __init__(self, config: PrunedConfig, task: Task) -> None:
        super().__init__(config, task)
        try:
            self.base: Defense = config.base.create(task)
        except ConfigError as error:
            raise _within_base(error, "defense.params.") from error

    @property
    def warm_start_reason(self) -> str:
        """The base's."""
        return self.base.warm_start_reason

    def build(self) -> DefendedModel:
        """The base's model.

        Raises:
            ConfigError: if the base refuses its parameters, the model has nothing to prune, or no
                phase is chosen.
        """
        try:
            model = self.base.build()
        except ConfigError as error:
            raise _within_base(error) from error
        self._pruner().check(model)
        self.phases(model)  # a pattern that fits none is told before anything is trained
        return model

    def phases(self, model: DefendedModel) -> Sequence[Phase]:
        """The base's phases under their own names, and the retrainings."""
        return with_retraining(self.base.phases(model), self._pruner(), chosen=self.config.phases)

    def _pruner(self) -> Pruner:
        pruner: Pruner = self.config.pruner.create()
        return pruner


def _within_base(error: ConfigError, start: str = "") -> ConfigError:
    """The same problems, of the base's keys; `start` is where they stand already."""
    problems = [f"{start}base.params.{one.removeprefix(start)}" for one in error.problems]
    return ConfigError(problems, source=error.source)
