"""`phalanx.train`: run folders, resume, budgets, interruption, and what is refused."""

import json
import signal

import pytest
import torch

import phalanx
from phalanx.errors import ArtifactError, ConfigError, DataError, OutputError, TrainingError
from phalanx.training.artifacts import open_run
from phalanx.training.files import read_json

CONFIG = {
    "seed": 1,
    "data": {"use": "digits", "limit": 96},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {"epochs": 3, "batch_size": 32},
}


def with_training(**keys):
    return {**CONFIG, "training": {**CONFIG["training"], **keys}}


class Watch:
    """Counts what it sees; acts after so many batches."""

    def __init__(self, act=None, after=0):
        self.batches, self.epochs, self.started = 0, [], []
        self.act, self.after = act, after

    def phase_started(self, phase, *, epochs, batches, done):
        self.started.append((phase, epochs, batches, done))

    def batch_finished(self, phase):
        self.batches += 1
        if self.act and self.batches == self.after:
            self.act()

    def epoch_finished(self, metrics):
        self.epochs.append(metrics)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return phalanx.train(CONFIG, out=tmp_path_factory.mktemp("run") / "out")


def test_a_run_folder_says_what_it_is(finished):
    manifest = read_json(finished.path / "manifest.json")
    assert manifest["sha256"] == finished.sha256
    assert manifest["config"]["defense"]["use"] == "none"
    assert manifest["threads"] == 1
    assert manifest["seed"] == 1
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [phase["phase"] for phase in manifest["phases"]] == ["fit"]
    # one network, three epochs of 96 images: one forward and one backward each
    assert manifest["phases"][0]["forwards"] == manifest["phases"][0]["backwards"] == 288
    assert finished.finished


def test_metrics_have_a_line_an_epoch(finished):
    assert [line["epoch"] for line in finished.metrics] == [1, 2, 3]
    assert all(line["forwards_per_example"] == 1 for line in finished.metrics)
    assert finished.metrics[-1]["loss"] < finished.metrics[0]["loss"]


def test_a_weights_file_alone_is_enough(finished, tmp_path):
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((finished.path / "weights.safetensors").read_bytes())
    model = phalanx.load(copy)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), finished.model(x))
    assert model.task.name == "digits"


def test_the_configs_json_trains_the_same_weights(finished, tmp_path):
    again = phalanx.train(finished.path / "config.json", out=tmp_path / "again")
    assert again.sha256 == finished.sha256


def test_a_finished_run_is_returned_as_it_is(finished):
    watch = Watch()
    again = phalanx.train(CONFIG, out=finished.path, resume=True, progress=watch)
    assert again.sha256 == finished.sha256
    assert watch.batches == 0


def test_adversarial_passes_are_counted(tmp_path):
    config = {
        **CONFIG,
        "defense": {
            "use": "pgd-at",
            "params": {"backbone": "small_cnn", "attack": {"use": "pgd", "params": {"steps": 4}}},
        },
    }
    run = phalanx.train(config, out=tmp_path / "run")
    assert run.metrics[0]["forwards_per_example"] == 5
    assert run.metrics[0]["backwards_per_example"] == 5


def test_validation_is_logged_and_changes_no_weight(tmp_path):
    held_out = {**CONFIG, "data": {"use": "digits", "validation": 0.9}}
    run = phalanx.train(held_out, out=tmp_path / "run")
    assert 0.0 <= run.metrics[-1]["validation_accuracy"] <= 1.0
    assert run.metrics[-1]["forwards_per_example"] == 1


def test_a_time_budget_stops_at_a_checkpoint(tmp_path):
    whole = phalanx.train(CONFIG, out=tmp_path / "whole")
    part = phalanx.train(CONFIG, out=tmp_path / "part", time_budget=0.0)
    assert not part.finished
    assert part.sha256 == ""
    assert not (tmp_path / "part" / "manifest.json").exists()
    with pytest.raises(ArtifactError, match=r"not trained to its end; go on with `phalanx train"):
        open_run(tmp_path / "part")
    watch = Watch()
    resumed = phalanx.train(CONFIG, out=tmp_path / "part", resume=True, progress=watch)
    assert watch.started == [("fit", 3, 3, 1)]
    assert resumed.sha256 == whole.sha256


def test_ctrl_c_writes_a_checkpoint(tmp_path):
    watch = Watch(lambda: signal.raise_signal(signal.SIGINT), after=5)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        phalanx.train(CONFIG, out=tmp_path / "run", progress=watch)
    state = read_json(tmp_path / "run" / "state.json")
    assert (state["running"]["epoch"], state["running"]["index"]) == (1, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_momentum_is_resumed(tmp_path):
    """An optimizer that forgot its momentum would end elsewhere."""
    config = with_training(optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.1})
    whole = phalanx.train(config, out=tmp_path / "whole")
    phalanx.train(config, out=tmp_path / "part", time_budget=0.0)
    assert phalanx.train(config, out=tmp_path / "part", resume=True).sha256 == whole.sha256


def test_bfloat16_trains(tmp_path):
    run = phalanx.train(with_training(precision="bfloat16"), out=tmp_path / "run")
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_another_configs_folder_is_refused(finished):
    with pytest.raises(ArtifactError, match="already holds a run; go on with --resume"):
        phalanx.train(CONFIG, out=finished.path)
    with pytest.raises(ArtifactError, match="holds a run of another config"):
        phalanx.train(with_training(epochs=4), out=finished.path, resume=True)
    with pytest.raises(ArtifactError, match="was trained with 1 threads, asked for: 2"):
        phalanx.train(with_training(threads=2), out=finished.path, resume=True)


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_checkpoint_says_the_way_out(tmp_path, damage):
    phalanx.train(CONFIG, out=tmp_path / "run", time_budget=0.0)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*.safetensors")
    data = bytearray(checkpoint.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    if damage == "missing":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    with pytest.raises(ArtifactError, match="--resume --restart-phase"):
        phalanx.train(CONFIG, out=tmp_path / "run", resume=True)
    run = phalanx.train(CONFIG, out=tmp_path / "run", resume=True, restart_phase=True)
    assert run.finished


def test_damaged_weights_are_refused(finished, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("manifest.json", "weights.safetensors"):
        (folder / name).write_bytes((finished.path / name).read_bytes())
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged: its sha256"):
        phalanx.load(folder)


def test_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="that Phalanx did not write"):
        phalanx.load(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"is not a run folder: it has no manifest\.json"):
        phalanx.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        phalanx.load(tmp_path / "nowhere")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    config = with_training(optimizer={"name": "sgd", "lr": 1e20}, epochs=20)
    with pytest.raises(TrainingError, match=r"the loss of phase 'fit' is (nan|inf) at epoch \d+"):
        phalanx.train(config, out=tmp_path / "run")


def test_all_problems_of_a_config_are_told_at_once(tmp_path):
    wrong = {"defense": {"use": "nonne"}, "training": {"epoch": 3}, "data": {"use": "digitz"}}
    with pytest.raises(ConfigError) as caught:
        phalanx.train(wrong, out=tmp_path / "run")
    text = str(caught.value)
    assert "unknown defense 'nonne'; did you mean 'none'?" in text
    assert "training.epoch: unknown key; did you mean 'epochs'?" in text
    assert "unknown data set 'digitz'; did you mean 'digits'?" in text
    assert not (tmp_path / "run").exists()


def test_missing_data_leave_nothing_behind(tmp_path):
    config = {**CONFIG, "data": {"use": "mnist"}}
    with pytest.raises(DataError, match="mnist"):
        phalanx.train(config, out=tmp_path / "run", data_root=tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_observers_of_plugins_see_the_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        phalanx.default_registry(), "notify", lambda hook, **given: seen.append((hook, given))
    )
    phalanx.train(CONFIG, out=tmp_path / "run")
    names = [hook.removeprefix("phalanx_") for hook, _ in seen]
    assert names == ["run_started", *["epoch_finished"] * 3, "run_finished"]
    assert json.dumps(seen[1][1]["metrics"])


def test_the_order_of_phase_patterns_survives_config_json(tmp_path):
    config = {
        **CONFIG,
        "training": {"batch_size": 32, "phases": {"f*": {"epochs": 1}, "*": {"epochs": 2}}},
    }
    run = phalanx.train(config, out=tmp_path / "run")
    assert len(run.metrics) == 2
    again = phalanx.train(tmp_path / "run" / "config.json", out=tmp_path / "run", resume=True)
    assert again.sha256 == run.sha256


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ArtifactError, match=r"has a config\.json but no state\.json"):
        phalanx.train(CONFIG, out=tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file; name a folder"):
        phalanx.train(CONFIG, out=tmp_path / "file")


def test_a_partial_optimizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="optimizer replaces the phase's whole optimizer: write"):
        phalanx.train(with_training(optimizer={"clip_grad": 1.0}), out=tmp_path / "run")


def test_a_backbone_that_does_not_fit_is_told_with_its_key(tmp_path):
    config = {**CONFIG, "defense": {"use": "none", "params": {"backbone": "lenet6"}}}
    with pytest.raises(ConfigError, match=r"defense\.params\.backbone\.use: no classifier"):
        phalanx.train(config, out=tmp_path / "run")


def test_a_step_that_fails_names_its_place(tmp_path):
    """Batch normalisation refuses the last batch of one image where maps are 1x1."""
    config = {
        **CONFIG,
        "data": {"use": "digits", "limit": 17},
        "defense": {
            "use": "none",
            "params": {"backbone": {"use": "resnet18_cifar", "params": {"width": 2}}},
        },
        "training": {"epochs": 1, "batch_size": 16},
    }
    with pytest.raises(TrainingError, match=r"phase 'fit' failed at epoch 1, batch 2 \(1 images\)"):
        phalanx.train(config, out=tmp_path / "run")


def test_the_loop_keeps_no_state_but_tensors(tmp_path):
    """`begin` may freeze, `before_epoch` may draw: a resumed run ends as an uninterrupted one."""
    from dataclasses import dataclass

    from phalanx.data import load_data
    from phalanx.phase import JointPhase
    from phalanx.training.checkpoint import Checkpoints
    from phalanx.training.trainer import Settings, Stopped, Trainer

    @dataclass(kw_only=True)
    class Freezing(JointPhase):
        def begin(self, ctx):
            next(self.module.parameters()).requires_grad_(False)

        def before_epoch(self, ctx):
            self.scale = float(torch.rand((), generator=ctx.generator("scale")))

        def objective(self, batch, ctx):
            loss = torch.nn.functional.cross_entropy(self.module(batch.x), batch.y)
            return {"loss_of_scale": self.scale * loss}

    def outcome(folder, stops):
        data = load_data("digits", limit=96)
        while True:
            torch.manual_seed(0)
            from phalanx.config import Backbone
            from phalanx.nn import MeanEnsemble, build_member

            model = MeanEnsemble([build_member(Backbone(use="small_cnn"), data.task)])
            phases = [
                Freezing(name="one", module=model, epochs=2, batch_size=32),
                type("Plain", (Freezing,), {"begin": lambda self, ctx: None})(
                    name="two", module=model, epochs=2, batch_size=32, depends_on=("one",)
                ),
            ]
            folder.mkdir(exist_ok=True)
            count = iter(range(100))
            settings = Settings(seed=1, should_stop=lambda c=count: stops and next(c) == 1)
            trainer = Trainer(
                model,
                data,
                folder=folder,
                checkpoints=Checkpoints.open(folder, config_hash="x", threads=1),
                settings=settings,
                progress=Watch(),
            )
            try:
                trainer.run(phases)
            except Stopped:
                continue
            return model.state_dict()

    whole, parts = outcome(tmp_path / "whole", False), outcome(tmp_path / "parts", True)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
