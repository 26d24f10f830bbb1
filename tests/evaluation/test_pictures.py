"""Pictures of adversarial examples: what they show, of which images, by which attacks."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_toys import SIDE, Plain, images, toy_registry
from PIL import Image
from torch import Tensor

from phalanx.data.sets import ArraySplit, Data
from phalanx.defense import DefendedModel
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.store import SAMPLE
from phalanx.evaluation.subjects import Plan, Subject
from phalanx.report.model import Report
from phalanx.specs import Linf, Task, parse_threat


def mean_pixels(n: int) -> tuple[Tensor, Tensor]:
    """Mean pixel and label of each toy image."""
    test = images(n).test
    return test.images.flatten(1).mean(1), test.labels


def right_at(cut: float, n: int, *, shift: float = 0.0) -> Tensor:
    """Whether a threshold is right on each image that the toy attack moved by `shift`."""
    mean, y = mean_pixels(n)
    moved = mean + shift * (1.0 - 2.0 * y)
    return (moved > cut).long() == y


def plan_with(*attacks: str, threat: str = "linf:0.25", checks: Any = "free", **rest: Any) -> Plan:
    registry, _ = toy_registry()
    uses = tuple(
        resolve_attack(parse_attack(one), threat=parse_threat(threat), registry=registry)
        for one in attacks
    )
    return Plan(uses, checks=checks, **rest)


def evaluated(
    subjects: list[Subject], plan: Any, *, n: int = 60, data: Any = None, **rest: Any
) -> Report:
    registry, _ = toy_registry()
    return evaluate_models(subjects, data or images(n), plan, registry=registry, **rest)


def subject(name: str, model: DefendedModel, **rest: Any) -> Subject:
    return Subject(name, model, name, **rest)


SHIFT = ("toy:size=0.25", "toy:size=0.2")
"""Moves by the first are the worst of the two, for every model."""


def decoded(picture: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def coloured(n: int, channels: int) -> Data:
    """The toy images with so many channels, all alike but for a small gradient."""
    data = images(n)
    ramp = 1.0 - 0.1 * torch.arange(channels).view(1, -1, 1, 1)
    x = data.test.images * ramp
    task = Task(
        name="toy",
        shape=(channels, SIDE, SIDE),
        classes=2,
        train_size=0,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        class_names=("dark", "bright"),
    )
    empty = ArraySplit(x[:0], data.test.labels[:0])
    return Data(task, empty, empty, ArraySplit(x, data.test.labels), Linf(0.1))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_show_the_images_that_were_judged(channels: int) -> None:
    data = coloured(40, channels)
    model = Plain(0.45)
    model.task = data.task
    report = evaluated([subject("a", model)], plan_with("fgsm", threat="linf:0.5"), data=data)
    assert len(report.examples) == 6
    x, y = data.test.images, data.test.labels
    for one in report.examples:
        way = 1.0 - 2.0 * float(y[one.row])
        moved = (x[one.row] + 0.5 * way).clamp(0, 1)
        difference = moved - x[one.row]
        assert one.gain == pytest.approx(0.5 / float(difference.abs().max()))
        for picture, image in (
            (one.clean, x[one.row]),
            (one.adversarial, moved),
            (one.difference, 0.5 + one.gain * difference),
        ):
            pixels = (image.clamp(0, 1) * 255).round().byte()
            shown = pixels.permute(1, 2, 0) if channels == 3 else pixels[0]
            off = decoded(picture).astype(int) - shown.numpy().astype(int)
            assert abs(off).max() <= (0 if picture is one.clean else 1), one.row  # of rounding
        names = ("dark", "bright")
        assert (one.label, one.predicted) == (names[y[one.row]], names[1 - y[one.row]])
        assert (one.defense, one.view, one.attack) == ("a", "deployed", "fgsm")


def test_only_images_that_an_attack_breaks_are_shown() -> None:
    model = Plain(0.73)  # some are wrong without an attack
    report = evaluated([subject("a", model)], plan_with("fgsm", threat="linf:0.01"), n=200)
    wrong = ~right_at(0.73, 200, shift=0.01)
    kept = wrong.nonzero().squeeze(1)[:SAMPLE]
    expected = kept[right_at(0.73, 200)[kept]].tolist()[:6]
    assert max(expected) >= SAMPLE  # not of the first sixteen images alone
    assert [one.row for one in report.examples] == expected
    assert {(one.label, one.predicted) for one in report.examples} <= {("0", "1"), ("1", "0")}
    plan = plan_with("fgsm", threat="linf:0.0001")
    assert evaluated([subject("a", Plain())], plan).examples == ()


def test_attacks_that_follow_gradients_come_first_and_others_fill_up() -> None:
    weak, strong = "pgd:steps=1,step=0.232,start=clean", "square:queries=30"
    report = evaluated([subject("a", Plain())], plan_with(strong, weak, "fgsm", threat="linf:0.4"))
    assert {one.attack for one in report.examples} == {"fgsm"}
    report = evaluated([subject("a", Plain())], plan_with(strong, weak, threat="linf:0.4"), n=20)
    shown = [one.attack.partition(":")[0] for one in report.examples]
    assert len(shown) == len({one.row for one in report.examples}) == 6
    assert set(shown) == {"pgd", "square"}
    assert shown == sorted(shown)  # pgd, then square


def test_a_repeated_evaluation_shows_the_same_and_damaged_pictures_are_left_out(
    tmp_path: Path,
) -> None:
    def again() -> Report:
        plan = plan_with("fgsm", threat="linf:0.4")
        return evaluated([subject("a", Plain())], plan, n=20, out=tmp_path)

    first = again()
    assert first.examples
    assert again().examples == first.examples
    (path,) = (tmp_path / "samples").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert again().examples == ()
