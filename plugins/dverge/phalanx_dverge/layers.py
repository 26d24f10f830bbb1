"""Which layers images are distilled through, and how their features are read.

The paper's features are those before an activation. Its code counts them by hand for ResNet-20:
layer 1 is the stem's batch normalisation, then come each block's first one and each block's sum
before the last activation, and layer 20 is the logits. Here they are names of modules, and a sum
is written with a plus: ``layer1.0.bn2+layer1.0.shortcut``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from phalanx.api import ConfigError, Member, Task, capture

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
SHORTCUTS = ("shortcut", "downsample")
"""What residual blocks call the way around."""


def feature_layers(member: Member) -> tuple[str, ...]:
    """Every layer of a member before its activation, the logits last.

    Outputs of normalisation layers, the last one of a residual block as its sum with the way
    around; of a network without normalisation, outputs of convolutions and linear layers.
    ResNet-20 has 20 of them, ResNet-18 has 18.

    Args:
        member: its layers are named without ``backbone.``.
    """
    backbone: nn.Module = member.backbone
    names = {module: name for name, module in backbone.named_modules() if name}
    around = {
        parent: way
        for parent in backbone.modules()
        for name, way in parent.named_children()
        if name in SHORTCUTS
    }
    inside = {part for way in around.values() for part in way.modules()}
    layers: list[nn.Module] = [
        module for module in names if isinstance(module, NORMS) and module not in inside
    ]
    if not layers:
        layers = [module for module in names if isinstance(module, nn.Conv2d | nn.Linear)]
    sums = {}
    for block, way in around.items():
        own = [module for module in block.children() if module in layers]
        if own:
            sums[own[-1]] = f"{names[own[-1]]}+{names[way]}"
    found = [sums.get(module, names[module]) for module in layers]
    logits = names[member.backbone.get_classifier()]
    return (*(name for name in found if name != logits), logits)


@contextmanager
def _captured(member: Member, layer: str) -> Iterator[list[Tensor]]:
    """The outputs of a layer's parts, filled when the forward pass inside is done."""
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        boxes = [stack.enter_context(capture(member, part.strip())) for part in layer.split("+")]
        yield outputs
    outputs.extend(box.value for box in boxes)


def read(member: Member, layer: str, x: Tensor) -> Tensor:
    """A member's features: images ``(N, C, H, W)`` to the layer's output, in its own shape."""
    with _captured(member, layer) as parts:
        member(x)
    features = parts[0]
    for part in parts[1:]:
        features = features + part
    return features


@torch.no_grad()
def check_layers(member: Member, layers: Sequence[str], task: Task) -> None:
    """Refuse layers whose features cannot be read, by one forward pass of a blank image each.

    Args:
        member: in any mode; it is left as it is.
        layers: names.
        task: gives the image's shape.

    Raises:
        InputError: for a name that the member does not have, or a layer that does not run.
        ConfigError: for a layer whose output is no tensor.
    """
    modes = [(part, part.training) for part in member.modules()]
    member.eval()
    problems = []
    try:
        for layer in layers:
            with _captured(member, layer) as parts:
                member(torch.zeros(1, *task.shape))
            if not all(isinstance(part, Tensor) for part in parts):
                problems.append(f"{layer!r} gives no tensor")
    finally:
        for part, mode in modes:
            part.training = mode
    if problems:
        raise ConfigError(
            [
                f"defense.params.layers: {problem}; name layers that give one, such as"
                " convolutions, or take another backbone"
                for problem in problems
            ]
        )
