"""Checks for components of every kind: the declaration, the config, perturbations, pruners."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from phalanx import randomness
from phalanx.nn.backbones.small_cnn import SmallCNN
from phalanx.perturbation import Perturbation
from phalanx.pruner import Pruner
from phalanx.specs import Spec
from phalanx.testing.case import Case

HEAVY = ("torch", "art", "timm", "torchvision", "sklearn")


def check_thin_module(case: Case) -> None:
    """The plugin module and the config module import no torch, ART or timm."""
    plugin = case.registry.find(case.spec.kind, case.spec.name).plugin
    modules = [case.spec.config.partition(":")[0]]
    modules += [one.found.target for one in case.registry.plugins if one.id == plugin]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    if any(name.startswith(("__main__", "tests")) for name in modules):
        return  # declared in a session, not in a plugin: there is no module to be thin
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{', '.join(modules)} cannot be imported: {done.stderr[-400:]}"
    heavy = done.stdout.split()
    assert not heavy, (
        f"importing {', '.join(modules)} imports {', '.join(heavy)}; keep them behind the dotted "
        "strings of the ComponentSpec"
    )


def check_config(case: Case) -> None:
    """The config is frozen, described, refuses unknown keys and survives JSON."""
    config_class = case.registry.config_class(case.spec.kind, case.spec.name)
    assert issubclass(config_class, Spec), f"{config_class.__name__} must derive from phalanx.api"
    bare = [name for name, field in config_class.model_fields.items() if not field.description]
    assert not bare, f"{config_class.__name__} describes no {', '.join(bare)}"
    context = {"registry": case.registry, "threat": case.data.threat}
    config = config_class.model_validate(dict(case.params), context=context)
    again = config_class.model_validate_json(config.model_dump_json(), context=context)
    assert again == config, f"{config_class.__name__} differs after a round trip through JSON"
    if config_class.model_config.get("extra") == "forbid":
        try:
            config_class.model_validate({**case.params, "no_such_key": 1}, context=context)
        except ValueError:
            return
        raise AssertionError(f"{config_class.__name__} takes the unknown key 'no_such_key'")


def check_perturbation(case: Case) -> None:
    """A perturbation keeps shape and box, follows its generator, and moves no global state."""
    config_class = case.registry.config_class(case.spec.kind, case.spec.name)
    perturb: Perturbation[Any] = case.registry.create(
        case.spec.kind, case.spec.name, config_class.model_validate(dict(case.params))
    )
    x, _ = case.images
    before = torch.get_rng_state()
    first, second = (perturb(x, generator=randomness.generator(1)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "it draws from the global generator"
    assert first.shape == x.shape, f"it gives {tuple(first.shape)} for {tuple(x.shape)}"
    assert torch.equal(first, second), "one generator gives two results"
    assert bool(((first >= 0) & (first <= 1)).all()), "it leaves the box [0, 1]"


def check_pruner(case: Case) -> None:
    """A projection stays where it is and leaves its input; a compacted copy answers the same."""
    config_class = case.registry.config_class(case.spec.kind, case.spec.name)
    pruner: Pruner[Any] = case.registry.create(
        case.spec.kind, case.spec.name, config_class.model_validate(dict(case.params))
    )
    with randomness.seeded("conformance"):
        network = SmallCNN(num_classes=10, in_chans=1, width=8).eval()
    pruner.check(network)
    for name, layer in pruner.layers(network).items():
        weight = layer.get_parameter("weight").detach()
        before = weight.clone()
        found = pruner.project(name, weight)
        assert torch.equal(weight, before), f"project({name!r}) changes the weight that it is given"
        assert found.shape == weight.shape, f"project({name!r}) gives {tuple(found.shape)}"
        assert torch.equal(pruner.project(name, found), found), (
            f"project({name!r}) twice is another"
        )
        assert bool((found - weight).norm() <= weight.norm()), f"0 is nearer than project({name!r})"
        weight.copy_(found)
        silent = (found == 0).flatten(1).all(1)
        if (bias := layer._parameters.get("bias")) is not None:
            bias.detach().masked_fill_(silent, 0.0)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    small = pruner.compact(network).eval()
    with torch.no_grad():
        gap = float((small(case.images[0]) - network(case.images[0])).abs().max())
    assert gap <= 1e-5, f"compact() changes scores by {gap:.2g}"
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items()), (
        "compact() changes the model that it is given"
    )


CHECKS = (check_thin_module, check_config)
