"""Judge three classifiers that Phalanx did not build: torch's, timm's, an ART estimator.

Each is trained here for seconds on digits, judged by one call, and one number of each is computed
again without Phalanx. Run: python examples/judge_any_model.py (CPU, under a minute, no downloads).
"""

from collections.abc import Callable

import timm
import torch
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import Conv2dNormActivation

import phalanx
from phalanx.data import load_data

EPS = 0.1  # L-inf, in units of [0, 1]
MEAN, STD = 0.3061, 0.3767  # of the digits, in units of [0, 1]
ATTACKS = ["fgsm", "pgd:steps=20", "apgd-ce:steps=20"]
VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}


def small() -> nn.Module:
    """A plain module of torchvision's blocks, for one channel."""
    blocks = Conv2dNormActivation(1, 32), Conv2dNormActivation(32, 64, stride=2)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def trained(network: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The network after 300 steps of Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for rows in torch.randint(len(x), (300, 64)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return network.eval()


def fgsm_by_hand(scores: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Accuracy after one step along the sign of the gradient."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(scores(x), y), x)
    return float((scores((x + EPS * gradient.sign()).clamp(0, 1)).argmax(1) == y).float().mean())


def main() -> None:
    """Train, judge, print, check."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_data("digits")
    train, test = digits.train.fetch(slice(None)), digits.test.fetch(slice(200))
    plain, other = (trained(small(), (train.x - MEAN) / STD, train.y) for _ in range(2))
    vit = timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=10, **VIT)
    vit = trained(vit, train.x, train.y)
    units = {"clip_values": (0, 255), "preprocessing": (MEAN * 255, STD * 255)}
    art = PyTorchClassifier(other, nn.CrossEntropyLoss(), (1, 8, 8), 10, **units)
    examples = FastGradientMethod(art, eps=255 * EPS).generate(255 * test.x.numpy(), test.y.numpy())

    by_hand = {
        "torch": fgsm_by_hand(lambda x: plain((x - MEAN) / STD), test.x, test.y),
        "timm": fgsm_by_hand(vit, test.x, test.y),
        "ART": (art.predict(examples).argmax(1) == test.y.numpy()).mean(),
    }
    models = {"torch": phalanx.wrap(plain, mean=[MEAN], std=[STD]), "timm": vit, "ART": art}
    data = DataLoader(TensorDataset(test.x, test.y), batch_size=50)
    for name, model in models.items():
        report = phalanx.evaluate(model, data, threat=f"linf:{EPS}", attacks=ATTACKS, name=name)
        fgsm, worst = report.rows[0], report.worst[0]
        print(f"{name:6s} clean {worst.clean_accuracy:.3f}  worst {worst.robust_accuracy:.3f}")
        assert abs(fgsm.robust_accuracy - by_hand[name]) < 0.011, name
        assert worst.clean_accuracy > 0.8 > worst.robust_accuracy, name
    print("checked: FGSM's accuracies repeated with torch and with ART alone")


if __name__ == "__main__":
    main()
