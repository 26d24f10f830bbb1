"""The test images of ``phalanx evaluate``: a data set by name, or a folder of photos.

Torch-free to import, as every module of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phalanx.config import FOLDER, Backbone
from phalanx.errors import InputError

if TYPE_CHECKING:
    from phalanx.cli.foreign_model import ForeignModel
    from phalanx.data.checks import Told
    from phalanx.data.sets import Data
    from phalanx.training.artifacts import Run


@dataclass(frozen=True)
class AskedData:
    """What the command line says of the images.

    Attributes:
        name: of a data set, or ``folder``; None: that of the runs.
        root: where the data are; None: where the runs' are, or the default folder.
        image_size: side of a folder's images, for a foreign model.
        skip_unreadable: leave files of a folder out that cannot be read.
        told: how many files of how many of a folder are checked.
    """

    name: str | None
    root: Path | None
    image_size: int | None
    skip_unreadable: bool
    told: Told


def data_of_runs(runs: Sequence[Run], asked: AskedData) -> Data:
    """The test images of the data that all runs were trained on.

    Raises:
        InputError: if the runs are of different data, or the command line asks for others.
        DataError: if the data are missing, or a folder does not fit the runs.
    """
    from phalanx.training.inputs import evaluation_data

    name = _name_of(runs, asked.name)
    first = runs[0]
    if name == FOLDER:
        _check_same_photos(runs, asked)
    elif asked.skip_unreadable:
        raise InputError(f"--skip-unreadable is for a folder of photos; these runs are of {name}")
    if asked.image_size is not None:
        raise InputError("--image-size is for --model; a run remembers the size of its images")
    return evaluation_data(
        first, root=asked.root, skip_unreadable=asked.skip_unreadable, told=asked.told
    )


def data_of_model(model: ForeignModel, asked: AskedData) -> Data:
    """The test images for a foreign model; photos are prepared as timm has it for that model.

    Raises:
        InputError: if no data are named, or options are given that do not go together.
        DataError: if the data are missing or damaged.
    """
    from phalanx.data import default_root
    from phalanx.data.folder import Reading, load_evaluation_folder
    from phalanx.data.sets import load_data
    from phalanx.nn.resolve import timm_data

    if asked.name is None:
        raise InputError(
            f"--model {model.name} needs --data NAME, such as --data cifar10, or --data folder "
            "--data-root DIR"
        )
    if asked.name != FOLDER:
        if asked.skip_unreadable or asked.image_size is not None:
            raise InputError("--skip-unreadable and --image-size are for --data folder")
        return load_data(asked.name, root=asked.root or default_root())
    if asked.root is None:
        raise InputError("--data folder needs --data-root DIR, the folder of photos")
    backbone = Backbone(use=model.name, params=dict(model.options))
    found = timm_data(backbone, image_size=asked.image_size)
    reading = Reading(
        found.preprocessing,
        found.mean,
        found.std,
        unreadable="skip" if asked.skip_unreadable else "refuse",
        told=asked.told,
    )
    return load_evaluation_folder(asked.root, reading)


def _name_of(runs: Sequence[Run], asked: str | None) -> str:
    """The data set of all runs."""
    names = {run.config.data.use: run.path for run in runs}
    if len(names) > 1:
        told = ", ".join(f"{path} on {name}" for name, path in names.items())
        raise InputError(
            f"these runs were trained on different data ({told}); evaluate the runs of each data "
            "set in a call of their own"
        )
    ((found, path),) = names.items()
    if asked not in (found, None):
        raise InputError(f"--data {asked}, but {path} was trained on {found}; leave --data out")
    return found


def _check_same_photos(runs: Sequence[Run], asked: AskedData) -> None:
    """Refuse runs that do not take the same images."""
    first = runs[0]
    for run in runs[1:]:
        for what in ("class_names", "preprocessing"):
            one, other = getattr(first.task, what), getattr(run.task, what)
            if one != other:
                raise InputError(
                    f"{first.path} and {run.path} cannot be compared on the same images: their "
                    f"{what.replace('_', ' ')} differ ({one}; {other}); evaluate each in a call of "
                    "its own"
                )
        if asked.root is None and run.config.data.root != first.config.data.root:
            raise InputError(
                f"{first.path} and {run.path} were trained on different folders "
                f"({first.config.data.root}, {run.config.data.root}); name the one to evaluate "
                "both on by --data-root"
            )
