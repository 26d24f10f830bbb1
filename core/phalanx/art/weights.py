"""An estimator's weights in a safetensors file: header and tensors, nothing that is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from art import config as art_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from phalanx.errors import ArtifactError


def file(filename: str, path: str | None) -> Path:
    """Where an estimator's weights lie: in `path`, or in ART's data folder as ART has it."""
    folder = Path(art_config.ART_DATA_PATH if path is None else path)
    return folder / f"{filename}.safetensors"


def write(file: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a module's state and a JSON header."""
    # copies, because safetensors refuses tied and channels-last tensors
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    save_file(flat, file, {"phalanx": json.dumps(header)})


def header(file: Path) -> dict[str, Any]:
    """The JSON header.

    Raises:
        ArtifactError: if the file is missing, damaged or foreign.
    """
    if not file.is_file():
        raise ArtifactError(f"no estimator at {file}: save writes one, load takes the same name")
    try:
        with safe_open(file, framework="pt") as stored:
            kept: dict[str, Any] = json.loads((stored.metadata() or {})["phalanx"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged, or not written by an estimator's save") from error
    return kept


def read(file: Path, state: Mapping[str, Tensor]) -> None:
    """Copy the stored tensors into a module's state, all or none.

    Raises:
        ArtifactError: if the file is missing, damaged or of another model.
    """
    header(file)
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        wrong = sorted(
            name
            for name in names | state.keys()
            if name not in names or name not in state or shapes[name] != tuple(state[name].shape)
        )
        if wrong:
            raise ArtifactError(
                f"{file} holds the weights of another model: {len(wrong)} tensors differ, "
                f"{wrong[0]!r} first; build the defense with the config that it was saved under"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(stored.get_tensor(name))
