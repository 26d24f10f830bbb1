"""Declares pruning by ADMM to Phalanx; imports nothing heavy."""

from __future__ import annotations

from phalanx.api import ComponentSpec, Kind, Paper, hookimpl

PAPER = Paper(
    title="Adversarial Robustness vs Model Compression, or Both?",
    arxiv="1903.12561",
    venue="ICCV 2019",
    year=2019,
    code="https://github.com/yeshaokai/Robustness-Aware-Pruning-ADMM",
)

IRREGULAR = ComponentSpec(
    kind=Kind.PRUNER,
    name="irregular",
    factory="phalanx_admm.pruner:Irregular",
    config="phalanx_admm.config:IrregularConfig",
    summary="ADMM that leaves the largest weights of each convolution.",
    paper=PAPER,
)
FILTER = ComponentSpec(
    kind=Kind.PRUNER,
    name="filter",
    factory="phalanx_admm.pruner:Filter",
    config="phalanx_admm.config:FilterConfig",
    summary="ADMM that leaves the filters of largest norm of each convolution.",
    paper=PAPER,
)
BLOCK = ComponentSpec(
    kind=Kind.PRUNER,
    name="block",
    factory="phalanx_admm.pruner:Block",
    config="phalanx_admm.config:BlockConfig",
    summary="ADMM that leaves blocks of filters and channels, at each kernel position.",
    paper=PAPER,
)
PRUNED = ComponentSpec(
    kind=Kind.DEFENSE,
    name="pruned",
    factory="phalanx_admm.defense:Pruned",
    config="phalanx_admm.config:PrunedConfig",
    summary="Any defense, its phases pruned while they train, then retrained masked.",
    paper=PAPER,
)


@hookimpl
def phalanx_components() -> tuple[ComponentSpec, ...]:
    """The plugin's components."""
    return IRREGULAR, FILTER, BLOCK, PRUNED
