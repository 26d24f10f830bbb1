"""What a component declares about itself, what a threat is, what a task is: frozen, torch-free.

Every class here is a pydantic model with ``extra="forbid"``: an unknown key is an error that
names the nearest known one. Configs of components derive from `Spec` too (`phalanx.config`).
"""

from __future__ import annotations

import difflib
import math
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError


class Spec(BaseModel):
    """A frozen pydantic model that refuses unknown keys and suggests the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            lines = error.errors(include_url=False)
            told = [line for line in lines if line["type"] != FOLLOWS] or lines
            raise ValidationError.from_exception_data(
                cls.__name__, [_explain(cls, line) for line in told]
            ) from None


FOLLOWS = "follows"
"""Type of a problem that only follows from another one of the same model, and is not told."""


def _explain(model: type[BaseModel], line: Any) -> InitErrorDetails:
    """One problem of `model`, its message complete and its key path kept."""
    message, loc = line["msg"].removeprefix("Value error, "), line["loc"]
    if line["type"] == "missing":
        message = "this key is required"
    elif line["type"] in ("model_type", "dict_type"):
        message = f"should be a table of keys, found {line['input']!r}"
    elif message.startswith("Input should"):
        message = f"{message.removeprefix('Input ')}, found {line['input']!r}"
    if line["type"] == "extra_forbidden" and len(loc) == 1:
        known = [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(str(loc[0]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"unknown key; {hint}allowed: {', '.join(known) or 'none'}"
    kind = PydanticCustomError("problem", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=loc, input=line["input"])


# ---------------------------------------------------------------- threats


def _fraction(value: Any) -> Any:
    """'8/255' as a float; anything else unchanged, for pydantic to judge."""
    if isinstance(value, str) and "/" in value:
        above, below = value.split("/", 1)
        try:
            return float(above) / float(below)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Epsilon = Annotated[float, BeforeValidator(_fraction), Field(ge=0.0, le=1.0)]
"""A radius in pixel units of [0, 1]; takes ``"8/255"`` as well as ``0.03``."""
Radius = Annotated[PositiveFloat, BeforeValidator(_fraction), Field(allow_inf_nan=False)]


def _number(value: float) -> str:
    """The shortest text that reads back as exactly this number; k/255 where that is shorter."""
    plain = f"{value:g}"
    in_255 = f"{round(value * 510) / 2:g}"
    if float(plain) == value and len(plain) <= 6:
        text = plain
    elif float(in_255) / 255 == value:
        text = f"{in_255}/255"
    else:
        text = repr(value)
    return text.replace("e+", "e")  # a + joins the parts of a union


class Threat(Spec):
    """What an attacker may change; a subclass per kind of ball. Data only, torch-free."""

    def __str__(self) -> str:
        return type(self).__name__.lower()


class _Ball(Threat):
    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}:{_number(self.eps)}"  # type: ignore[attr-defined]  # every ball has eps


class Linf(_Ball):
    """All images within `eps` of x in each pixel, ``0 <= eps <= 1``: ``Linf("8/255")``."""

    eps: Epsilon

    def __init__(self, eps: float | str, **rest: Any) -> None:
        super().__init__(**{"eps": eps, **rest})


class L2(_Ball):
    """All images within Euclidean distance `eps` of x."""

    eps: Radius

    def __init__(self, eps: float | str, **rest: Any) -> None:
        super().__init__(**{"eps": eps, **rest})


class L1(_Ball):
    """All images within absolute distance `eps` of x, summed over pixels."""

    eps: Radius

    def __init__(self, eps: float | str, **rest: Any) -> None:
        super().__init__(**{"eps": eps, **rest})


class Union(Threat):
    """Several threats at once: the attacker may choose any one of `parts`."""

    parts: tuple[AnyThreat, ...]

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


class NoBall(Threat):
    """No ball: natural perturbations and minimum-norm attacks."""

    def __str__(self) -> str:
        return "none"


_BALLS: dict[str, type[Linf | L2 | L1]] = {"linf": Linf, "l2": L2, "l1": L1}


def parse_threat(value: Any) -> Any:
    """A threat from text: ``linf:8/255``, ``l2:0.5``, ``l1:12``, ``none``, or parts joined by +.

    Raises:
        ValueError: if it is neither a threat nor a text that names a known norm and a number.
    """
    if isinstance(value, Threat):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text == "none":
        return NoBall()
    if "+" in text:
        return Union(parts=tuple(parse_threat(part) for part in text.split("+")))
    norm, colon, eps = text.partition(":")
    if norm not in _BALLS or not colon:
        raise ValueError(
            f"a threat is written as norm:epsilon with norm linf, l2 or l1, such as linf:8/255; "
            f"found {value!r}"
        )
    return _BALLS[norm](eps)


AnyThreat = Annotated[
    Linf | L2 | L1 | Union | NoBall,
    BeforeValidator(parse_threat),
    PlainSerializer(str, return_type=str),
]
"""A field that takes a `Threat` or its text form, and is written as text."""
Union.model_rebuild()


# ---------------------------------------------------------------- tasks


class Preprocessing(Spec):
    """How a file becomes an image in [0, 1]: resize, crop and interpolation as timm names them.

    Attributes:
        size: (H, W) of the image.
        crop_pct: share of the resized picture's side that is cut out.
        interpolation: Pillow's name of the filter.
        crop_mode: ``center``: the shorter side is resized and the centre cut out; ``squash``: both
            sides are resized; ``border``: the longer side is resized, the rest filled.
        fill: RGB of the border, 0 to 255.
    """

    size: tuple[PositiveInt, PositiveInt]
    crop_pct: PositiveFloat = 1.0
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = (
        "bicubic"
    )
    crop_mode: Literal["center", "squash", "border"] = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    @property
    def scale_size(self) -> tuple[int, int]:
        """(H, W) of the resized picture that `size` is cut out of."""
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def __str__(self) -> str:
        """In words: ``shorter side resized to 256 (bicubic), centre 224 x 224 cut out``."""
        (height, width), (above, aside) = self.size, self.scale_size
        scale = str(above) if above == aside else f"{above} x {aside}"
        sides = {
            "center": f"shorter side resized to {scale}",
            "squash": f"both sides resized to {scale}",
            "border": f"longer side resized to {scale}",
        }
        cut = f"centre {height} x {width} cut out"
        if self.crop_mode == "border":
            cut += f", borders filled with {self.fill}"
        return f"{sides[self.crop_mode]} ({self.interpolation}), {cut}"


class Task(Spec):
    """What is to be classified: all that a defense knows of the data.

    `mean` and `std` are per channel, in units of [0, 1], for the normalisation inside each member.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int = Field(ge=2)
    train_size: int = Field(ge=0)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


# ---------------------------------------------------------------- components


class Kind(StrEnum):
    """The four kinds of component that a plugin can register."""

    DEFENSE = "defense"
    ATTACK = "attack"
    PERTURBATION = "perturbation"
    PRUNER = "pruner"


class Paper(Spec):
    """Where a method was published."""

    title: str
    arxiv: str = ""
    venue: str = ""
    year: int | None = None
    code: str = ""


class Traits(Spec):
    """What the conformance suite and the evaluation need to know of a component."""

    ensemble: bool = False
    stochastic: bool = False
    differentiable: bool = True
    needs_training: bool = True


Dotted = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class ComponentSpec(Spec):
    """A component, declared without importing it: `factory` and `config` are ``module:Name``.

    A name that ends in ``/*`` registers a family (``art/*``): the rest of the asked name reaches
    the config as its field ``name``.
    """

    kind: Kind
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*(/\*)?$")
    factory: Dotted
    config: Dotted
    summary: str
    paper: Paper | None = None
    traits: Traits = Traits()

    @property
    def family(self) -> str | None:
        """The prefix with its slash (``art/``) if this spec registers a family, else None."""
        return self.name[:-1] if self.name.endswith("/*") else None


Status = Literal["experimental", "maintained", "deprecated", "broken"]
