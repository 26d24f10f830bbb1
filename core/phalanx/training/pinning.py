"""A warm start's files by their hashes: what counts of them is their content, not their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phalanx.config import TIMM, InitConfig, RunConfig
from phalanx.errors import ArtifactError
from phalanx.training.artifacts import WEIGHTS
from phalanx.training.files import read_json, sha256


def pinned(config: RunConfig, folder: Path) -> RunConfig:
    """The config with the hash of each file of its warm start, which is what counts of it.

    Args:
        config: as it was read.
        folder: the run folder; what an earlier start noted there must still hold.

    Raises:
        ArtifactError: if a file is missing or has changed.
    """
    if config.init is None:
        return config
    sources = tuple(
        one if one == TIMM else str(Path(one).expanduser().absolute())
        for one in config.init.sources
    )
    asked = config.init.sha256 or ("",) * len(sources)
    before = _noted(folder, sources)
    digests = tuple(
        "" if source == TIMM else _checked(Path(source), one or other)
        for source, one, other in zip(sources, asked, before, strict=True)
    )
    return _with_init(config, sources, digests)


def public(config: RunConfig) -> RunConfig:
    """The config as it is shipped with the weights: files by their names, without their places."""
    if config.init is None:
        return config
    names = tuple(one if one == TIMM else Path(one).name for one in config.init.sources)
    return _with_init(config, names, config.init.sha256)


def _with_init(config: RunConfig, sources: Sequence[str], digests: Sequence[str]) -> RunConfig:
    alone = config.init is not None and isinstance(config.init.from_, str)
    init = InitConfig(from_=sources[0] if alone else tuple(sources), sha256=tuple(digests))
    return config.model_copy(update={"init": init})


def _checked(path: Path, wanted: str) -> str:
    """A source's hash; `wanted` if it is gone, which is found out where it is needed."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        if wanted:
            return wanted
        what = "is no finished run" if path.is_dir() else "does not exist"
        raise ArtifactError(
            f"init.from: {path} {what}; give 'timm', a checkpoint file, or a folder that "
            "`phalanx train` finished (a path in a run file starts at that file's folder)"
        )
    found = sha256(file)
    if wanted and found != wanted:
        raise ArtifactError(
            f"init.from: {path} is not the file that the config or the run folder noted (sha256 "
            f"{found[:16]}… now, {wanted[:16]}… then); put that one back, or train into another "
            "--out with init.sha256 left out"
        )
    return found


def _noted(folder: Path, sources: Sequence[str]) -> Sequence[str]:
    """The hashes that a run folder's config holds of these sources; '' where it holds none."""
    nothing = ("",) * len(sources)
    try:
        table = (read_json(folder / "config.json") or {}).get("init") or {}
        given, digests = table.get("from", ()), table.get("sha256", ())
    except (ArtifactError, AttributeError):
        return nothing
    given = (given,) if isinstance(given, str) else tuple(given)
    return tuple(digests) if given == tuple(sources) and len(digests) == len(given) else nothing
