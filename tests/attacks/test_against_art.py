"""Our PGD and Auto-PGD against ART's, on public trained networks and real test images."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import load_file
from torch import nn

import phalanx.nn  # noqa: F401  # registers the backbones
from phalanx.attack import attacking
from phalanx.attacks.apgd import APGDCE
from phalanx.attacks.balls import within
from phalanx.attacks.config import APGDConfig, PGDConfig
from phalanx.attacks.gradient import PGD
from phalanx.data import load_data
from phalanx.randomness import generator, seeded
from phalanx.specs import Linf

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        not {"PHALANX_DATA", "PHALANX_WEIGHTS"} <= set(os.environ),
        reason="needs $PHALANX_DATA and $PHALANX_WEIGHTS",
    ),
]
CASES = {
    "mnist": ("mnist_cnn", {"in_chans": 1}, "mnist_lenet_adversarial", Linf(0.3), 200),
    "cifar10": ("resnet20_cifar", {"shortcut": "pad"}, "cifar10_resnet20", Linf("0.5/255"), 100),
}


class Normalised(nn.Module):
    """A network behind the normalisation that its weights were trained with."""

    rowwise = True

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        if channels == 1:
            mean, std = (0.0,), (1.0,)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x - self.mean) / self.std)


@pytest.fixture(params=CASES)
def trained(request):
    backbone, params, weights, threat, count = CASES[request.param]
    net = timm.create_model(backbone, num_classes=10, **params)
    net.load_state_dict(load_file(Path(os.environ["PHALANX_WEIGHTS"]) / f"{weights}.safetensors"))
    data = load_data(request.param, root=Path(os.environ["PHALANX_DATA"]))
    batch = data.test.fetch(torch.arange(count))
    model = Normalised(net, batch.x.shape[1])
    with attacking(model):
        yield model, batch.x, batch.y, threat


def art_examples(kind, model, x, y, eps, **options):
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = kind(estimator, norm=np.inf, eps=eps, batch_size=len(x), verbose=False, **options)
    with seeded("art"):
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


ATTACKS = {
    "PGD-40": (
        PGD,
        PGDConfig(steps=40, threat="linf:1"),
        ProjectedGradientDescentPyTorch,
        lambda eps: {"max_iter": 40, "eps_step": 2.5 * eps / 40, "num_random_init": 1},
    ),
    "APGD-CE 50": (
        APGDCE,
        APGDConfig(steps=50, threat="linf:1"),
        AutoProjectedGradientDescent,
        lambda eps: {
            "max_iter": 50,
            "eps_step": 2 * eps,
            "nb_random_init": 1,
            "loss_type": "cross_entropy",
        },
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_robust_accuracy_is_not_above_arts(trained, name):
    model, x, y, threat = trained
    ours_kind, config, arts_kind, options = ATTACKS[name]

    def accuracy(x_adv: torch.Tensor) -> float:
        with torch.no_grad():
            return float((model(x_adv).argmax(1) == y).float().mean())

    clean = accuracy(x)
    x_adv = ours_kind(config).at(threat)(model, x, y, generator=generator(0))
    ours = accuracy(x_adv)
    theirs = accuracy(art_examples(arts_kind, model, x, y, threat.eps, **options(threat.eps)))
    assert within(x_adv, x, threat).all()
    assert ours < clean - 0.05
    assert ours <= theirs + 0.02 + 1e-6, f"ours leaves {ours}, ART's {theirs}"
