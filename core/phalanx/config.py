"""Configs of components and of the training that all defenses share: frozen, torch-free.

A config that names another component holds a `Use`: the name, and that component's own validated
config. Names resolve through the registry in the validation context (``{"registry": …}``), or
through `phalanx.default_registry` where none is given, so an unresolved `Use` never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from phalanx.errors import PhalanxError
from phalanx.specs import FOLLOWS, AnyThreat, Kind, NoBall, Spec, Threat


class DefenseConfig(Spec):
    """Base of every defense's config: the paper's own hyper-parameters, members, backbone."""


class PerturbationConfig(Spec):
    """Base of every perturbation's config."""


class PrunerConfig(Spec):
    """Base of every pruner's config."""


class AttackConfig(Spec):
    """Base of every attack's config."""

    threat: AnyThreat | None = Field(
        None, description="What the attacker may change; absent: the data set's default threat."
    )

    @field_validator("threat", mode="after")
    @classmethod
    def _default_threat(cls, value: Threat | None, info: ValidationInfo) -> Threat | None:
        return value if value is not None else (info.context or {}).get("threat")

    @property
    def asks_model(self) -> bool:
        """Whether the attack looks at the model at all; if not, one cell stands for all views."""
        return True

    @property
    def holds_clean(self) -> bool:
        """Whether the attacker may leave the image as it is.

        If so, an image that is wrong without an attack counts as an error under it.
        """
        return True

    def at(self, threat: Threat) -> Self:
        """The same settings at another threat."""
        return self.model_copy(update={"threat": threat})


class Use(Spec):
    """A component by its registered name: ``{"use": "pgd", "params": {…}}``, or just ``"pgd"``."""

    kind: ClassVar[Kind]

    use: str
    params: SerializeAsAny[Spec] = Field(default={})  # type: ignore[assignment]  # resolved below

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data

    @field_validator("use", mode="after")
    @classmethod
    def _is_registered(cls, name: str, info: ValidationInfo) -> str:
        try:
            _registry(info).config_class(cls.kind, name)
        except PhalanxError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("params", mode="plain")
    @classmethod
    def _resolve(cls, params: Any, info: ValidationInfo) -> Spec:
        name = info.data.get("use")
        if name is None:
            raise PydanticCustomError(FOLLOWS, "cannot be read without a valid 'use'")
        registry = _registry(info)
        config_class: type[Spec] = registry.config_class(cls.kind, name)
        if isinstance(params, config_class):
            params = {key: getattr(params, key) for key in params.model_fields_set}
        if not isinstance(params, Mapping):
            raise ValueError(
                f"should be a table of keys of {config_class.__name__}, found {params!r}"
            )
        given = registry.family_arguments(cls.kind, name)
        return config_class.model_validate({**given, **params}, context=info.context)

    def create(self, *args: Any) -> Any:
        """Build the component: its factory called with its config and `args`."""
        from phalanx.registry import default_registry

        return default_registry().create(self.kind, self.use, self.params, *args)


def _registry(info: ValidationInfo) -> Any:
    """The registry of the validation context, else the default one."""
    registry = (info.context or {}).get("registry")
    if registry is None:
        from phalanx.registry import default_registry

        registry = default_registry()
    return registry


class UseDefense(Use):
    """A defense by its registered name."""

    kind = Kind.DEFENSE


class UseAttack(Use):
    """An attack by its registered name."""

    kind = Kind.ATTACK


class UsePerturbation(Use):
    """A perturbation by its registered name."""

    kind = Kind.PERTURBATION


class UsePruner(Use):
    """A pruner by its registered name."""

    kind = Kind.PRUNER


class Backbone(Spec):
    """A classifier from timm's registry by its name, ours among them, with its own keywords."""

    use: str
    params: dict[str, Any] = Field(default={}, description="Keywords of timm.create_model.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data


Normalization = Literal["dataset", "none"]
"""Inside each member: the data set's mean and standard deviation, or nothing."""


class OptimizerConfig(Spec):
    """The optimizer of a phase; one is built per parameter group of the phase."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = Field(0.1, description="Learning rate before the schedule's factor.")
    momentum: NonNegativeFloat = Field(0.0, description="SGD's momentum.")
    nesterov: bool = False
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates.")
    weight_decay: NonNegativeFloat = 0.0
    clip_grad: PositiveFloat | None = Field(
        None, description="Largest L2 norm of a group's gradient; absent: no clipping."
    )


class ScheduleConfig(Spec):
    """The learning rate's factor as a function of a phase's progress in [0, 1]."""

    name: Literal["constant", "cosine", "multistep"] = "constant"
    warmup: float = Field(0.0, ge=0.0, lt=1.0, description="Share of progress of linear warm-up.")
    floor: float = Field(0.0, ge=0.0, le=1.0, description="Factor at the end of 'cosine'.")
    milestones: tuple[float, ...] = Field((), description="Progress at which 'multistep' steps.")
    gamma: float = Field(0.1, gt=0.0, description="Factor per milestone of 'multistep'.")

    def build(self) -> Callable[[float], float]:
        """The schedule as a pure function of progress."""
        return self.factor

    def factor(self, progress: float) -> float:
        """The learning rate's factor at `progress` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.name == "multistep":
            return self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        if self.name == "cosine":
            after = (progress - self.warmup) / (1.0 - self.warmup)
            return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * after)) / 2.0
        return 1.0


class PerturbationType(Spec):
    """One kind of input that a model is trained for: clean, attacked, or naturally perturbed."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="Unique among the types; small letters."
    )
    attack: UseAttack | None = Field(None, description="Makes adversarial examples of the image.")
    perturbation: UsePerturbation | None = Field(
        None, description="Changes the image and knows no model; neither: the clean image."
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.attack is not None and self.perturbation is not None:
            raise ValueError(
                f"{self.name!r} has an attack and a perturbation: keep one, or write two types"
            )
        return self


class AdversarialConfig(Spec):
    """Adversarial training as a batch transform."""

    attack: UseAttack = Field(default={"use": "pgd", "params": {"steps": 10}})  # type: ignore[assignment]  # validated
    mode: Literal["replace", "half", "twin"] = Field(
        "replace",
        description="replace the batch, replace its first half, or add an adversarial twin",
    )
    batchnorm: Literal["eval", "train"] = Field(
        "eval", description="Mode of the batch normalisation layers while attacking."
    )


class PhaseOverrides(Spec):
    """What a run file may change of a phase; absent means the paper's value."""

    batch_size: PositiveInt | None = Field(None, description="Images per step.")
    epochs: NonNegativeInt | None = Field(
        None, description="Passes over the data; 0: the phase takes no step, as one that is done."
    )
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig | None = None
    augment: tuple[Literal["crop", "flip"], ...] | None = Field(
        None, description="crop: pad by 4, crop at random; flip: mirror half of the images."
    )
    perturbation: UsePerturbation | None = Field(
        None,
        description="Of every image, after augmentation and before adversarial examples are made.",
    )
    adversarial: AdversarialConfig | None = None
    ema: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Decay of an average of the weights, which is validated and kept; 0: none.",
    )
    select: Literal["last", "best-validation"] | None = Field(
        None,
        description="Epoch whose weights are kept; best: on held-out images, by data.validation,"
        " but for phases with a pruner, whose last is.",
    )

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        """A table replaces the phase's own, so what is left out would silently be a default."""
        for key, needed in (("optimizer", {"name", "lr"}), ("schedule", {"name"})):
            table = getattr(self, key)
            missing = sorted(needed - table.model_fields_set) if table is not None else []
            if missing:
                raise ValueError(
                    f"{key} replaces the phase's whole {key}: write {' and '.join(missing)} too"
                )
        return self


class TrainingConfig(PhaseOverrides):
    """What every defense's training has."""

    precision: Literal["float32", "bfloat16"] = "float32"
    threads: PositiveInt = Field(1, description="torch threads; bit-exact resume needs the same.")
    phases: dict[str, PhaseOverrides] = Field(
        default={}, description="Overrides for phases whose name fits the pattern (fnmatch)."
    )


class EvaluationConfig(Spec):
    """How a run wants to be evaluated."""

    protocol: str = "quick"
    threat: AnyThreat | None = Field(None, description="Absent: the data set's default threat.")
    limit: PositiveInt | None = Field(None, description="First N test images; absent: protocol's.")
    attacks: tuple[UseAttack, ...] = Field((), description="Instead of a protocol.")
    views: tuple[str, ...] = Field((), description="Absent: all views.")


FOLDER = "folder"
"""The name of a folder of photos among the data sets."""


class DataConfig(Spec):
    """Which data set a run is trained on."""

    use: str = "digits"
    limit: PositiveInt | None = Field(
        None, description="Train on so many images, a fixed subset of what validation leaves."
    )
    validation: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the training set held out, to log and select by."
    )
    root: str | None = Field(
        None, description="Of use = 'folder': where its photos are; --data-root goes before it."
    )
    image_size: PositiveInt | None = Field(
        None, description="Of a folder: side of its images; absent: the backbone's own."
    )
    workers: NonNegativeInt = Field(
        2,
        description="Of a folder: processes that decode, at most one a core; 0: none.",
    )
    skip_unreadable: bool = Field(
        default=False,
        description="Of a folder: leave files out that cannot be read, and report them.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Keys of a folder say nothing of another data set."""
        keys = ("root", "image_size", "workers", "skip_unreadable")
        defaults = {key: type(self).model_fields[key].default for key in keys}
        given = [key for key in keys if getattr(self, key) != defaults[key]]
        if given and self.use != FOLDER:
            raise ValueError(
                f"{', '.join(given)}: only for use = 'folder', a folder of photos; found use = "
                f"{self.use!r}"
            )
        return self


TIMM = "timm"
"""What a run file calls timm's pretrained weights."""


def _as_sources(value: Any) -> Any:
    """Paths as text, a list as a tuple.

    Raises:
        ValueError: if it is no source and no list of sources.
    """
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not given or not all(isinstance(one, str | PurePath) and str(one) for one in given):
        raise ValueError(
            f"should be {TIMM!r}, a checkpoint file, a run folder, or a list of these, found "
            f"{value!r}"
        )
    found = tuple(str(one) for one in given)
    return found if isinstance(value, list | tuple) else found[0]


class InitConfig(Spec):
    """What the members begin with instead of random weights."""

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    from_: Annotated[str | tuple[str, ...], BeforeValidator(_as_sources)] = Field(
        alias="from",
        description="'timm' (its pretrained weights), a checkpoint file, a run folder, or a list "
        "of these, one for each member.",
    )
    sha256: tuple[str, ...] = Field(
        (),
        description="Of each file and run in 'from', '' for timm; filled in by training, and "
        "another file is refused.",
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """What `from` names, in order."""
        return (self.from_,) if isinstance(self.from_, str) else self.from_

    @model_validator(mode="after")
    def _are_as_many(self) -> Self:
        if self.sha256 and len(self.sha256) != len(self.sources):
            raise ValueError(
                f"sha256 has {len(self.sha256)} entries for {len(self.sources)} sources in 'from'; "
                "leave it out, or give one for each ('' for timm)"
            )
        return self


class RunConfig(Spec):
    """A run file: data, defense, warm start, training and evaluation."""

    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    defense: UseDefense
    init: InitConfig | None = Field(None, description="Warm start; absent: untrained.")
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = Field(default={})  # type: ignore[assignment]  # in context


def requires_ball(threat: Threat | None) -> Threat:
    """The threat, if it is there.

    Raises:
        ValueError: if there is none, with what to write.
    """
    if threat is None or isinstance(threat, NoBall):
        raise ValueError("no threat given: the data set has none, so write threat = 'linf:8/255'")
    return threat
