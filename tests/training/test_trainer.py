"""What a checkpoint is of: never of half an epoch's beginning."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from phalanx.config import Backbone
from phalanx.data import load_data
from phalanx.data.sets import ArraySplit
from phalanx.errors import DataError
from phalanx.nn import MeanEnsemble, build_member
from phalanx.phase import Batch, JointPhase
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.settings import Settings
from phalanx.training.trainer import Trainer


class Quiet:
    def phase_started(self, phase, *, epochs, batches, done):
        pass

    def batch_finished(self, phase):
        pass

    def epoch_finished(self, metrics):
        pass


class Failing(ArraySplit):
    """Fails once, at the first batch of its second pass."""

    passes = 0

    def stream(self, batches) -> Generator[Batch, None, None]:
        self.passes += 1
        if self.passes == 2:
            raise DataError("a file is gone")
        yield from super().stream(batches)


@dataclass(kw_only=True)
class Shrinking(JointPhase):
    """Halves the classifier's weights when an epoch begins, so twice is not once."""

    def before_epoch(self, ctx):
        with torch.no_grad():
            self.module.members[0].backbone.get_classifier().weight.mul_(0.5)

    def objective(self, batch, ctx):
        return {"loss": nn.functional.cross_entropy(self.module(batch.x), batch.y)}


def trained(folder, data):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = MeanEnsemble([build_member(Backbone(use="small_cnn"), data.task)])
    trainer = Trainer(
        model,
        data,
        folder=folder,
        checkpoints=Checkpoints.open(folder, config_hash="x", threads=1),
        settings=Settings(seed=1),
        progress=Quiet(),
    )
    trainer.run([Shrinking(name="fit", module=model, epochs=2, batch_size=32)])
    return model


def test_a_file_that_is_gone_when_an_epoch_begins(tmp_path):
    data = load_data("digits", limit=64)
    whole = trained(tmp_path / "whole", data)
    bad = replace(data, train=Failing(data.train.images, data.train.labels, scale=16))
    with pytest.raises(DataError, match="a file is gone"):
        trained(tmp_path / "part", bad)
    part = trained(tmp_path / "part", data)
    own, other = whole.state_dict(), part.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
