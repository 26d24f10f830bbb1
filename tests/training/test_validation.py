"""What a phase is judged by, and which epoch's weights it keeps."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import phalanx
from phalanx.attack import attacking
from phalanx.config import UseAttack
from phalanx.data import load_data
from phalanx.errors import ConfigError
from phalanx.nn import MeanEnsemble, Member, Population
from phalanx.phase import JointPhase
from phalanx.regularizer import Regularizer
from phalanx.training.checkpoint import Checkpoints
from phalanx.training.files import read_json
from phalanx.training.trainer import Settings, Trainer
from phalanx.training.transforms import Adversarial
from phalanx.training.validation import CLEAN, ROBUST, functions, judged, validate

CONFIG = {
    "seed": 1,
    "data": {"use": "digits", "limit": 96, "validation": 0.1},
    "defense": {"use": "none", "params": {"backbone": "small_cnn"}},
    "training": {"epochs": 5, "batch_size": 32},
}


def with_training(base=CONFIG, **keys):
    return {**base, "training": {**base["training"], **keys}}


class Quiet:
    def phase_started(self, phase, *, epochs, batches, done):
        pass

    def batch_finished(self, phase):
        pass

    def epoch_finished(self, metrics):
        pass


class Net(nn.Module):
    """A linear classifier with timm's interface."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward_features(self, x):
        return x.flatten(1)

    def forward_head(self, x, *, pre_logits=False):
        return x if pre_logits else self.fc(x)

    def get_classifier(self):
        return self.fc


def network():
    return Member(Net(), nn.Identity())


@dataclass(kw_only=True)
class Fit(JointPhase):
    def objective(self, batch, ctx):
        return {"loss_of_all": nn.functional.cross_entropy(self.module(batch.x), batch.y)}


def phase_of(module, **more):
    return Fit(name="fit", module=module, epochs=1, **more)


@pytest.fixture(scope="module")
def split():
    return load_data("digits", validation=0.1).validation


def same(first, second):
    one, two = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def accuracy(function, split):
    batch = split.fetch(slice(None))
    with torch.no_grad():
        return float((function(batch.x).argmax(1) == batch.y).double().mean())


class TestJudged:
    def test_a_member_is_judged_alone(self, split):
        torch.manual_seed(0)
        model = Population([network(), network()]).eval()
        one = phase_of(model.members[1])
        assert judged(one, model) is model.members[1]
        found = validate(one, model, split, seed=0)
        assert found == {CLEAN: accuracy(model.members[1], split)}

    def test_a_part_that_is_no_classifier_means_the_whole_model(self):
        model = MeanEnsemble([network()])
        assert judged(phase_of(model.members[0].backbone.fc), model) is model

    def test_a_population_is_judged_by_its_members_mean(self, split):
        torch.manual_seed(0)
        model = Population([network(), network()]).eval()
        assert functions(model, 0) == model.members
        mean = sum(accuracy(one, split) for one in model.members) / 2
        assert validate(phase_of(model), model, split, seed=0)[CLEAN] == pytest.approx(mean)

    def test_robust_accuracy_is_under_the_phases_own_attack(self, split):
        """FGSM without a random start, done again by hand."""
        model = MeanEnsemble([network()]).eval()
        images = load_data("digits").train.fetch(slice(0, 500))
        for digit in range(10):  # matched filters: right on most images
            mean = images.x[images.y == digit].mean(0) - images.x.mean(0)
            model.members[0].backbone.fc.weight.data[digit] = mean.flatten()
        attack = UseAttack(use="fgsm", params={"threat": "linf:0.02"}).create()
        chosen = phase_of(model, transforms=(Adversarial(attack),), select="best-validation")
        found = validate(chosen, model, split, seed=0)
        batch = split.fetch(slice(None))
        with attacking(model):
            x = batch.x.clone().requires_grad_()
            nn.functional.cross_entropy(model(x), batch.y).backward()
            moved = (batch.x + 0.02 * x.grad.sign()).clamp(0, 1)
            right = float((model(moved).argmax(1) == batch.y).double().mean())
        assert found == {CLEAN: pytest.approx(accuracy(model, split)), ROBUST: pytest.approx(right)}
        assert found[ROBUST] < found[CLEAN]

    def test_without_a_choice_no_attack_is_run(self, split):
        model = MeanEnsemble([network()]).eval()
        attack = UseAttack(use="fgsm", params={"threat": "linf:0.02"}).create()
        only = validate(phase_of(model, transforms=(Adversarial(attack),)), model, split, seed=0)
        assert set(only) == {CLEAN}


class TestBestEpoch:
    def test_the_best_epochs_weights_are_kept(self, tmp_path):
        """A rate that rises destroys what the first epochs learnt; they are kept."""
        training = {
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "schedule": {"name": "multistep", "milestones": [0.6], "gamma": 200.0},
            "select": "best-validation",
        }
        run = phalanx.train(with_training(**training), out=tmp_path / "run")
        values = [line[CLEAN] for line in run.metrics]
        best = max(values)
        epoch = values.index(best) + 1
        assert epoch < 5, "the training must get worse for this test to say anything"
        held_out = load_data("digits", limit=96, validation=0.1).validation
        assert accuracy(run.model, held_out) == pytest.approx(best)
        (phase,) = read_json(run.path / "manifest.json")["phases"]
        assert phase["selected"] == {
            "by": CLEAN, "best": best, "epoch": epoch, "last": values[-1], "gap": best - values[-1]
        }  # fmt: skip
        last = run.metrics[-1]
        assert (last["best_epoch"], last["best"], last["best_minus_last"]) == (
            epoch, best, best - values[-1]
        )  # fmt: skip
        assert not list(run.path.glob("best-*"))

    def test_of_equal_epochs_the_earlier_is_kept(self, tmp_path):
        """A rate of next to nothing leaves every epoch the same."""
        config = with_training(
            optimizer={"name": "sgd", "lr": 1e-12}, select="best-validation", epochs=3
        )
        run = phalanx.train(config, out=tmp_path / "run")
        assert [line["best_epoch"] for line in run.metrics] == [1, 1, 1]
        assert run.metrics[-1]["best_minus_last"] == 0.0

    def test_an_adversarial_phase_is_chosen_by_robust_accuracy(self, tmp_path):
        attack = {"use": "pgd", "params": {"steps": 2}}
        config = with_training(adversarial={"attack": attack}, select="best-validation", epochs=2)
        run = phalanx.train(config, out=tmp_path / "run")
        assert all(0.0 <= line[ROBUST] <= line[CLEAN] for line in run.metrics)
        (phase,) = read_json(run.path / "manifest.json")["phases"]
        assert phase["selected"]["by"] == ROBUST
        assert run.metrics[-1]["forwards_per_example"] == 3, "validation is not counted"
        assert run.metrics[-1]["backwards_per_example"] == 3

    def test_choosing_does_not_change_the_training(self, tmp_path):
        """Up to the end, the epochs are those of the same run that keeps the last."""
        plain = phalanx.train(CONFIG, out=tmp_path / "plain")
        chosen = phalanx.train(with_training(select="best-validation"), out=tmp_path / "chosen")
        keys = ("loss", CLEAN)
        assert [[line[k] for k in keys] for line in plain.metrics] == [
            [line[k] for k in keys] for line in chosen.metrics
        ]

    def test_held_out_images_are_needed(self, tmp_path):
        config = {**with_training(select="best-validation"), "data": {"use": "digits"}}
        with pytest.raises(ConfigError, match=r"best epoch of fit is chosen on held-out images"):
            phalanx.train(config, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_an_epoch_that_is_trained_again_knows_no_later_one(self, tmp_path):
        """Broken off after its best epoch, with a checkpoint in its first."""

        class Breaking(Quiet):
            def epoch_finished(self, metrics):
                if metrics["epoch"] == 4:
                    raise KeyError

        config = with_training(select="best-validation")
        whole = phalanx.train(config, out=tmp_path / "whole")
        found = [line["best_epoch"] for line in whole.metrics]
        assert found[0] < found[3], "a later epoch must be better for this test to say anything"
        phalanx.train(config, out=tmp_path / "part", time_budget=0.0)
        with pytest.raises(KeyError):
            phalanx.train(config, out=tmp_path / "part", resume=True, progress=Breaking())
        part = phalanx.train(config, out=tmp_path / "part", resume=True)
        assert part.sha256 == whole.sha256
        assert [line["best_epoch"] for line in part.metrics] == found
        assert [line["best"] for line in part.metrics] == [line["best"] for line in whole.metrics]
        assert not [*part.path.glob("best-*"), *part.path.glob("checkpoint-*")]

    @pytest.mark.parametrize("keys", [{}, {"ema": 0.9}])
    def test_stopped_within_epochs_it_ends_in_the_same_weights(self, tmp_path, keys):
        config = with_training(select="best-validation", **keys)
        whole = phalanx.train(config, out=tmp_path / "whole")
        for _ in range(30):
            part = phalanx.train(config, out=tmp_path / "part", resume=True, time_budget=0.0)
            if part.finished:
                break
        assert part.sha256 == whole.sha256


class TestAveraged:
    def test_the_average_is_kept_and_validated(self, tmp_path):
        held_out = load_data("digits", limit=96, validation=0.1).validation
        plain = phalanx.train(CONFIG, out=tmp_path / "plain")
        none = phalanx.train(with_training(ema=0.0), out=tmp_path / "none")
        assert same(none.model, plain.model)
        slow = phalanx.train(with_training(ema=0.9), out=tmp_path / "slow")
        assert [line["loss"] for line in slow.metrics] == [line["loss"] for line in plain.metrics]
        assert not same(slow.model, plain.model)
        assert slow.metrics[-1][CLEAN] == pytest.approx(accuracy(slow.model, held_out))

    def test_an_average_for_one_phase_by_its_name(self, tmp_path):
        one = phalanx.train(with_training(phases={"f*": {"ema": 0.5}}), out=tmp_path / "one")
        all_of_it = phalanx.train(with_training(ema=0.5), out=tmp_path / "all")
        assert same(one.model, all_of_it.model)

    def test_a_mask_holds_for_the_average(self, tmp_path):
        """Also one that comes late, when the average still remembers other weights."""

        class Late(Regularizer):
            def after_step(self, ctx):
                if ctx.epoch >= 1:
                    with torch.no_grad():
                        ctx.phase.module.members[0].backbone.fc.weight[:, ::2] = 0.0

        torch.manual_seed(0)
        model = MeanEnsemble([network()])
        phase = Fit(
            name="fit", module=model, epochs=2, batch_size=32, ema=0.99, regularizers=(Late(),)
        )
        data = load_data("digits", limit=96)
        trainer = Trainer(
            model,
            data,
            folder=tmp_path,
            checkpoints=Checkpoints.open(tmp_path, config_hash="x", threads=1),
            settings=Settings(seed=1),
            progress=Quiet(),
        )
        trainer.run([phase])
        weight = model.members[0].backbone.fc.weight
        assert bool((weight[:, ::2] == 0.0).all())
        assert not bool((weight[:, 1::2] == 0.0).any())
