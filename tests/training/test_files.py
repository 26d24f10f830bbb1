"""Files are whole or absent."""

import json
import os
from pathlib import Path

import pytest
import torch

from phalanx.errors import ArtifactError
from phalanx.training import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


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


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "pickle"])
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
    if damage == "pickle":
        torch.save({"a": torch.rand(64)}, path)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    with pytest.raises(ArtifactError, match="is not a whole safetensors file"):
        files.read_tensors(path)


def test_missing_files_say_so(tmp_path):
    with pytest.raises(ArtifactError, match=r"w\.safetensors is missing"):
        files.read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"state\.json is missing: is .* a run folder\?"):
        files.read_json(tmp_path / "state.json")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"state\.json is damaged"):
        files.read_json(tmp_path / "state.json")
