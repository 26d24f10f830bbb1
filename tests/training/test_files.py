"""Files are whole or absent."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phalanx.errors import ArtifactError
from phalanx.nn import sparse
from phalanx.nn.weights import read_weights
from phalanx.randomness import generator
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


def with_zeros():
    weight = torch.zeros(64, 64)
    weight[::4] = torch.rand(64, generator=generator(0))
    weight[4, 0] = -0.0
    return {"bias": torch.rand(64, generator=generator(1)), "weight": weight}


def test_packed_zeros_come_back_and_take_no_room(tmp_path):
    tensors, metadata = with_zeros(), {"task": "digits"}
    path, plain = tmp_path / "packed.safetensors", tmp_path / "plain.safetensors"
    digest = files.write_tensors(path, tensors, metadata, pack=True)
    files.write_tensors(plain, tensors, metadata)
    assert files.data_bytes(path) == 64 * 4 + 16 * 64 * 4 + 8
    assert files.data_bytes(plain) == 64 * 4 + 64 * 64 * 4
    assert path.stat().st_size < plain.stat().st_size / 3
    found, told = files.read_tensors(path, digest)
    assert told == metadata
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32))


def test_tensors_without_zeros_are_written_as_ever(tmp_path):
    tensors = {"a": torch.arange(1.0, 4097.0).view(64, 64), "steps": torch.zeros(4096).long()}
    own = files.write_tensors(tmp_path / "a.safetensors", tensors, {"task": "digits"}, pack=True)
    assert own == files.write_tensors(tmp_path / "b.safetensors", tensors, {"task": "digits"})
    before = "300ffc511e637cb4aad517c34be1047c64556ab87be4fe0da3c2939313961392"
    assert own == before  # as written before there were groups


@pytest.mark.parametrize("pack", [True, False])
def test_the_key_of_packed_tensors_is_taken(tmp_path, pack):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match=r"w\.safetensors: the key 'sparse' of the metadata says"):
        files.write_tensors(path, with_zeros(), {"sparse": "yes"}, pack=pack)
    assert not path.exists()


def test_packed_tensors_that_do_not_fit_are_damaged(tmp_path):
    tensors, told = sparse.encode(with_zeros())
    for group, error in (([1, 32, 1], r"8 bytes of bits for 128 groups"), ([], "shape")):
        told["tensors"]["weight"]["group"] = group
        path = tmp_path / "w.safetensors"
        save_file(tensors, path, {"phalanx": json.dumps({"sparse": told})})
        with pytest.raises(ArtifactError, match=rf"safetensors is damaged: its 'weight'.*{error}"):
            files.read_tensors(path)
        with pytest.raises(ArtifactError, match=rf"safetensors is damaged: its 'weight'.*{error}"):
            read_weights(path)


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
