"""Checks for attacks: budget, box, generator, and what they must leave alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phalanx import randomness
from phalanx.attack import Attack, attacking
from phalanx.attacks.balls import within
from phalanx.config import AttackConfig
from phalanx.errors import AttackInapplicable
from phalanx.nn.backbones.small_cnn import SmallCNN
from phalanx.nn.ensemble import MeanEnsemble
from phalanx.specs import L2, Linf, NoBall, Threat
from phalanx.testing.case import Case


def _networks() -> tuple[nn.Module, ...]:
    """What is attacked: a network, and an ensemble for attacks that need members."""
    with randomness.seeded("conformance"):
        one, *pair = (SmallCNN(num_classes=10, in_chans=1, width=w) for w in (32, 4, 4))
    return one.eval(), MeanEnsemble(pair).eval()


def check_attack(case: Case) -> None:
    """Examples stay in budget and box, follow the generator, and nothing else is touched.

    It is tried on a network, or, where that raises `AttackInapplicable`, on an ensemble of two. An
    attack that takes no ball of ours is tried without one; it need not make anything worse.
    """
    config_class = case.registry.config_class(case.spec.kind, case.spec.name)
    given = case.registry.family_arguments(case.spec.kind, case.spec.name)
    x, y = case.images
    factory = case.registry.factory(case.spec.kind, case.spec.name)
    supports = getattr(factory, "supports", (object,))
    balls: tuple[Threat, ...] = (Linf(0.1), L2(0.5))
    tried = [one for one in balls if issubclass(type(one), supports)]
    if not tried and issubclass(NoBall, supports):
        tried = [NoBall()]
    for threat in tried:
        config = config_class.model_validate({**given, **case.params, "threat": threat})
        attack: Attack[AttackConfig] = factory(config)
        before = torch.get_rng_state()
        network, weights, (first, second) = _attacked(attack, x, y)
        assert torch.equal(before, torch.get_rng_state()), "it moves torch's global generator"
        assert torch.equal(first, second), f"{threat}: one generator gives two results"
        assert bool(within(first, x, threat).all()), f"{threat}: an example leaves ball or box"
        assert not first.requires_grad, f"{threat}: its examples still carry a graph"
        after = network.state_dict()
        assert all(torch.equal(weights[k], after[k]) for k in weights), "it changes the weights"
        assert all(p.grad is None for p in network.parameters()), "it leaves gradients behind"
        with torch.no_grad():
            clean, attacked = (int((network(z).argmax(1) == y).sum()) for z in (x, first))
        if isinstance(threat, NoBall):
            continue
        assert attacked <= clean, f"{threat}: {attacked} of 12 images are right, {clean} when clean"
    assert tried, "it supports neither an L-inf nor an L2 threat, so nothing could be checked"


def _attacked(
    attack: Attack[AttackConfig], x: Tensor, y: Tensor
) -> tuple[nn.Module, dict[str, Tensor], list[Tensor]]:
    """The network that the attack takes, its weights before, and examples made twice."""
    refused: list[str] = []
    for network in _networks():
        weights = {k: v.clone() for k, v in network.state_dict().items()}
        try:
            with attacking(network):
                made = [
                    attack(network, x.clone(), y, generator=randomness.generator(1))
                    for _ in range(2)
                ]
        except AttackInapplicable as error:
            refused.append(str(error))
            continue
        return network, weights, made
    raise AssertionError(f"it takes neither a network nor an ensemble of two: {'; '.join(refused)}")


CHECKS = (check_attack,)
