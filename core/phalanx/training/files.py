"""Files that are whole or absent: atomic writes, hashes, safetensors with a checked header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from phalanx.errors import ArtifactError
from phalanx.storage import reason_of, write_atomically

__all__ = [
    "has_nan",
    "read_json",
    "read_tensors",
    "sha256",
    "what_is",
    "write_atomically",
    "write_json",
    "write_tensors",
]


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically; tables keep their order, which may count."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: is {path.parent} a run folder?") from None
    except ValueError as error:  # of JSON or UTF-8
        raise ArtifactError(f"{path} is damaged: {error}; restore it from a copy") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}") from error


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors as safetensors, atomically; the file's SHA-256.

    The metadata stand in the header under the one key ``phalanx``, as sorted JSON: safetensors
    writes several keys in an order that changes from call to call, and so would the hash.
    """
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    header = {"phalanx": json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    data = save(plain, metadata=header)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        path: the file.
        digest: the SHA-256 that it must have, where one is recorded.

    Raises:
        ArtifactError: if it is missing, is no safetensors file, or has another hash.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is {'a folder' if path.is_dir() else 'missing'}")
    try:
        if digest is not None and (found := sha256(path)) != digest:
            raise ArtifactError(
                f"{path} is damaged: its sha256 is {found[:16]}…, its manifest says "
                f"{digest[:16]}…; restore it from a copy, or make it again"
            )
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            return tensors, _header(file.metadata())
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is not a whole safetensors file: it is {what_is(path)}; {_way_out(path)}"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}") from error


def has_nan(value: Tensor) -> bool:
    """Whether a tensor holds NaN; infinity may be meant, as in the mask of an attention."""
    return value.is_floating_point() and bool(value.isnan().any())


def what_is(path: Path) -> str:
    """What a file's first bytes say that it is, for messages."""
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        return "empty"
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if len(start) > 8 and start[8:9] == b"{":
        return "a safetensors file that is cut short or damaged"
    try:
        start[: start.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return "in no format that Phalanx knows"
    return "text"


_PICKLED = "a pickle, as torch.save writes it"
_MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80": _PICKLED,
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed by gzip",
}


def _way_out(path: Path) -> str:
    """What to do with a file that is no whole safetensors file."""
    if "torch.save" in what_is(path):
        return "a checkpoint of a PyTorch model is turned over by `phalanx convert`"
    if what_is(path) == "text":
        return "give a run folder, or the weights.safetensors in one"
    return "restore it from a copy, or make it again"


def _header(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What `write_tensors` was given as metadata; {} for a file of somebody else's."""
    try:
        header = json.loads((metadata or {}).get("phalanx", "{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}
