"""Config of ART's attacks, and what is known about those that cannot run here; ART-free to import.

Source of the tables: ART 1.20.1 with numpy 2, each attack tried on image classifiers.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from phalanx.config import AttackConfig
from phalanx.errors import AttackInapplicable
from phalanx.specs import L1, Threat

_SPEECH = "it attacks speech recognisers, not image classifiers"
_DETECTOR = "it attacks object detectors, not image classifiers"
_TABULAR = "it attacks classifiers of tables, not of images"
_TENSORFLOW = "it needs a TensorFlow model, and this one is PyTorch"
_PATCH = "it makes patches for other frameworks; use art/AdversarialPatchPyTorch"
_GUIDES = (
    "it needs guide images and a layer, which labels do not give; call ART's class on "
    "model.as_art() instead, whose get_activations takes layers by name"
)
_PHYSICAL = "it needs a camera set-up (masks, transforms, tags) that no data set here has"

UNSUPPORTED: dict[str, str] = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchTensorFlowV2": _PATCH,
    "AdversarialTexturePyTorch": "it attacks object trackers in video, not image classifiers",
    "CarliniWagnerASR": _SPEECH,
    "DPatch": _DETECTOR,
    "DecisionTreeAttack": _TABULAR,
    "FeatureAdversariesNumpy": _GUIDES,
    "FeatureAdversariesPyTorch": _GUIDES,
    "FeatureAdversariesTensorFlowV2": _TENSORFLOW,
    "FrameSaliencyAttack": "it attacks classifiers of video, frame by frame",
    "GRAPHITEBlackbox": _PHYSICAL,
    "GRAPHITEWhiteboxPyTorch": _PHYSICAL,
    "GeoDA": "it calls numpy.mat, which numpy 2 removed",
    "HighConfidenceLowUncertainty": "it attacks Gaussian processes (GPy) only",
    "ImperceptibleASR": _SPEECH,
    "ImperceptibleASRPyTorch": _SPEECH,
    "LaserAttack": "it needs a generator of laser beams, which is code and no parameter",
    "LowProFool": f"{_TABULAR}: it first learns the importance of each column",
    "MalwareGDTensorFlow": "it attacks classifiers of Windows executables",
    "OverTheAirFlickeringPyTorch": "it attacks classifiers of video",
    "OverloadPyTorch": _DETECTOR,
    "ProjectedGradientDescentTensorFlowV2": _TENSORFLOW,
    "RobustDPatch": _DETECTOR,
    "SNAL": _DETECTOR,
}
"""ART's evasion attacks that cannot attack an image classifier in PyTorch, and why."""

_PACKAGES = {
    "AutoAttack": "multiprocess",
    "BrendelBethgeAttack": "numba",
    "CompositeAdversarialAttackPyTorch": "kornia",
}
_CMA = ("PixelAttack", "ThresholdAttack")


class ArtAttackConfig(AttackConfig):
    """Any evasion attack of ART by its class name; further keys are that class's own parameters.

    What comes from the threat (`eps`, `norm`) and from the labels (`targeted`) is left out.
    Parameters are JSON values; which of them the class takes is known when the attack is built.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(description="Class in art.attacks.evasion, such as 'DeepFool'.")

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        """Tuples as lists, which is how JSON reads them back."""
        if not isinstance(data, dict):
            return data
        return {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}

    @field_validator("name")
    @classmethod
    def _supported(cls, name: str) -> str:
        reason = refusal(name)
        if reason is not None:
            raise ValueError(reason)
        return name

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters for ART's class, as they were given."""
        return dict(self.__pydantic_extra__)


def refusal(name: str, threat: Threat | None = None) -> str | None:
    """Why ART's attack cannot run, as a full sentence; None if nothing speaks against it.

    Args:
        name: class name in ``art.attacks.evasion``.
        threat: what it would have to stay within, where that matters.
    """
    if name in UNSUPPORTED:
        return f"ART's {name} cannot run here: {UNSUPPORTED[name]}"
    if name == "SquareAttack" and isinstance(threat, L1):
        return (
            "ART's SquareAttack returns the clean images under an L1 threat, without a word; "
            "use linf or l2, or ART's AutoProjectedGradientDescent"
        )
    return None


def require_packages(config: ArtAttackConfig) -> None:
    """Check for what ART imports without declaring it.

    Raises:
        AttackInapplicable: if a package is missing, with the line that installs it.
    """
    package = _PACKAGES.get(config.name)
    if config.name in _CMA:
        default = 1 if config.name == "PixelAttack" else 0
        package = "cma" if config.parameters.get("es", default) == 0 else None
    if package is not None and find_spec(package) is None:
        other = " (or set es = 1, which needs nothing)" if package == "cma" else ""
        raise AttackInapplicable(
            f"ART's {config.name} needs the package {package!r}, which is not installed: "
            f"pip install {package}{other}"
        )
