"""Anybody's model on anybody's data, through `phalanx.evaluate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluation_toys import Plain, images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import phalanx
from phalanx.data import load_data
from phalanx.errors import DataError, InputError, NonFiniteError, PhalanxWarning, ValidityWarning
from phalanx.evaluation.preflight import preflight
from phalanx.evaluation.subjects import images_of, model_of, name_of
from phalanx.nn.foreign import Foreign, wrap

ATTACKS = ["fgsm", "pgd:steps=3"]


class Classifier(nn.Module):
    """Linear, seeded; `change` is done to its scores."""

    def __init__(self, change: Any = None, classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            self.layer.weight.copy_(torch.randn(classes, 64, generator=generator))
            self.layer.bias.zero_()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        scores = self.layer(x.flatten(1))
        return scores if self.change is None else self.change(scores)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    batch = load_data("digits").test.fetch(slice(60))
    return batch.x, batch.y


def evaluated(model: Any, data: Any, **rest: Any) -> Any:
    return phalanx.evaluate(model, data, attacks=ATTACKS, threat="linf:0.05", **rest)


# ---------------------------------------------------------------- models and data


def test_a_plain_module_is_wrapped_and_left_alone(digits: tuple[Tensor, Tensor]) -> None:
    model = Classifier()
    report = evaluated(model, digits)
    assert [row.defense for row in report.rows] == ["Classifier"] * 3
    right = (model(digits[0]).argmax(1) == digits[1]).float().mean()
    assert report.rows[0].clean_accuracy == pytest.approx(float(right))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert evaluated(wrap(model), digits).rows == report.rows
    assert evaluated(model, digits, name="mine").rows[0].defense == "mine"


@pytest.mark.parametrize("limit", [None, 25])
def test_every_form_of_data_gives_the_same_numbers(
    digits: tuple[Tensor, Tensor], limit: int | None
) -> None:
    x, y = digits
    dataset = TensorDataset(x, y)
    forms = [
        (x, y),
        (x.numpy(), y.numpy()),
        dataset,
        DataLoader(dataset, batch_size=7),
        DataLoader(dataset, batch_size=7, collate_fn=lambda rows: (
            torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        )),
    ]  # fmt: skip
    first, *others = [evaluated(Classifier(), data, limit=limit).rows for data in forms]
    assert first[0].n == (limit or 60)
    assert all(rows == first for rows in others)


def test_finished_cells_are_found_again_whatever_the_form(
    digits: tuple[Tensor, Tensor], tmp_path: Any
) -> None:
    evaluated(Classifier(), digits, out=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*")}
    assert len(before) == 3
    evaluated(Classifier(), DataLoader(TensorDataset(*digits), batch_size=9), out=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*")} == before


class Counted(Dataset[Any]):
    """A large data set, of which few rows are read."""

    def __init__(self) -> None:
        self.targets = torch.arange(10**6) % 10
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        self.read.add(row)
        return torch.full((1, 8, 8), (row % 100) / 100), int(self.targets[row])


def test_of_a_large_data_set_the_first_rows_alone_are_read() -> None:
    data = Counted()
    assert evaluated(Classifier(), data, limit=30).rows[0].n == 30
    assert data.read == set(range(30))
    data = Counted()  # the protocol's limit counts as well
    assert len(images_of(data, 500).split) == 500
    assert max(data.read) < 500


def test_a_shuffling_loader_is_evaluated_on_its_rows(digits: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(TensorDataset(*digits), batch_size=7, shuffle=True)
    rows = [evaluated(Classifier(), loader).rows for _ in range(2)]
    assert rows[0] == rows[1]
    clean = evaluated(Classifier(), digits).rows[0].clean_accuracy
    assert rows[0][0].clean_accuracy == pytest.approx(clean)


def test_names() -> None:
    assert name_of(model_of(Classifier())) == "Classifier"
    assert name_of(Plain()) == "Plain"
    assert isinstance(model_of(nn.Flatten()), Foreign)


# ---------------------------------------------------------------- asked first


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda s: (s, s), InputError, "Classifier answers with tuple, not with a tensor"),
        (lambda s: s[:, None], InputError, r"answered 2 images with torch.float32 of shape \(2, 1"),
        (lambda s: s.argmax(1), InputError, r"torch.int64 of shape \(2,\)"),
        (lambda s: s[:, :1], InputError, "Classifier answers with 1 column of scores"),
        (lambda s: s / 0, NonFiniteError, "infinite scores; its weights are finite, so look for"),
        (lambda s: s.missing, InputError, r"fails on 2 images \(2, 1, 8, 8\): AttributeError"),
        (
            lambda s: s[:, :5],
            DataError,
            r"label \d, but Classifier tells 5 classes apart \(labels 0",
        ),
    ],
)
def test_a_model_that_cannot_be_evaluated(
    change: Any, kind: Any, told: str, digits: tuple[Tensor, Tensor], tmp_path: Any
) -> None:
    model = Classifier(change)
    with pytest.raises(kind, match=told) as caught:
        evaluated(model, digits, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert model.training


def test_weights_that_hold_nan(digits: tuple[Tensor, Tensor]) -> None:
    model = Classifier()
    with torch.no_grad():
        model.layer.bias[3] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"in 1 tensors, 'layer.bias' first: load a checkpoint"
    ):
        evaluated(model, digits)


def test_images_of_another_shape(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(
        InputError, match=r"fails on 2 images \(2, 1, 9, 9\): RuntimeError.*shape\?"
    ):
        evaluated(Classifier(), (torch.rand(4, 1, 9, 9), torch.zeros(4, dtype=torch.long)))


def test_a_label_out_of_range_names_its_row(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    y = y.clone()
    y[41] = 17
    with pytest.raises(DataError, match=r"row 41 has label 17, but Classifier .*; 1 of 60 rows"):
        evaluated(Classifier(), (x, y))
    assert evaluated(Classifier(), (x, y), limit=41).rows[0].n == 41


class OfItsBatch(nn.Module):
    """Batch statistics in evaluation mode, so an image's scores depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)
        self.classifier = Classifier()

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.norm(x))


@pytest.mark.parametrize(
    ("model", "told", "failed"),
    [
        (
            Classifier(lambda s: s + 0.01 * torch.randn_like(s)),
            "Classifier answers differently from call to call; if that is meant, say "
            "phalanx.wrap(model, stochastic=True)",
            "stochastic",
        ),
        (
            OfItsBatch(),
            "OfItsBatch gives an image other scores alone than among others, as batch "
            "normalisation without running statistics does; mend that, or, if it is meant, say "
            "phalanx.wrap(model, stochastic=True), so that whole batches are attacked",
            "batch_dependence",
        ),
    ],
)
def test_what_is_no_function_of_each_image_has_to_be_declared(
    model: nn.Module, told: str, failed: str, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0], model(digits[0]).argmax(1)  # right on all, and so above chance
    with pytest.warns(ValidityWarning) as caught:
        report = phalanx.evaluate(model, (x, y), attacks=ATTACKS, threat="linf:0.0001")
    assert [str(one.message) for one in caught] == [told]
    assert caught[0].filename == __file__  # it points at who evaluates
    (found,) = report.defenses
    assert [one.id for one in found.checks if one.status == "fail"] == [failed]
    assert found.masking == "yes"
    assert [row.verdict for row in report.rows] == ["unreliable"] * 3
    declared = wrap(model, stochastic=True)
    assert not declared.views()["deployed"].rowwise  # no image is left out of a batch
    assert evaluated(declared, digits, limit=4, views=["deployed"]).rows[0].n == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rounding_is_no_randomness(dtype: torch.dtype, digits: tuple[Tensor, Tensor]) -> None:
    assert evaluated(Classifier().to(dtype), digits, limit=4).rows[0].n == 4


def test_weights_without_data(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="Classifier has weights without data"):
        evaluated(Classifier().to("meta"), digits)


class Blurred(Classifier):
    """What it does stands neither in its printed form nor in its state dict."""

    def __init__(self, width: float, shift: float) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.shift = torch.tensor([shift])

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.settings["width"] * x + self.shift)


def test_stored_cells_are_not_those_of_a_model_with_other_settings(
    digits: tuple[Tensor, Tensor], tmp_path: Any
) -> None:
    for count, model in enumerate((Blurred(1, 0), Blurred(-1, 0), Blurred(1, 0.5)), start=1):
        found = evaluated(model, digits, out=tmp_path).rows[0].clean_accuracy
        right = (model(digits[0]).argmax(1) == digits[1]).float().mean()
        assert found == pytest.approx(float(right))
        assert len(list(tmp_path.glob("cells/*"))) == 3 * count
    evaluated(Blurred(1, 0.5), digits, out=tmp_path)
    assert len(list(tmp_path.glob("cells/*"))) == 9


def test_probabilities_are_warned_of(digits: tuple[Tensor, Tensor]) -> None:
    model = Classifier(lambda s: s.softmax(1))
    with pytest.warns(ValidityWarning, match="Classifier seems to answer with probabilities"):
        evaluated(model, digits)
    evaluated(Classifier(lambda s: s.log_softmax(1)), digits)  # warnings are errors here


def test_every_view_is_asked_and_models_of_ours_are_not(digits: tuple[Tensor, Tensor]) -> None:
    split = images_of(digits).split
    bad = wrap(Classifier(), surrogate=Classifier(classes=4))
    with pytest.raises(InputError, match="the surrogate gives scores"):
        preflight(bad, split)
    plain = Plain()
    preflight(plain, images(4).test)
    assert plain.asked == 0


def test_an_absent_threat_and_what_is_no_data() -> None:
    with pytest.raises(InputError, match="has no threat, and the data has no default one"):
        phalanx.evaluate(Classifier(), TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4)))
    with pytest.raises(DataError, match="or a torch Dataset or DataLoader of these; found list"):
        phalanx.evaluate(Classifier(), [1, 2])  # type: ignore[arg-type]
    assert issubclass(ValidityWarning, PhalanxWarning)
