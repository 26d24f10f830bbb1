"""Checkpoint files of anybody's: read without unpickling code, and loaded into a network strictly.

A file is told by its content, not by its ending: safetensors, or what ``torch.save`` wrote, read
with ``weights_only=True``. The one thing that is mapped is the classifier, whose layer every
author calls otherwise (``fc``, ``linear``, ``head``, ``classifier.6`` …).
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from phalanx.errors import ArtifactError
from phalanx.nn import sparse
from phalanx.nn.fit import Fit as Fit, fit
from phalanx.storage import reason_of

NESTINGS = ("state_dict", "model_state_dict", "model", "net")
"""Under which keys training scripts keep the state dict, beside epoch and optimizer."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_REFUSED = re.compile(r"GLOBAL ([A-Za-z_]\w*\.[\w.]*\w)")  # as torch names what it refuses
_AGAIN = "fetch it again, or take another copy"
_AS_TENSORS = (
    "where it was made, write its state dict alone: torch.save(model.state_dict(), FILE), which "
    "`phalanx convert` takes, or safetensors.torch.save_file(model.state_dict(), FILE)"
)


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint file, and where they come from.

    Attributes:
        tensors: name to tensor, on the CPU; nesting and common prefixes taken away.
        sha256: of the file.
        path: of the file.
        metadata: what Phalanx wrote into the header of a safetensors file; {} in anybody else's.
    """

    tensors: dict[str, Tensor]
    sha256: str
    path: Path
    metadata: Mapping[str, str]


def read_weights(path: Path | str) -> Weights:
    """The tensors of a checkpoint file: safetensors, or a state dict that ``torch.save`` wrote.

    A state dict under ``state_dict``, ``model_state_dict``, ``model`` or ``net`` is found there;
    a prefix ``module.`` or ``_orig_mod.`` of all names is left out. No code in a file is run.

    Raises:
        ArtifactError: if there is no such file, it is none of these, is damaged, holds objects
            other than tensors, no tensors at all, or NaN or infinity.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}") from error


def load_weights(module: nn.Module, weights: Weights, *, replace_head: bool = False) -> Fit:
    """Copy a file's tensors into a network, all or none.

    The file's classifier is mapped onto the module's own, whatever either is called. Counters of
    batches (``num_batches_tracked``) may be absent.

    Args:
        module: a timm classifier, or any other, whose last linear or convolutional layer is then
            taken for its classifier.
        weights: what `read_weights` gave.
        replace_head: leave the classifier as it is where the file has one of another number of
            classes, or none.

    Returns:
        What was renamed, and what of the classifier was left as it was.

    Raises:
        ArtifactError: with up to five each of the tensors that are missing, left over or of
            another shape, and what to do.
    """
    plan = fit(module, weights.tensors, replace_head=replace_head)
    if plan.problem:
        raise ArtifactError(f"{weights.path} does not fit {type(module).__name__}: {plan.problem}")
    own = module.state_dict()  # what is left as it was is copied onto itself
    module.load_state_dict({**own, **plan.tensors}, strict=True)
    return plan.fit


def _read(path: Path) -> Weights:
    head = _head(path)
    metadata: Mapping[str, str] = {}
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors = _state_dict(_read_torch(path, head), path)
    if not tensors:
        raise ArtifactError(f"{path} holds no tensors; give a file with a network's weights")
    strange = [name for name, value in tensors.items() if not _is_plain(value)]
    if strange:
        raise ArtifactError(
            f"{path}: {len(strange)} of {len(tensors)} tensors are sparse, quantised or without "
            f"data, {strange[0]!r} first; write plain ones where it was made: to_dense(), "
            "dequantize(), or the weights that were loaded"
        )
    broken = [name for name, value in tensors.items() if not _is_finite(value)]
    if broken:
        raise ArtifactError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]!r} "
            "first: a network with them computes nothing; take another copy, or a checkpoint from "
            "before its training diverged"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(_without_prefix(tensors), digest, path, metadata)


def _head(path: Path) -> bytes:
    """The first bytes of a file that is there and not empty, and no web page."""
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder; give the file with the weights (of a run: "
            f"{path / 'weights.safetensors'})"
        )
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; give a file with a network's weights")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ArtifactError(f"{path} is empty; {_AGAIN}")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ArtifactError(
            f"{path} is a web page, not weights: the address that it came from shows a page "
            "instead of the file; fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ArtifactError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull`")
    return head


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            kept = (file.metadata() or {}).get("phalanx", "{}")
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a whole safetensors file ({error}); {_AGAIN}") from None
    try:
        metadata = json.loads(kept)
    except ValueError:
        metadata = {}
    if not isinstance(metadata, dict):
        return tensors, {}
    try:
        return sparse.decode(tensors, metadata.pop(sparse.KEY, None)), metadata
    except ValueError as error:
        raise ArtifactError(f"{path} {error}") from error


def _read_torch(path: Path, head: bytes) -> Any:
    """What ``torch.save`` wrote, its objects refused unless they are tensors and containers."""
    if head.startswith(b"PK"):
        _check_zip(path)
    elif not head.startswith(b"\x80"):
        raise ArtifactError(
            f"{path} is neither a safetensors file nor one that torch.save wrote; {_AGAIN}, and "
            "unpack an archive first"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch warns of old formats; they are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on a file that is not its own
        text = str(error)
        if "weights_only" not in text and "Weights only" not in text:
            raise ArtifactError(
                f"{path} is not a whole file of torch.save ({_first_line(error)}); {_AGAIN}"
            ) from error
        named = _REFUSED.search(text)
        what = f"Python objects ({named[1]})" if named else "Python objects"
        raise ArtifactError(
            f"{path} holds {what} besides tensors, which could run code; nothing of it was "
            f"unpickled. {_AS_TENSORS[0].upper()}{_AS_TENSORS[1:]}"
        ) from error


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ArtifactError(f"{path} is cut short or damaged; {_AGAIN}") from None
    if not any(name.endswith("data.pkl") for name in names):
        raise ArtifactError(
            f"{path} is a zip archive that torch.save did not write ({len(names)} files, such as "
            f"{', '.join(names[:3]) or 'none'}); unpack it and give the file with the weights"
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise ArtifactError(
            f"{path} is a TorchScript archive: code with weights, and no code is run; {_AS_TENSORS}"
        )


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of what a file held, wherever a training script put it."""
    for _ in NESTINGS:  # no deeper, since a damaged file may hold itself
        if not isinstance(found, Mapping):
            break
        inner = (found[key] for key in NESTINGS if isinstance(found.get(key), Mapping))
        found = next(inner, found)
    if not isinstance(found, Mapping):
        raise ArtifactError(
            f"{path} holds a {type(found).__name__}, not a state dict; {_AS_TENSORS}"
        )
    tensors = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    if found and not tensors:
        keys = ", ".join(str(key) for key in list(found)[:5])
        raise ArtifactError(
            f"{path} holds no tensors under its keys ({keys}); a state dict is looked for at its "
            f"top and under {', '.join(NESTINGS)}; {_AS_TENSORS}"
        )
    return tensors


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # both, in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _is_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    wide = value.float() if value.is_floating_point() and value.element_size() == 1 else value
    return bool(torch.isfinite(wide).all())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
