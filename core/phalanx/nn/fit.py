"""How a state dict fits a network: what is missing, left over, of another shape, or renamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_HEADS = """
classif classifier fc fc2 final head head_dist heads last_linear linear logits output predictions
score
"""
HEADS = frozenset(_HEADS.split())
"""What authors call the layer that tells the classes apart, or the part that holds it."""
SHOWN = 5
"""Tensors that an error lists of each kind."""
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """What loading a state dict did.

    Attributes:
        missing: tensors of the module's classifier that the file lacks, left as they were.
        unexpected: tensors of the file's classifier for which the module has no place.
        reshaped: tensors of the module's classifier that the file has in another shape, left as
            they were.
        renamed: the file's name of a layer to the module's.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What would be loaded.

    Attributes:
        tensors: under the module's names.
        fit: what is left out, and renamed.
        problem: why it must not be loaded, with what to do; '' if it may.
    """

    tensors: Mapping[str, Tensor]
    fit: Fit
    problem: str = ""


def classifier_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the layers that tell a module's classes apart; () if it has none.

    timm's networks say so themselves; of any other it is the last linear or convolutional layer.
    """
    names = {id(part): name for name, part in module.named_modules() if name}
    asked = getattr(module, "get_classifier", None)
    if callable(asked):
        given = asked()
        parts = given if isinstance(given, tuple | list) else (given,)
        found = tuple(names[id(part)] for part in parts if id(part) in names)
        if found:
            return found
    declared: Any = getattr(module, "default_cfg", None) or {}
    known = declared.get("classifier") if hasattr(declared, "get") else None
    told = (known,) if isinstance(known, str) else tuple(known or ())
    if told and all(name in names.values() for name in told):
        return told
    layers = [
        name
        for name, part in module.named_modules()
        if name and isinstance(part, nn.Linear | nn.Conv2d)
    ]
    return tuple(layers[-1:])


def classes_of(module: nn.Module) -> int | None:
    """How many classes a module's classifier tells apart, where its layer shows it."""
    for name in classifier_names(module):
        sizes = [value.shape[0] for value in module.get_submodule(name).parameters() if value.ndim]
        if sizes:
            return int(sizes[-1])
    return None


def fit(module: nn.Module, tensors: Mapping[str, Tensor], *, replace_head: bool = False) -> Plan:
    """Hold a state dict against a module; nothing is changed.

    Args:
        module: what it is meant for.
        tensors: the state dict, under the names that its author gave.
        replace_head: whether a classifier of another number of classes may be left out.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    heads = classifier_names(module)
    tensors, renamed = _with_own_head(tensors, own, heads)
    given = {n: t for n, t in tensors.items() if n in own and t.shape == own[n].shape}
    missing = [n for n in own if n not in tensors and not _follows(n, own, given)]
    unexpected = [n for n in tensors if n not in own]
    reshaped = [n for n in own if n in tensors and n not in given]
    if replace_head:
        left = Fit(
            missing=tuple(n for n in missing if _within(n, heads)),
            unexpected=tuple(n for n in unexpected if _is_head(_layer(n))),
            reshaped=tuple(n for n in reshaped if _within(n, heads)),
            renamed=renamed,
        )
    else:
        left = Fit(renamed=renamed)
    if left.missing or left.reshaped:  # half a classifier would be neither old nor new
        given = {n: t for n, t in given.items() if not _within(n, heads)}
    missing = [n for n in missing if n not in left.missing]
    unexpected = [n for n in unexpected if n not in left.unexpected]
    reshaped = [n for n in reshaped if n not in left.reshaped]
    problem = _of_other_types(given, own)
    if missing or unexpected or reshaped:
        shapes = {n: (tuple(tensors[n].shape), tuple(own[n].shape)) for n in reshaped}
        problem = _problem(missing, unexpected, shapes, heads)
    return Plan(given, left, problem)


def _with_own_head(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: tuple[str, ...]
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The file's tensors, those of its classifier under the module's name for it."""
    if len(heads) != 1 or any(_within(name, heads) for name in tensors):
        return tensors, {}
    (head,) = heads
    leaves = {name.removeprefix(f"{head}.") for name in own if _within(name, heads)}
    layers: dict[str, set[str]] = {}
    for name in tensors:
        if name not in own:
            layers.setdefault(_layer(name), set()).add(name.rpartition(".")[2])
    candidates = [layer for layer, found in layers.items() if layer and found == leaves]
    if len(candidates) > 1:
        candidates = [layer for layer in candidates if _is_head(layer)]
    if len(candidates) != 1:
        return tensors, {}
    (theirs,) = candidates
    renamed = {
        f"{head}.{name.removeprefix(f'{theirs}.')}" if _layer(name) == theirs else name: value
        for name, value in tensors.items()
    }
    return renamed, {theirs: head}


def _follows(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether a tensor need not be in the file: a counter, or tied to one that is there."""
    if name.endswith(_COUNTER):
        return True
    value = own[name]
    return any(
        own[other].is_set_to(value) and value.numel() > 0 and not value.is_meta for other in given
    )


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _within(name: str, layers: Iterable[str]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)


def _is_head(layer: str) -> bool:
    """Whether one part of a layer's name is what authors call a classifier."""
    return not HEADS.isdisjoint(layer.split("."))


def _problem(
    missing: list[str],
    unexpected: list[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    heads: tuple[str, ...],
) -> str:
    """What does not fit, and what to do."""
    of_head = {name: pair for name, pair in shapes.items() if _within(name, heads)}
    if of_head and not missing and not unexpected and len(of_head) == len(shapes):
        found, asked = (next(iter(of_head.values()))[side][0] for side in (0, 1))
        if found != asked:
            return (
                f"its classifier tells {found} classes apart, asked for {asked}; ask for {found} "
                f"(num_classes={found}, or --classes {found}), or, where the network is trained "
                "further, replace its head"
            )
    parts = []
    for told, names in (("missing", missing), ("left over", unexpected)):
        if names:
            kind = "tensor" if len(names) == 1 else "tensors"
            parts.append(f"{len(names)} {kind} {told} ({_some(names)})")
    if shapes:
        told_of = [f"{n}: found {a}, needs {b}" for n, (a, b) in shapes.items()]
        parts.append(f"{len(shapes)} of another shape ({_some(told_of)})")
    return (
        f"{'; '.join(parts)}; choose the architecture that it was trained as, with the same options"
    )


def _of_other_types(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Which numbers would lose their meaning in being cast; '' if none would."""
    told = [
        f"{name}: found {value.dtype}, needs {own[name].dtype}"
        for name, value in given.items()
        if own[name].is_floating_point() and not value.is_floating_point()
    ]
    if not told:
        return ""
    return (
        f"{len(told)} of another type ({_some(told)}); write the weights as floats where they were "
        "made"
    )


def _some(names: list[str]) -> str:
    """The first few, and whether there are more."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
