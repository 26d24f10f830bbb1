"""Train a plugin's defense, then attack and judge it with ART alone.

Run: python examples/art_pipeline.py (CPU, under a minute; needs the plugin phalanx-pdd).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.utils import compute_accuracy

import phalanx
from phalanx.data import load_data

EPS = 0.1  # L-inf, in pixel units of [0, 1]: the data set's default threat
CONFIG = {
    "seed": 0,
    "data": {"use": "digits"},
    "defense": {
        "use": "pdd",
        "params": {
            "variant": "pdd",
            "members": 3,
            "backbone": "small_cnn",
            "normalization": "dataset",
        },
    },
    "training": {
        "epochs": 8,
        "batch_size": 32,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    },
}


def main() -> None:
    """Train, attack, print, check."""
    torch.set_num_threads(1)
    np.random.seed(0)  # ART draws from numpy's global state
    test = load_data("digits").test.fetch(slice(200))
    x, y = test.x.numpy(), np.eye(10, dtype=np.float32)[test.y.numpy()]

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pdd"
        run = phalanx.train(CONFIG, out=out)
        again = phalanx.load(out)

    estimator = run.model.as_art()  # a PyTorchClassifier: everything below is ART's own
    attacks = {
        "FGSM": FastGradientMethod(estimator, eps=EPS),
        "PGD-20": ProjectedGradientDescent(
            estimator, eps=EPS, eps_step=EPS / 4, max_iter=20, num_random_init=1, verbose=False
        ),
    }
    examples = {"clean": x} | {name: each.generate(x, y) for name, each in attacks.items()}

    print(f"pdd on {len(x)} digits, ART's attacks at linf {EPS}")
    accuracy = {}
    for name, images in examples.items():
        accuracy[name], _ = compute_accuracy(estimator.predict(images), y)
        print(f"  {name:7s} accuracy {accuracy[name]:.3f}")

    # The same numbers again, without ART, on the weights as they were stored.
    for name, images in examples.items():
        assert np.abs(images - x).max() <= EPS + 1e-6
        with torch.no_grad():
            right = again(torch.from_numpy(images)).argmax(1) == test.y
        assert abs(right.float().mean().item() - accuracy[name]) < 0.011, name
    assert accuracy["clean"] > 0.9
    assert accuracy["PGD-20"] <= accuracy["FGSM"] < accuracy["clean"]
    print("checked: budgets kept, numbers repeated on the reloaded model")


if __name__ == "__main__":
    main()
