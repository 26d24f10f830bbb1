"""Declares training against several perturbations to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, hookimpl

AVG_MAX = Paper(
    title="Adversarial Training and Robustness for Multiple Perturbations",
    arxiv="1904.13000",
    venue="NeurIPS 2019",
    year=2019,
    code="https://github.com/ftramer/MultiRobustness",
)

COMPONENTS = (
    ComponentSpec(
        kind=Kind.DEFENSE,
        name="avg",
        factory="phalanx_multi.defense:AVG",
        config="phalanx_multi.config:AVGConfig",
        summary="One network trained on the mean loss over several types of perturbation.",
        paper=AVG_MAX,
    ),
    ComponentSpec(
        kind=Kind.DEFENSE,
        name="max",
        factory="phalanx_multi.defense:MAX",
        config="phalanx_multi.config:MultiConfig",
        summary="One network trained on the worst, image by image, of several perturbations.",
        paper=AVG_MAX,
    ),
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return COMPONENTS
