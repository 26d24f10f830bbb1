"""Weights that are NaN are neither kept nor loaded."""

import pytest
import torch

import phalanx
from phalanx.errors import ArtifactError, TrainingError
from phalanx.training.artifacts import open_run, write_weights
from phalanx.training.checkpoint import Checkpoints

CONFIG = {
    "data": {"use": "digits", "limit": 32},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {"epochs": 1, "batch_size": 32},
}
NAN = float("nan")
PLACE = {"epoch": 0, "index": 1}
COST = {"log_bytes": 0, "forwards": 1, "backwards": 1, "examples": 1}


@pytest.fixture
def run(tmp_path):
    return phalanx.train(CONFIG, out=tmp_path / "run")


def test_a_checkpoint_of_nan_is_refused_and_the_one_before_stands(tmp_path):
    checkpoints = Checkpoints.open(tmp_path, config_hash="x", threads=1)
    good = {"model/w": torch.ones(2), "metric/share": torch.tensor(NAN)}
    checkpoints.save(good, phase="fit", **PLACE, **COST)
    before = (tmp_path / "state.json").read_bytes()
    message = (
        "phase 'fit' has diverged: 1 of its tensors hold NaN, such as model/w; the checkpoint "
        "before is kept. Train into another --out with a lower training.optimizer lr, or a "
        "clip_grad"
    )
    for write in (
        lambda: checkpoints.save({"model/w": torch.tensor([NAN])}, phase="fit", **PLACE, **COST),
        lambda: checkpoints.finish("fit", {"model/w": torch.tensor([NAN])}, **COST),
    ):
        with pytest.raises(TrainingError) as caught:
            write()
        assert str(caught.value) == message
        assert (tmp_path / "state.json").read_bytes() == before
    assert checkpoints.load_running("fit") is not None


def test_weights_of_nan_are_refused(run, tmp_path):
    next(run.model.parameters()).data[0] = NAN
    (tmp_path / "bad").mkdir()
    write_weights(tmp_path / "bad", run.model, run.config, run.task, {})
    with pytest.raises(
        ArtifactError, match=r"holds NaN in 1 of its \d+ tensors, such as"
    ) as caught:
        phalanx.load(tmp_path / "bad")
    assert "the training that wrote it diverged; train again with a lower" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"sha', "is damaged: Unterminated string"),
        ("[]", "is damaged: it names no sha256"),
        ("{}", "is damaged: it names no sha256"),
        (None, "is not a run folder: it has no manifest.json"),
    ],
)
def test_without_a_manifest_the_weights_say_what_they_are(run, text, told):
    manifest = run.path / "manifest.json"
    manifest.unlink()
    (run.path / "state.json").unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(ArtifactError) as caught:
        open_run(run.path)
    assert told in str(caught.value)
    weights = run.path / "weights.safetensors"
    assert str(caught.value).endswith(f"; {weights} alone can be evaluated, unchecked")
    assert open_run(weights).sha256 == run.sha256


def test_a_truncated_state_says_which_file(tmp_path):
    longer = {**CONFIG, "training": {"epochs": 2, "batch_size": 32}}
    phalanx.train(longer, out=tmp_path / "run", time_budget=0.0)
    state = tmp_path / "run" / "state.json"
    state.write_text(state.read_text()[:20])
    with pytest.raises(ArtifactError, match=r"state\.json is damaged: .*; restore it from a copy"):
        phalanx.train(longer, out=tmp_path / "run", resume=True)
