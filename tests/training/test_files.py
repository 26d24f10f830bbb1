"""Files are whole or absent."""

import pickle
from pathlib import Path

import pytest
import torch

from phalanx.errors import ArtifactError
from phalanx.training import files


def test_tensors_round_trip_with_their_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.rand(3, dtype=torch.float64)}
    digest = files.write_tensors(path, tensors, {"task": "digits"})
    assert digest == files.sha256(path)
    found, metadata = files.read_tensors(path, digest)
    assert metadata == {"task": "digits"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_channels_last_tensors_are_stored_contiguously(tmp_path):
    weight = torch.rand(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    files.write_tensors(tmp_path / "w.safetensors", {"w": weight})
    found, _ = files.read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(found["w"], weight)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_tensors_are_refused(tmp_path: Path, damage):
    path = tmp_path / "w.safetensors"
    digest = files.write_tensors(path, {"a": torch.rand(64)})
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged: its sha256 is"):
            files.read_tensors(path, digest)
        return
    path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    with pytest.raises(ArtifactError, match="is not a whole safetensors file"):
        files.read_tensors(path)


def a_pickle(path):
    path.write_bytes(pickle.dumps({"a": [1.0] * 9}))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (a_pickle, "a pickle, as torch.save writes it; a checkpoint of a PyTorch model is turned"),
        (
            lambda p: torch.save({"a": torch.rand(9)}, p),
            "a zip archive, as torch.save writes it; a",
        ),
        (lambda p: p.write_bytes(b""), "empty; restore it from a copy, or make it again"),
        (lambda p: p.write_text("wörds\n" * 3), "text; give a run folder, or the weights.safe"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(30)), "compressed by gzip; restore it"),
        (lambda p: p.write_bytes(b"\xff\xfe" * 20), "in no format that Phalanx knows; restore"),
        (
            lambda p: p.write_bytes(b"\xff" * 8 + b'{"a"' + bytes(9)),
            "a safetensors file that is cut short or damaged; restore it from a copy",
        ),
    ],
    ids=["pickle", "zip", "empty", "text", "gzip", "bytes", "cut"],
)
def test_other_files_are_called_by_their_name(tmp_path, make, told):
    path = tmp_path / "w.safetensors"
    make(path)
    with pytest.raises(ArtifactError) as caught:
        files.read_tensors(path)
    assert f"is not a whole safetensors file: it is {told}" in str(caught.value)


def test_infinity_may_be_meant_and_nan_is_not():
    assert files.has_nan(torch.tensor([1.0, float("nan")]))
    assert not files.has_nan(torch.tensor([1.0, -float("inf")]))
    assert not files.has_nan(torch.tensor([1, 2]))


def test_missing_files_say_so(tmp_path):
    with pytest.raises(ArtifactError, match=r"w\.safetensors is missing"):
        files.read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="is a folder"):
        files.read_tensors(tmp_path)
    with pytest.raises(ArtifactError, match=r"state\.json is missing: is .* a run folder\?"):
        files.read_json(tmp_path / "state.json")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"state\.json is damaged"):
        files.read_json(tmp_path / "state.json")
