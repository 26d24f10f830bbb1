"""Kept adversarial examples, checked again: budget, data, weights, fresh draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_toys import Mixed, Plain, images, toy_registry
from torch import Tensor

from phalanx.defense import DefendedModel
from phalanx.errors import ArtifactError, DataError
from phalanx.evaluation.evaluate import evaluate_models
from phalanx.evaluation.labels import parse_attack
from phalanx.evaluation.protocol import resolve_attack
from phalanx.evaluation.subjects import Images, Plan, Subject, images_of
from phalanx.evaluation.verify import Verified, problems, verify
from phalanx.report.model import Report
from phalanx.specs import Linf
from phalanx.training.files import read_tensors, write_tensors


def evaluated(folder: Path, *subjects: Subject, n: int = 40, **rest: Any) -> Report:
    registry, _ = toy_registry()
    attacks = rest.pop("attacks", ("toy:size=0.25",))
    uses = tuple(
        resolve_attack(parse_attack(one), threat=Linf(0.25), registry=registry) for one in attacks
    )
    return evaluate_models(
        subjects,
        images(n),
        Plan(uses),
        registry=registry,
        out=folder,
        **{"keep_examples": True, **rest},
    )


def subject(model: DefendedModel | None = None, name: str = "a") -> Subject:
    return Subject(name, model or Plain(), name)


def data(n: int = 40) -> Images:
    return images_of(images(n))


def files(folder: Path) -> list[Path]:
    return sorted((folder / "examples").glob("*.safetensors"))


def tamper(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    """Change what the first file of examples holds; its header stays."""
    path = files(folder)[0]
    tensors, header = read_tensors(path)
    tensors["images"] = change(tensors["images"].clone())
    write_tensors(path, tensors, header)


# ---------------------------------------------------------------- what was kept


def test_what_was_kept_is_as_it_was_stored(tmp_path: Path) -> None:
    report = evaluated(tmp_path, subject(), n=300)
    assert len(files(tmp_path)) == 2
    (one,), others = verify(tmp_path, [subject()], data(300))
    assert others == 0
    assert (one.defense, one.view, one.attack, one.threat) == (
        "a",
        "deployed",
        "toy",
        "linf:0.25",
    )
    assert (one.images, one.outside, one.excess) == (300, 0, 0.0)
    assert one.stored == one.again == pytest.approx(report.rows[0].robust_accuracy)
    assert 0.0 < one.again < 1.0
    assert list(problems([one])) == []


def test_cells_come_in_the_order_of_names(tmp_path: Path) -> None:
    subjects = [subject(Plain(0.52), "b"), subject(Mixed([0.5, 0.45], closed=True), "a")]
    evaluated(tmp_path, *subjects, attacks=("toy", "fgsm"))
    found, others = verify(tmp_path, subjects, data())
    assert [(one.defense, one.view, one.attack) for one in found] == [
        ("a", "deployed", "fgsm"),
        ("a", "deployed", "toy"),
        ("a", "expected", "fgsm"),
        ("a", "expected", "toy"),
        ("a", "one-draw", "fgsm"),
        ("a", "one-draw", "toy"),
        ("b", "deployed", "fgsm"),
        ("b", "deployed", "toy"),
    ]
    assert others == 0


def test_examples_without_a_ball_are_looked_at_too(tmp_path: Path) -> None:
    evaluated(tmp_path, subject(), attacks=("toy:threat=none,size=0.4",))
    ((one,), _) = verify(tmp_path, [subject()], data())
    assert (one.threat, one.outside, one.stored, one.again) == ("none", 0, 0.0, 0.0)


def test_attacks_of_checks_leave_nothing_to_verify(tmp_path: Path) -> None:
    batch = images(40).test.fetch(slice(None))
    x, y = batch.x, batch.y.clone()
    y[0] = 1 - y[0]  # wrong without an attack, so that the checks' images are other rows
    uses = (resolve_attack(parse_attack("fgsm"), threat=Linf(0.25)),)
    evaluate_models(
        [subject()], (x, y), Plan(uses, checks="core"), out=tmp_path, keep_examples=True
    )
    assert len(files(tmp_path)) == 1
    ((one,), others) = verify(tmp_path, [subject()], images_of((x, y)))
    assert (one.attack, one.images, one.altered, others) == ("fgsm", 40, 0, 0)
    assert one.stored == one.again


# ---------------------------------------------------------------- what was tampered with


def out_of_the_ball(x: Tensor) -> Tensor:
    x[4] += 0.4  # a dark one
    return x


def out_of_the_box(x: Tensor) -> Tensor:
    x[5, 0, 0, 0] = -0.125
    x[6, 0, 0, 0] = 1.0625
    return x


def not_finite(x: Tensor) -> Tensor:
    x[7, 0, 1, 1] = torch.nan
    return x


@pytest.mark.parametrize(
    ("change", "outside"), [(out_of_the_ball, 1), (out_of_the_box, 2), (not_finite, 1)]
)
def test_examples_that_break_the_rules_are_told(
    change: Callable[[Tensor], Tensor], outside: int, tmp_path: Path
) -> None:
    report = evaluated(tmp_path, subject(), attacks=("toy:size=0.1",))
    assert report.rows[0].robust_accuracy == 1.0
    tamper(tmp_path, change)
    (one,), _ = verify(tmp_path, [subject()], data())
    assert one.outside == outside
    assert one.excess > 0.06
    assert one.again == 1.0  # such an image counts as its clean one
    (line,) = problems([one])
    assert line == (
        f"a, deployed, toy (linf:0.25): {outside} of 40 leave ball or box by up to {one.excess:.2g}"
    )


def test_other_images_than_were_written_are_told(tmp_path: Path) -> None:
    evaluated(tmp_path, subject(), n=300, attacks=("toy:size=0.1",))
    tamper(tmp_path, lambda x: x.flip(0).flip(0))  # as they were
    ((same,), _) = verify(tmp_path, [subject()], data(300))
    assert same.altered == 0
    tamper(tmp_path, lambda x: 0.999 * x)  # inside the ball, and answered alike
    ((one,), _) = verify(tmp_path, [subject()], data(300))
    assert (one.outside, one.altered) == (0, 1)
    assert one.again == one.stored
    assert list(problems([one])) == [
        "a, deployed, toy (linf:0.25): 1 files hold other images than were written, by their "
        "SHA-256; evaluate again with --keep-examples"
    ]


def test_excess_is_in_pixel_units(tmp_path: Path) -> None:
    evaluated(tmp_path, subject(), attacks=("toy:size=0.0",))
    tamper(tmp_path, lambda x: x + torch.tensor([0.3, *[0.0] * 39]).view(-1, 1, 1, 1))
    (one,), _ = verify(tmp_path, [subject()], data())
    assert one.outside == 1
    assert one.excess == pytest.approx(0.05, abs=1e-5)
    evaluated(tmp_path / "b", subject(), attacks=("toy:size=0.0",))
    tamper(tmp_path / "b", lambda x: x + 5e-7)
    assert verify(tmp_path / "b", [subject()], data())[0][0].outside == 0


def test_examples_that_were_exchanged_for_harmless_ones_score_otherwise(tmp_path: Path) -> None:
    report = evaluated(tmp_path, subject(), attacks=("toy:size=0.25",))
    tamper(tmp_path, lambda _: images(40).test.images)
    (one,), _ = verify(tmp_path, [subject()], data())
    assert one.outside == 0
    assert (one.stored, one.again) == (report.rows[0].robust_accuracy, 1.0)


# ---------------------------------------------------------------- other data, weights, draws


def test_other_images_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path, subject())
    other = images(40)
    other.test.images[0] += 0.01
    with pytest.raises(DataError) as caught:
        verify(tmp_path, [subject()], images_of(other))
    assert str(caught.value) == (
        f"{files(tmp_path)[0].name} is of rows 0 to 39 of toy, and those of toy here are other "
        "images; give the data that was evaluated"
    )
    with pytest.raises(DataError, match="other images"):
        verify(tmp_path, [subject()], data(30))  # fewer of them


def test_other_weights_are_counted(tmp_path: Path) -> None:
    evaluated(tmp_path, subject(), subject(Plain(0.52), "b"))
    found, others = verify(tmp_path, [subject()], data())
    assert [one.defense for one in found] == ["a"]
    assert others == 1
    changed = replace(subject(), sha256="another")
    assert verify(tmp_path, [changed], data()) == ([], 2)


def test_draws_are_fresh_and_come_from_the_seed(tmp_path: Path) -> None:
    model = Mixed([0.5, 0.0], closed=False)
    report = evaluated(tmp_path, subject(model), attacks=("toy:size=0.1",), n=100)
    row = report.rows[0]

    def again(seed: int) -> list[Verified]:
        return verify(tmp_path, [subject(model)], data(100), seed=seed)[0]

    first, second, same = again(1), again(2), again(1)
    assert first == same
    assert {one.stored for one in first if one.view == "deployed"} == {row.robust_accuracy}
    by_draws = {one.again for found in (first, second) for one in found}
    assert len(by_draws) > 1
    for share in by_draws:  # half of the models call everything bright
        assert share == pytest.approx(0.75, abs=0.05)
        assert share * 100 * 20 == pytest.approx(round(share * 100 * 20))


def test_an_accuracy_that_is_gone_is_not_made_up(tmp_path: Path) -> None:
    evaluated(tmp_path, subject(), n=300)
    for path in files(tmp_path)[:1]:
        (tmp_path / "cells" / path.name).unlink()
    (one,), _ = verify(tmp_path, [subject()], data(300))
    assert one.stored is None
    assert one.images == 300


# ---------------------------------------------------------------- nothing, or damage


def test_without_kept_examples(tmp_path: Path) -> None:
    told = f"{tmp_path} holds no adversarial examples; evaluate with --keep-examples first"
    for keep in (None, False):
        if keep is not None:
            evaluated(tmp_path, subject(), keep_examples=False)
        with pytest.raises(ArtifactError) as caught:
            verify(tmp_path, [subject()], data())
        assert str(caught.value) == told
    with pytest.raises(ArtifactError, match="holds no adversarial examples"):
        verify(tmp_path / "nowhere", [subject()], data())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def headless(path: Path) -> None:
    write_tensors(path, read_tensors(path)[0])


def another_block(path: Path) -> None:
    tensors, header = read_tensors(path)
    block = {**json.loads(header["block"]), "colour": 1}
    write_tensors(path, tensors, {**header, "block": json.dumps(block)})


def imageless(path: Path) -> None:
    tensors, header = read_tensors(path)
    write_tensors(path, {"rows": tensors["rows"]}, header)


def fewer(path: Path) -> None:
    tensors, header = read_tensors(path)
    write_tensors(path, {**tensors, "images": tensors["images"][:3]}, header)


@pytest.mark.parametrize("damage", [cut, headless, another_block, imageless, fewer])
def test_a_damaged_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    evaluated(tmp_path, subject())
    (path,) = files(tmp_path)
    damage(path)
    with pytest.raises(ArtifactError) as caught:
        verify(tmp_path, [subject()], data())
    assert str(caught.value).startswith(str(path))
