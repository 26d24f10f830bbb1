"""The estimator's methods are those of the view's own function."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from art import config as art_config
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import load_file
from torch.nn import functional

from phalanx.art.estimator import Estimator, as_art, load
from phalanx.art.module import ArtModule
from phalanx.errors import ArtifactError, ConfigError
from phalanx.nn import MeanEnsemble

VIEWS = [
    ("mean", "deployed"),
    ("one-of", "deployed"),
    ("one-of", "one-draw"),
    ("one-of", "expected"),
    ("noisy", "deployed"),
    ("noisy", "one-draw"),
    ("noisy", "expected"),
]
views = pytest.mark.parametrize(("kind", "view"), VIEWS)


def opened(model, view, seed=3):
    return model.views()[view].open(seed)


@views
def test_predict_is_the_view(build, batch, kind, view):
    model, x = build(kind), batch[0]
    expected = opened(model, view)(x).detach()
    found = as_art(model, view, seed=3).predict(x.numpy())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@views
def test_loss_gradient_is_autograd(build, batch, kind, view):
    model, (x, y) = build(kind), batch
    inputs = x.clone().requires_grad_()
    loss = functional.cross_entropy(opened(model, view)(inputs), y)
    expected = torch.autograd.grad(loss, inputs)[0]
    for labels in (y.numpy(), functional.one_hot(y).numpy(), y.numpy()[:, None]):
        found = as_art(model, view, seed=3).loss_gradient(x.numpy(), labels)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    found = as_art(model, view, seed=3).loss_gradient(x, y)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@views
def test_class_gradient_is_autograd(build, batch, kind, view):
    model, (x, y) = build(kind), batch
    inputs = x.clone().requires_grad_()
    scores = opened(model, view)(inputs)
    each = [torch.autograd.grad(s.sum(), inputs, retain_graph=True)[0] for s in scores.T]
    expected = torch.stack(each, 1)
    found = as_art(model, view, seed=3).class_gradient(x.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    found = as_art(model, view, seed=3).class_gradient(x.numpy(), label=4)
    np.testing.assert_allclose(found[:, 0], expected[:, 4], atol=1e-4)
    found = as_art(model, view, seed=3).class_gradient(x.numpy(), label=y.numpy())
    np.testing.assert_allclose(found[:, 0], expected[torch.arange(len(y)), y], atol=1e-4)


@views
def test_compute_loss_is_cross_entropy(build, batch, kind, view):
    model, (x, y) = build(kind), batch
    expected = functional.cross_entropy(opened(model, view)(x), y, reduction="none").detach()
    found = as_art(model, view, seed=3).compute_loss(x.numpy(), y.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_stochastic_estimator_draws_afresh_and_repeats_under_its_seed(build, batch):
    model, x = build("noisy"), batch[0].numpy()
    first, again, other = as_art(model), as_art(model), as_art(model, seed=1)
    a, b = first.predict(x), first.predict(x)
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, again.predict(x))
    assert not np.allclose(a, other.predict(x))
    first.seed = 0
    np.testing.assert_array_equal(a, first.predict(x))


def test_setting_the_view_opens_it(build, batch):
    model, x = build("one-of"), batch[0]
    estimator = as_art(model)
    estimator.set_params(view="expected")
    assert estimator.get_params()["view"] == "expected"
    np.testing.assert_allclose(
        estimator.predict(x.numpy()), opened(model, "expected")(x).detach(), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64])
def test_any_dtype(build, batch, dtype):
    estimator, y = as_art(build()), batch[1].numpy()
    x = (batch[0] > 0.5).numpy()
    plain = x.astype(np.float32)
    x = x.astype(dtype)
    np.testing.assert_array_equal(estimator.predict(x), estimator.predict(plain))
    for call in (
        estimator.loss_gradient,
        estimator.compute_loss,
        lambda images, labels: estimator.class_gradient(images, label=2),
        lambda images, labels: estimator.get_activations(images, "networks.0.backbone.conv2"),
    ):
        np.testing.assert_allclose(call(x, y), call(plain, y), atol=1e-3)


def test_settings_are_explicit(build):
    estimator = build().as_art()
    assert isinstance(estimator, PyTorchClassifier)
    assert estimator.input_shape == (1, 8, 8)
    assert estimator.nb_classes == 10
    assert estimator.clip_values.tolist() == [0.0, 1.0]
    assert estimator.preprocessing is None
    assert estimator.channels_first
    assert estimator.device_type == "cpu"
    assert estimator.all_framework_preprocessing
    assert not isinstance(estimator.model, torch.nn.Sequential)
    assert set(estimator.get_params()) == set(Estimator.estimator_params)


def test_shape_and_classes_without_a_task(build, batch):
    model = build()
    model.task = None
    with pytest.raises(ConfigError) as caught:
        as_art(model)
    assert str(caught.value) == (
        "as_art: 2 problems\n"
        "  input_shape: the model has no task to take it from; pass as_art(model, input_shape=…)\n"
        "  nb_classes: the model has no task to take it from; pass as_art(model, nb_classes=…)"
    )
    estimator = as_art(model, input_shape=(1, 8, 8), nb_classes=10)
    assert estimator.predict(batch[0].numpy()).shape == (40, 10)


def test_unknown_view(build):
    with pytest.raises(ConfigError) as caught:
        build("one-of").as_art("one-drav")
    assert str(caught.value) == (
        "as_art: 1 problem\n"
        "  view: no view 'one-drav'; did you mean 'one-draw'? "
        "this model has: deployed, one-draw, expected"
    )


def test_the_model_keeps_its_flags_modes_and_gradients(build, batch):
    """ART calls train and eval as it likes; the model that is trained elsewhere must not notice."""
    model, (x, y) = build("noisy"), batch
    model.networks[0].train()
    model.networks[1].requires_grad_(False)
    modes = [part.training for part in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    estimator = as_art(model)
    estimator.predict(x.numpy())
    estimator.loss_gradient(x.numpy(), y.numpy())
    estimator.class_gradient(x.numpy())
    estimator.get_activations(x.numpy(), "networks.0.1")
    assert [part.training for part in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    estimator.model.train()
    assert all(part.training for part in model.modules())
    estimator.model.eval()
    assert [part.training for part in model.modules()] == modes


def test_forward_in_eval_builds_no_parameter_gradients(build, batch):
    estimator = as_art(build())
    x = batch[0].clone().requires_grad_()
    estimator.model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in estimator.model.parameters())


def test_activations_of_any_layer(build, batch):
    model, x = build(), batch[0]
    estimator = as_art(model)
    assert "networks.2.backbone.conv2" in estimator.layer_names
    assert "networks" not in estimator.layer_names, "a list is never called"
    backbone = model.networks[2].backbone
    expected = backbone.conv2(backbone.conv1(model.networks[2].normalize(x)).relu()).detach()
    for batch_size in (7, 128):
        found = estimator.get_activations(x.numpy(), "networks.2.backbone.conv2", batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    index = estimator.layer_names.index("networks.2.backbone.conv2")
    np.testing.assert_allclose(estimator.get_activations(x, index), expected, atol=1e-5)
    inputs = x.clone().requires_grad_()
    estimator.get_activations(inputs, "networks.2.backbone.conv2", framework=True).sum().backward()
    assert inputs.grad.abs().sum() > 0
    assert not any(part._forward_hooks for part in model.modules())


def test_activation_errors(build, batch):
    estimator = as_art(build("noisy"))
    with pytest.raises(ConfigError, match=r"layer: no layer 'networks\.9'; layer_names lists 12"):
        estimator.get_activations(batch[0].numpy(), "networks.9")
    with pytest.raises(
        ConfigError, match=r"view 'deployed' did not run 'networks\.1\.0' in this draw"
    ):
        estimator.get_activations(batch[0].numpy(), "networks.1.0")


@pytest.mark.parametrize("batch_size", [4, 128])
def test_activations_are_of_all_images_or_refused(build, batch, batch_size):
    """A population sends each image to one member, so no member's layer sees them all."""
    estimator = as_art(build("one-of"))
    with pytest.raises(
        ConfigError, match=r"view 'deployed' did not run 'networks\.0' in this draw"
    ):
        estimator.get_activations(batch[0].numpy(), "networks.0", batch_size)


def test_activations_that_are_no_tensor(build, batch):
    model = build()
    model.networks[0].register_forward_hook(lambda *call: (call[2],))
    model.draw = lambda x, generator: model.networks[0](x)[0]
    with pytest.raises(
        ConfigError, match=r"layer: the output of 'networks\.0' is no tensor but of type tuple"
    ):
        as_art(model).get_activations(batch[0].numpy(), "networks.0")


def test_custom_loss_gradient(build, batch):
    estimator, x = as_art(build()), batch[0].numpy()
    found = estimator.custom_loss_gradient(torch.norm, x[:4], x[4:8], "networks.0.backbone.conv2")
    assert found.shape == x[:4].shape


def test_fit_draws_from_the_seed_alone(build, digits):
    x, y = digits[0][:128].numpy(), digits[1][:128].numpy()

    def fitted(seed):
        model = build()
        as_art(model, seed=seed).fit(x, y, batch_size=32, nb_epochs=1)
        torch.rand(1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    as_art(build()).fit(x, y, batch_size=32, nb_epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))


def test_fit_trains_every_member_and_leaves_the_modes(build, digits):
    model = build()
    before = copy.deepcopy(model.state_dict())
    x, y = digits[0][:256].numpy(), digits[1][:256].numpy()
    estimator = as_art(model)
    loss = estimator.compute_loss(x, y).mean()
    estimator.fit(x, y, batch_size=64, nb_epochs=2)
    assert estimator.compute_loss(x, y).mean() < loss
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert {f"networks.{i}.backbone.conv1.weight" for i in range(3)} <= moved
    assert not any(part.training for part in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_fit_in_evaluation_mode(build, batch):
    with pytest.raises(ConfigError) as caught:
        as_art(build()).fit(batch[0].numpy(), batch[1].numpy(), training_mode=False)
    assert str(caught.value) == (
        "fit: 1 problem\n"
        "  training_mode: must be True, for the parameters are frozen in evaluation mode; "
        "to keep batch normalisation still, train with phalanx.train"
    )


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_clone_for_refitting(build, batch, optimizer):
    x = batch[0].numpy()
    model = build("one-of")
    estimator = Estimator(
        model,
        None,
        (1, 8, 8),
        10,
        None if optimizer is None else optimizer(model.parameters(), lr=0.002),
        view="expected",
        seed=5,
    )
    before = estimator.predict(x)
    clone = estimator.clone_for_refitting()
    assert isinstance(clone, Estimator)
    assert isinstance(clone.model.model, type(model)), "wrapped once"
    assert (clone.view, clone.seed, clone.device_type) == ("expected", 5, "cpu")
    assert not np.allclose(clone.predict(x), before)
    np.testing.assert_array_equal(estimator.predict(x), before)
    if optimizer is not None:
        assert clone.optimizer.defaults["lr"] == 0.002
        bound = {id(p) for group in clone.optimizer.param_groups for p in group["params"]}
        assert bound == {id(p) for p in clone.model.parameters()}
    clone.fit(x, batch[1].numpy(), nb_epochs=1)


def test_an_art_module_is_not_wrapped_again(build):
    module = ArtModule(build())
    assert Estimator(module, None, (1, 8, 8), 10).model is module


def test_save_and_load(build, batch, tmp_path):
    x = batch[0].numpy()
    estimator = as_art(build("one-of"), "expected", seed=7)
    estimator.save("net", str(tmp_path))
    assert set(load_file(tmp_path / "net.safetensors")) == set(estimator.model.model.state_dict())
    assert (tmp_path / "net.model").is_file(), "ART's own file"
    other = build("one-of")
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    loaded = load(other, "net", str(tmp_path))
    assert (loaded.view, loaded.seed, loaded.input_shape) == ("expected", 7, (1, 8, 8))
    np.testing.assert_array_equal(loaded.predict(x), estimator.predict(x))


def test_load_errors(build, tmp_path):
    estimator = as_art(build())
    file = tmp_path / "net.safetensors"
    with pytest.raises(ArtifactError) as caught:
        estimator.load("net", str(tmp_path))
    assert str(caught.value) == (
        f"no estimator at {file}: save writes one, load takes the same name"
    )
    estimator.save("net", str(tmp_path))
    smaller = MeanEnsemble(list(build().networks)[:2])
    with pytest.raises(ArtifactError) as caught:
        load(smaller, "net", str(tmp_path))
    assert str(caught.value) == (
        f"{file} holds the weights of another model: 6 tensors differ, "
        "'networks.2.backbone.conv1.bias' first; "
        "build the defense with the config that it was saved under"
    )
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ArtifactError) as caught:
        estimator.load("net", str(tmp_path))
    assert str(caught.value) == f"{file} is damaged, or not written by an estimator's save"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_pickle_and_deepcopy_are_self_contained(build, batch, duplicate):
    folder = Path(art_config.ART_DATA_PATH)
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    x = batch[0].numpy()
    estimator = as_art(build("noisy"), seed=2)
    estimator.fit(x, batch[1].numpy(), nb_epochs=1)
    twin = duplicate(estimator)
    assert (sorted(folder.iterdir()) if folder.is_dir() else None) == before
    np.testing.assert_array_equal(twin.predict(x), estimator.predict(x))
    bound = {id(p) for group in twin.optimizer.param_groups for p in group["params"]}
    assert bound == {id(p) for p in twin.model.parameters()}
    assert not bound & {id(p) for p in estimator.model.parameters()}
    assert twin.device == estimator.device
