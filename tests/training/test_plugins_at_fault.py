"""A defense whose own code fails: one message that names its plugin, before anything is written."""

import pytest

import phalanx
from phalanx import registry
from phalanx.config import DefenseConfig
from phalanx.errors import PluginContractError, TrainingError
from phalanx.registry import Registry
from phalanx.training.standard import Undefended


class OddConfig(DefenseConfig):
    """Nothing to set."""


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """A default registry of its own."""
    mine = Registry(discover=False)
    for module in ("phalanx.registry", "phalanx.training.artifacts", "phalanx.training.run"):
        monkeypatch.setattr(f"{module}.default_registry", lambda: mine)
    return mine


def train(out, defense):
    registry.default_registry().defense("odd", config=OddConfig)(defense)
    config = {
        "data": {"use": "digits", "limit": 16},
        "defense": "odd",
        "training": {"epochs": 1, "batch_size": 16},
    }
    return phalanx.train(config, out=out)


class NotBuilt(Undefended):
    """Fails while it is made."""

    def __init__(self, config, task):
        raise LookupError("no table")


class ExitsInBuild(Undefended):
    """Leaves the program."""

    def build(self):
        raise SystemExit(4)


class BuildsText(Undefended):
    """Builds no model."""

    def build(self):
        return "a model"


class _Good(Undefended):
    def build(self):
        from phalanx.config import Backbone
        from phalanx.nn import MeanEnsemble, build_member

        return MeanEnsemble([build_member(Backbone(use="small_cnn"), self.task)])


class NoPhases(_Good):
    """Has no phases."""

    def phases(self, model):
        return None


class OddPhases(_Good):
    """Has phases that are none."""

    def phases(self, model):
        return ["fit"]


@pytest.mark.parametrize(
    ("defense", "reason"),
    [
        (NotBuilt, "cannot be built: LookupError: no table; tell its authors, or leave it out"),
        (
            ExitsInBuild,
            "failed to build its model: SystemExit: 4; tell its authors, or leave it out",
        ),
        (BuildsText, "build() gave str, not a DefendedModel"),
        (NoPhases, "failed to name its phases: TypeError: 'NoneType' object is not iterable; tell"),
        (OddPhases, "phases() gave str, not a Phase"),
    ],
)
def test_it_is_named_and_nothing_is_left_behind(tmp_path, defense, reason):
    with pytest.raises(PluginContractError) as caught:
        train(tmp_path / "run", defense)
    assert str(caught.value).startswith(f"defense 'odd' of plugin 'session': {reason}")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "run").exists()


def test_a_step_that_fails_keeps_the_run(tmp_path):
    from phalanx.phase import JointPhase

    class Fails(JointPhase):
        def objective(self, batch, ctx):
            return {}["loss"]

    class OddStep(_Good):
        """Fails while it trains."""

        def phases(self, model):
            return [Fails(name="fit", module=model, epochs=1, batch_size=16)]

    with pytest.raises(TrainingError, match=r"phase 'fit' failed at epoch 1, batch 1 .*KeyError"):
        train(tmp_path / "run", OddStep)
    assert (tmp_path / "run" / "state.json").exists()
