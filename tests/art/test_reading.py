"""ART's classifiers read as models of ours: the same answers, on images in [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ClassLabels, Rounded
from art.defences.preprocessor import FeatureSqueezing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import BlackBoxClassifier, EnsembleClassifier, PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from torch import nn

import phalanx
from phalanx.art.reading import ArtNetwork, from_art
from phalanx.errors import InputError, ValidityWarning
from phalanx.nn.foreign import Foreign

X = torch.rand(9, 2, 5, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, C=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(C, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
            )

    def forward(self, x):
        return self.layers(x)


class Blur(PreprocessorPyTorch):
    """Differentiable."""

    params = ()

    def __init__(self):
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x, y=None):
        return nn.functional.avg_pool2d(x, 3, 1, 1), y


class Quantised(Blur):
    """Not differentiable, with an estimate of its own."""

    def forward(self, x, y=None):
        return (x * 4).round() / 4, y

    def estimate_forward(self, x, y=None):
        return 2 * x


def classifier(model=None, **settings):
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
    return PyTorchClassifier(
        Net().eval() if model is None else model,
        nn.CrossEntropyLoss(),
        input_shape=(2, 5, 5),
        nb_classes=4,
        **settings,
    )


def gradient(function, x):
    x = x.clone().requires_grad_()
    y = torch.zeros(len(x), dtype=torch.long)
    return torch.autograd.grad(nn.functional.cross_entropy(function(x), y, reduction="sum"), x)[0]


# ---------------------------------------------------------------- the same answers and gradients


@pytest.mark.parametrize(
    ("clip", "settings"),
    [
        ((0, 1), {}),
        ((0, 255), {}),
        ((-1, 1), {}),
        ((np.zeros((2, 5, 5)), np.full((2, 5, 5), 255.0)), {}),
        ((0, 255), {"preprocessing": (127.5, 60.0)}),
        ((0, 1), {"preprocessing": (np.array([0.4, 0.5]), np.array([0.2, 0.3]))}),
        ((0, 1), {"preprocessing_defences": Blur(), "preprocessing": (0.5, 0.25)}),
        ((0, 1), {"preprocessing_defences": [Blur(), Blur()]}),
        ((0, 1), {"preprocessing": None}),
    ],
)
def test_predictions_and_gradients_are_arts(clip, settings):
    art = classifier(clip_values=clip, **settings)
    model = from_art(art)
    lo, hi = clip
    units = (lo + (hi - lo) * X.numpy()).astype(np.float32)
    with torch.no_grad():
        assert np.allclose(model(X).numpy(), art.predict(units), atol=1e-4)
    labels = np.eye(4)[np.zeros(len(X), dtype=int)]
    theirs = art.loss_gradient(units, labels) * (hi - lo)  # of the mean, by the chain rule
    ours = gradient(model.eval(), X).numpy()
    scale = np.abs(ours).max()
    ratio = (ours * theirs).sum() / (theirs**2).sum()  # ART: mean or sum, by its version
    assert np.allclose(ours, ratio * theirs, atol=1e-4 * scale)
    assert model.task.shape == (2, 5, 5)
    assert model.task.classes == 4


def test_without_preprocessing_nothing_is_put_around():
    art = classifier()
    model = from_art(art)
    assert isinstance(model, Foreign)
    assert model.module is art.model
    assert not isinstance(model.module, ArtNetwork)
    assert from_art(classifier(clip_values=(0, 255))).title == "Net"


def test_modes_flags_and_global_generators_stay():
    art = classifier(preprocessing=(0.5, 0.5))
    art.model.train()
    state = torch.get_rng_state()
    from_art(art)
    assert art.model.training
    assert all(parameter.requires_grad for parameter in art.model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_channels_last():
    class Last(Net):
        def forward(self, x):
            return super().forward(x.permute(0, 3, 1, 2))

    art = PyTorchClassifier(
        Last().eval(),
        nn.CrossEntropyLoss(),
        input_shape=(5, 5, 2),
        nb_classes=4,
        channels_first=False,
        clip_values=(0, 1),
        device_type="cpu",
    )
    model = from_art(art)
    assert model.task.shape == (2, 5, 5)
    with torch.no_grad():
        assert np.allclose(model(X), art.predict(X.permute(0, 2, 3, 1).numpy()), atol=1e-5)


def test_our_own_estimator_gives_back_its_model():
    model = phalanx.wrap(Net().eval())
    estimator = model.as_art(input_shape=(2, 5, 5), nb_classes=4)
    assert from_art(estimator) is model
    assert phalanx.from_art(classifier(model)) is model


# ---------------------------------------------------------------- what gradients do not pass


def test_arrays_only_preprocessing_is_kept_and_named():
    squeeze = FeatureSqueezing(clip_values=(0, 1), bit_depth=2)
    art = classifier(preprocessing_defences=squeeze, preprocessing=(0.5, 0.25))
    with pytest.warns(ValidityWarning, match="gradients do not pass FeatureSqueezing: it stays"):
        model = from_art(art)
    squeezed = torch.from_numpy(squeeze(X.numpy())[0]).float()
    with torch.no_grad():
        assert torch.allclose(model(X), art.model((squeezed - 0.5) / 0.25), atol=1e-5)
    inner = phalanx.wrap(art.model, mean=[0.5] * 2, std=[0.25] * 2)
    assert torch.allclose(gradient(model, X), gradient(inner, squeezed), atol=1e-6)


def test_a_torch_preprocessor_with_an_estimate_keeps_its_values():
    with pytest.warns(ValidityWarning, match="do not pass Quantised"):
        model = from_art(classifier(preprocessing_defences=Quantised()))
    with torch.no_grad():
        deployed = classifier().model((X * 4).round() / 4)
        assert torch.allclose(model(X), deployed, atol=1e-6)
    inner = gradient(classifier().model, (X * 4).round() / 4)
    assert torch.allclose(gradient(model, X), 2 * inner, atol=1e-5)


def test_postprocessing_is_kept_and_named():
    art = classifier(postprocessing_defences=[Rounded(1), ClassLabels()])
    with pytest.warns(ValidityWarning, match="gradients do not pass Rounded, ClassLabels"):
        model = from_art(art)
    with torch.no_grad():
        assert np.array_equal(model(X).numpy(), art.predict(X.numpy()))
    assert torch.allclose(gradient(lambda x: model(x) * 0 + model(x), X), gradient(model, X))
    assert gradient(model, X).abs().max() > 0


def test_defences_of_training_alone_are_left_out():
    art = classifier(
        preprocessing_defences=FeatureSqueezing(
            clip_values=(0, 1), bit_depth=2, apply_fit=True, apply_predict=False
        )
    )
    assert from_art(art).module is art.model


# ---------------------------------------------------------------- what is refused


def test_other_estimators_get_a_clear_answer():
    art = classifier()
    ensemble = EnsembleClassifier([art, classifier()], clip_values=(0, 1), channels_first=True)
    with pytest.raises(InputError, match=r"EnsembleClassifier.*phalanx.nn.MeanEnsemble\("):
        from_art(ensemble)
    box = BlackBoxClassifier(lambda x: x, (2, 5, 5), 4)
    with pytest.raises(InputError, match=r"found art.estimators.*BlackBoxClassifier; its network"):
        from_art(box)
    with pytest.raises(InputError, match="BlackBoxClassifier"):
        phalanx.evaluate(box, (X, torch.zeros(9, dtype=torch.long)), threat="linf:0.1")
    table = PyTorchClassifier(
        nn.Linear(7, 2), nn.CrossEntropyLoss(), (7,), 2, clip_values=(0, 1), device_type="cpu"
    )
    with pytest.raises(InputError, match=r"classifiers of images, input_shape \(C, H, W\)"):
        from_art(table)


def test_clip_values_that_say_nothing():
    with pytest.raises(InputError, match=r"has no clip_values.*set_params\(clip_values=\(0, 1\)\)"):
        from_art(classifier(clip_values=None))
    with pytest.raises(InputError, match="must be finite, the first below the second"):
        from_art(classifier(clip_values=(0, np.inf)))


class Overridden(PyTorchClassifier):
    def predict(self, x, batch_size=128, training_mode=False, **kwargs):
        return -super().predict(x, batch_size, training_mode, **kwargs)


class Jumping(Net):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), 1)


def test_what_does_not_predict_what_it_says():
    art = Overridden(
        Net().eval(), nn.CrossEntropyLoss(), (2, 5, 5), 4, clip_values=(0, 1), device_type="cpu"
    )
    with pytest.raises(InputError, match="the scores are not those that its predict gives"):
        from_art(art)
    with pytest.raises(InputError, match=r"say from_art\(classifier, stochastic=True\)"):
        from_art(classifier(Jumping().eval()))
    model = from_art(classifier(Jumping().eval()), stochastic=True)
    assert list(model.views()) == ["deployed", "one-draw", "expected"]
    with pytest.raises(InputError, match="Net tells 4 classes apart, declared: classes=7"):
        from_art(
            PyTorchClassifier(Net().eval(), nn.CrossEntropyLoss(), (2, 5, 5), 7, clip_values=(0, 1))
        )


def test_evaluated_as_its_module():
    y = torch.arange(9) % 4
    settings = {"attacks": ["pgd:steps=3"], "threat": "linf:0.05"}
    art = classifier(clip_values=(0, 255), preprocessing=(127.5, 127.5))
    found = phalanx.evaluate(art, (X, y), **settings)
    same = phalanx.evaluate(
        phalanx.wrap(Net().eval(), mean=[0.5] * 2, std=[0.5] * 2), (X, y), **settings
    )
    assert found.rows[0].defense == "Net"
    assert [row.clean_accuracy for row in found.rows] == [r.clean_accuracy for r in same.rows]


def test_the_digest_sees_every_number_of_a_preprocessor():
    means = [np.zeros((40, 40)) for _ in range(2)]
    means[1][20, 20] = 0.1
    printed = {repr(ArtNetwork(Net(), 0, 1, [StandardisationMeanStd(m, 1.0)])) for m in means}
    assert len(printed) == 2
