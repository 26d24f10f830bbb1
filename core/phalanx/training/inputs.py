"""The data of a run: a known set in memory, or a folder of photos as its backbone takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from phalanx.config import FOLDER, RunConfig
from phalanx.data import default_root, load_data
from phalanx.data.checks import FolderRecord, Told
from phalanx.data.folder import Reading, load_evaluation_folder, load_folder
from phalanx.data.sets import Data
from phalanx.errors import ArtifactError, ConfigError
from phalanx.nn.resolve import backbone_of, timm_data
from phalanx.training.artifacts import Run
from phalanx.training.files import read_json, write_json

RECORD = "data.json"
"""Of a run on a folder: which files it has, and which cannot be read."""


def ignore(done: int, files: int) -> None:
    """Nobody listens."""


def training_data(
    config: RunConfig,
    out: Path,
    *,
    root: Path | None = None,
    download: bool = False,
    told: Told = ignore,
) -> Data:
    """The data that a run is trained on; a folder is checked once and remembered in `out`.

    Args:
        config: of the run.
        out: the run folder; what an earlier start found in a folder of photos is read there.
        root: of the data; absent: the config's, then `phalanx.data.default_root`.
        download: fetch a known data set that is not there.
        told: how many files of how many of a folder are checked.

    Raises:
        ConfigError: if a folder's place or backbone is not told.
        DataError: if the data are missing, or not those that the run began with.
        ArtifactError: if what the run remembers of its folder is damaged.
    """
    wanted = config.data
    if wanted.use != FOLDER:
        return load_data(
            wanted.use,
            root=root or default_root(),
            limit=wanted.limit,
            validation=wanted.validation,
            download=download,
        )
    backbone = backbone_of(config.defense.params)
    if backbone is None:
        raise ConfigError(
            [
                f"defense {config.defense.use!r} names no backbone, so nothing says how photos are "
                "resized and normalised; choose a defense with one"
            ],
            source="run file",
        )
    found = timm_data(backbone, image_size=wanted.image_size)
    reading = Reading(
        found.preprocessing,
        found.mean,
        found.std,
        workers=wanted.workers,
        unreadable="skip" if wanted.skip_unreadable else "refuse",
        told=told,
    )
    return load_folder(
        folder_of(config, root),
        reading,
        limit=wanted.limit,
        validation=wanted.validation,
        known=_read_record(out),
    )


def evaluation_data(
    run: Run,
    *,
    root: Path | None = None,
    skip_unreadable: bool = False,
    told: Told = ignore,
) -> Data:
    """The data that a run is evaluated on; photos are read as the run's task says.

    Args:
        run: its task says how photos are prepared, and what its classes are called.
        root: as in `training_data`.
        skip_unreadable: leave files out that cannot be read, also where the config does not.
        told: as in `training_data`.

    Raises:
        ConfigError: if a folder's place is not told.
        DataError: if the data are missing, damaged, or of other classes.
    """
    config, task = run.config, run.task
    if config.data.use != FOLDER or task.preprocessing is None:
        return load_data(config.data.use, root=root or default_root())
    skip = skip_unreadable or config.data.skip_unreadable
    reading = Reading(
        task.preprocessing,
        task.mean,
        task.std,
        workers=config.data.workers,
        unreadable="skip" if skip else "refuse",
        told=told,
    )
    data = load_evaluation_folder(folder_of(config, root), reading, classes=task.class_names)
    trained = _read_record(run.path) if run.path.is_dir() else None
    if trained is None or data.folder is None:
        return data
    record = FolderRecord(parts={**trained.parts, **data.folder.parts})
    return replace(data, folder=record)


def folder_of(config: RunConfig, root: Path | None) -> Path:
    """Where a run's photos lie: what the call says, else what its config does.

    Raises:
        ConfigError: if neither says.
    """
    if root is None and config.data.root is None:
        raise ConfigError(
            ["data.root: name the folder of photos here, or by --data-root"], source="run file"
        )
    return (root or Path(str(config.data.root))).expanduser()


def keep_record(data: Data, out: Path) -> None:
    """Remember a folder's files in the run folder."""
    if data.folder is not None:
        write_json(out / RECORD, data.folder.model_dump(mode="json"))


def _read_record(out: Path) -> FolderRecord | None:
    if not (out / RECORD).exists():
        return None
    try:
        return FolderRecord.model_validate(read_json(out / RECORD))
    except ValidationError as error:
        raise ArtifactError(
            f"{out / RECORD} is damaged ({error.error_count()} wrong fields); restore it from a "
            "copy"
        ) from error
