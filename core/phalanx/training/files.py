"""Files that are whole or absent: atomic writes, hashes, safetensors with a checked header.

Weights may be written without their zeros (`phalanx.nn.sparse`); they are read as they were.
"""

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
from phalanx.nn import sparse
from phalanx.storage import reason_of, write_atomically

__all__ = [
    "data_bytes",
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
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    pack: bool = False,
) -> str:
    """Write tensors as safetensors, atomically; the file's SHA-256.

    The metadata stand in the header under the one key ``phalanx``, as sorted JSON: safetensors
    writes several keys in an order that changes from call to call, and so would the hash.

    Args:
        path: the file.
        tensors: by name.
        metadata: any key but ``sparse``.
        pack: leave zeros out of tensors where that saves room; without such tensors the file is
            the same as without it.

    Raises:
        ValueError: if the metadata have the key that says what is packed.
    """
    if metadata and sparse.KEY in metadata:
        raise ValueError(
            f"{path.name}: the key {sparse.KEY!r} of the metadata says which tensors are packed: "
            "write yours under another one"
        )
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    told: dict[str, Any] = dict(metadata or {})
    if pack:
        plain, packed = sparse.encode(plain)
        told |= {sparse.KEY: packed} if packed else {}
    header = {"phalanx": json.dumps(told, sort_keys=True)} if told else None
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
            header = _header(file.metadata())
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is not a whole safetensors file: it is {what_is(path)}; {_way_out(path)}"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        return sparse.decode(tensors, header.pop(sparse.KEY, None)), header
    except ValueError as error:
        raise ArtifactError(f"{path} {error}") from error


def data_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file, those of its header left out.

    Raises:
        ArtifactError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
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


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What `write_tensors` was given as metadata, and what is packed; {} for somebody else's."""
    try:
        header = json.loads((metadata or {}).get("phalanx", "{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}
