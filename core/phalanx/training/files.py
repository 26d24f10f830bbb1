"""Files that are whole or absent: atomic writes, hashes, safetensors with a checked header."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from phalanx.errors import ArtifactError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; restore it from a copy") from error


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
        raise ArtifactError(f"{path} is missing")
    try:
        if digest is not None and (found := sha256(path)) != digest:
            raise ArtifactError(
                f"{path} is damaged: its sha256 is {found[:16]}…, its manifest says "
                f"{digest[:16]}…; restore it from a copy"
            )
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            return tensors, _header(file.metadata())
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is not a whole safetensors file ({error}); restore it from a copy"
        ) from error


def _header(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What `write_tensors` was given as metadata; {} for a file of somebody else's."""
    try:
        header = json.loads((metadata or {}).get("phalanx", "{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}
