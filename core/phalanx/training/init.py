"""What a run begins with: random weights, or those of timm, of checkpoint files, of other runs.

The backbone of each member gets a checkpoint, one for all or one each, whatever the defense; a
classifier of another number of classes stays as it was initialised. A run of the same defense and
structure gives its whole model. The mean and deviation that the weights were trained with become
the task's, so a trained model needs its sources no more.

The model that a run begins with is kept in its folder, so that a resume needs them no more either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from phalanx.config import TIMM, InitConfig, RunConfig
from phalanx.defense import DefendedModel
from phalanx.errors import ArtifactError, ConfigError
from phalanx.nn.member import Member, Normalize
from phalanx.nn.warm import Head, load_backbone, pretrained, statistics, with_channels
from phalanx.nn.weights import Weights, read_weights
from phalanx.specs import Task
from phalanx.training.artifacts import Run, build_model, open_run, shipped
from phalanx.training.checkpoint import Checkpoints

Statistics = tuple[tuple[float, ...], tuple[float, ...], str]
"""Mean and deviation per channel, and whose they are."""


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        model: untrained, or warm.
        task: the data's, with the mean and deviation that the weights were trained with.
        facts: for the manifest; {} without a warm start.
        kept: whether the run folder holds this model already.
    """

    model: DefendedModel
    task: Task
    facts: Mapping[str, Any]
    kept: bool = True

    def keep(self, checkpoints: Checkpoints) -> None:
        """Leave a warm model in the run folder, if it is not there yet."""
        if not self.kept:
            checkpoints.begin(
                self.model.state_dict(),
                {"task": self.task.model_dump_json(), "facts": json.dumps(self.facts)},
            )


def starting(config: RunConfig, task: Task, checkpoints: Checkpoints) -> Start:
    """The model that a run begins with: from its folder if it has begun, else from its sources.

    Raises:
        ConfigError: if the sources do not fit the defense's members, or each other, or there are
            none and the defense needs some.
        ArtifactError: if a source is missing, damaged, or of another network.
    """
    if config.init is None:
        reason = config.defense.create(task).warm_start_reason
        if reason:
            raise ConfigError([f"init: {reason}"], source="run file")
        return Start(build_model(config, task), task, {})
    begun = checkpoints.load_initial()
    if begun is None:
        return _warm(config, config.init, task)
    tensors, header = begun
    before = Task.model_validate_json(header["task"])
    task = task.model_copy(update={"mean": before.mean, "std": before.std})
    model = build_model(config, task)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            f"what the run in {checkpoints.folder} began with does not fit the model any more "
            f"({error}); was its plugin changed? Train into another --out"
        ) from error
    return Start(model, task, json.loads(header["facts"]))


# ---------------------------------------------------------------- sources


@dataclass(frozen=True)
class _Timm:
    """The pretrained weights that timm has of each member's own backbone."""

    def weights(self, member: Member, task: Task, index: int, count: int) -> Weights:
        if member.made_from is None:
            raise ConfigError(
                ["init.from: 'timm' needs members whose backbones timm made; give a file"],
                source="run file",
            )
        if not isinstance(member.normalize, Normalize):
            raise _otherwise(f"timm's weights of {member.made_from.use!r} were", "dataset")
        return pretrained(member.made_from, task)

    def statistics(self, member: Member, task: Task) -> Statistics | None:
        return _of_backbone(member, task)


@dataclass(frozen=True)
class _File:
    """A checkpoint of one backbone."""

    content: Weights

    def weights(self, member: Member, task: Task, index: int, count: int) -> Weights:
        return self.content

    def statistics(self, member: Member, task: Task) -> Statistics | None:
        return _of_backbone(member, task)


@dataclass(frozen=True)
class _Run:
    """A finished run: its members' backbones in turn, or its only one's."""

    name: str
    run: Run

    def weights(self, member: Member, task: Task, index: int, count: int) -> Weights:
        members = members_of(self.run.model)
        if len(members) not in (1, count):
            raise ConfigError(
                [
                    f"init.from: {self.name} has {len(members)} members, and this defense {count}; "
                    "give a run with one member or as many, or a list"
                ],
                source="run file",
            )
        theirs = members[index if len(members) == count else 0]
        if isinstance(theirs.normalize, Normalize) is not isinstance(member.normalize, Normalize):
            value = "dataset" if isinstance(theirs.normalize, Normalize) else "none"
            raise _otherwise(f"{self.name} was", value)
        return Weights(theirs.backbone.state_dict(), self.run.sha256, Path(self.name), {})

    def statistics(self, member: Member, task: Task) -> Statistics | None:
        parts = [one.normalize for one in members_of(self.run.model)]
        own = next((part for part in parts if isinstance(part, Normalize)), None)
        if own is None:
            return None
        mean, std = self.run.task.mean, self.run.task.std
        if not own.has(mean, std):  # a defense may have constants of its own
            mean, std = (tuple(value.flatten().tolist()) for value in (own.mean, own.std))
        channels = task.shape[0]
        return with_channels(mean, channels), with_channels(std, channels), self.name


_Source = _Timm | _File | _Run


def _read(source: str) -> _Source:
    if source == TIMM:
        return _Timm()
    path = Path(source)
    if path.is_dir():
        return _Run(path.name, open_run(path))
    content = read_weights(path)
    if str(content.metadata.get("format", "")).startswith("phalanx/"):
        return _Run(path.name, open_run(path))
    return _File(content)


def _otherwise(whose: str, value: str) -> ConfigError:
    return ConfigError(
        [
            f"defense.params.normalization: {whose} trained with {value!r}, so its weights need it "
            f"too; set normalization = {value!r}"
        ],
        source="run file",
    )


def _of_backbone(member: Member, task: Task) -> Statistics | None:
    found = statistics(member.made_from, task.shape[0])
    if found is None or member.made_from is None:
        return None
    return *found, f"timm:{member.made_from.use}"


def members_of(model: DefendedModel) -> tuple[Member, ...]:
    """The networks of a model that have a backbone, in the model's order."""
    named = tuple(part for part in model.members if isinstance(part, Member))
    return named or tuple(part for part in model.modules() if isinstance(part, Member))


# ---------------------------------------------------------------- a warm model


def _warm(config: RunConfig, init: InitConfig, task: Task) -> Start:
    """The model of a config with the sources' weights in its members."""
    given = [_read(source) for source in init.sources]
    model = build_model(config, task)
    whole = _whole(given, init, config, model)
    sources = _for_members(given, init, config, model)
    mean, std, whose = _statistics(sources, model, task)
    if (mean, std) != (task.mean, task.std):
        task = task.model_copy(update={"mean": mean, "std": std})
        model = build_model(config, task)
    members = members_of(model)
    _check_normalised(sources, members, task)
    loaded: list[tuple[str, str, Head]] = []
    made: dict[tuple[int, str], Weights] = {}
    for index, (member, source) in enumerate(zip(members, sources, strict=True)):
        place = (id(source), str(member.made_from)) if isinstance(source, _Timm) else (index, "")
        if place not in made:  # timm is asked once for members of one architecture
            made[place] = source.weights(member, task, index, len(members))
        weights = made[place]
        try:
            head = load_backbone(member, weights, task)
        except ArtifactError as error:
            raise ArtifactError(f"init.from, for member {index}: {error}") from error
        loaded.append((weights.path.name, weights.sha256, head))
    if whole is not None:
        model.load_state_dict(whole, strict=False)  # aux is not part of a run's weights
    facts = {"init": _records(loaded), "normalization": {"mean": mean, "std": std, "from": whose}}
    return Start(model, task, facts, kept=False)


def _whole(
    given: Sequence[_Source], init: InitConfig, config: RunConfig, model: DefendedModel
) -> dict[str, Tensor] | None:
    """The state of a run of the same defense and structure; None of anything else."""
    source = given[0]
    if not isinstance(init.from_, str) or not isinstance(source, _Run):
        return None
    own, theirs = shipped(model), shipped(source.run.model)
    same = source.run.config.defense.use == config.defense.use and own.keys() == theirs.keys()
    return theirs if same and all(own[k].shape == theirs[k].shape for k in own) else None


def _for_members(
    given: Sequence[_Source], init: InitConfig, config: RunConfig, model: DefendedModel
) -> Sequence[_Source]:
    """A source for each member.

    Raises:
        ConfigError: if there are no members, or not as many as sources.
    """
    count = len(members_of(model))
    if not count:
        problem = f"defense {config.defense.use!r} has no members with a backbone to start from"
    elif isinstance(init.from_, str):
        return [given[0]] * count
    elif len(given) != count:
        problem = (
            f"{len(given)} sources for {count} members; give one for all as text, or a list of "
            f"{count}"
        )
    else:
        return given
    raise ConfigError([f"init.from: {problem}"], source="run file")


def _statistics(sources: Sequence[_Source], model: DefendedModel, task: Task) -> Statistics:
    """The mean and deviation that all sources were trained with; the data's if nobody normalises.

    Raises:
        ConfigError: if they differ: a task has one mean.
    """
    found: dict[tuple[tuple[float, ...], tuple[float, ...]], str] = {}
    for member, source in zip(members_of(model), sources, strict=True):
        if isinstance(member.normalize, Normalize):
            told = source.statistics(member, task)
            mean, std, whose = told or (task.mean, task.std, task.name)
            found.setdefault((mean, std), whose)
    if len(found) > 1:
        listed = "; ".join(f"{whose}: mean {pair[0]}" for pair, whose in found.items())
        raise ConfigError(
            [f"init.from: the sources were trained with different normalisations ({listed})"],
            source="run file",
        )
    for (mean, std), whose in found.items():
        return mean, std, whose
    return task.mean, task.std, task.name


def _check_normalised(sources: Sequence[_Source], members: Sequence[Member], task: Task) -> None:
    """Hold the constants of a defense's own normalisation against those of the weights.

    Raises:
        ConfigError: if they differ.
    """
    for member, source in zip(members, sources, strict=True):
        own, told = member.normalize, source.statistics(member, task)
        if told is None or not isinstance(own, Normalize) or own.has(told[0], told[1]):
            continue
        found = tuple(own.mean.flatten().tolist())
        raise ConfigError(
            [
                f"defense.params.normalization: the weights of {told[2]} were trained with mean "
                f"{told[0]}, and this defense normalises with {found}; set normalization = "
                "'dataset'"
            ],
            source="run file",
        )


def _records(loaded: Sequence[tuple[str, str, Head]]) -> list[dict[str, Any]]:
    """One entry for each source: whose weights, for which members, with which classifier."""
    entries: dict[tuple[str, str, Head], list[int]] = {}
    for index, one in enumerate(loaded):
        entries.setdefault(one, []).append(index)
    return [
        {"source": name, "sha256": digest, "members": members, "head": head}
        for (name, digest, head), members in entries.items()
    ]
