"""From a protocol to what is done to one model: entries that fit it, and what plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from pydantic import ValidationError

from phalanx import randomness
from phalanx.attack import answering
from phalanx.config import UseAttack
from phalanx.errors import ConfigError, UnknownComponentError
from phalanx.evaluation.cell import device_of
from phalanx.evaluation.facts import is_base
from phalanx.evaluation.findings import Tier
from phalanx.evaluation.protocol import Extra, Protocol, load_protocol, resolve_attack
from phalanx.evaluation.subjects import Also, Plan, Subject, members_of
from phalanx.registry import Registry
from phalanx.runfile import config_error_from_validation, protocol_files
from phalanx.specs import Threat

PAPER, ADAPTIVE = "paper", "adaptive"
"""Whose an attack is: of the paper's own protocol, of the plugin's adaptive attacks."""


def plan_of(
    subject: Subject,
    protocol: Protocol,
    *,
    threat: Threat | None,
    registry: Registry,
    shape: Sequence[int],
    views: tuple[str, ...] = (),
    limit: int | None = None,
    checks: Tier | None = None,
) -> Plan:
    """How a protocol attacks a model.

    Args:
        subject: the model.
        protocol: loaded at this threat.
        threat: of entries that name none.
        registry: where attacks are looked up; its plugins are asked for adaptive attacks.
        shape: of an image, ``(C, H, W)``.
        views: attack these alone; () is all.
        limit: first N images; absent: the protocol's.
        checks: which validity checks follow; absent: as the protocol says.
    """
    also: list[Also] = []
    notes: list[str] = []

    def add(entries: Iterable[Extra], whose: str | None, source: str) -> None:
        for entry in entries:
            if "use" not in entry.attack:
                raise ConfigError(["attack.use: is missing: an attack's name"], source=source)
            if entry.only is not None and not _fits(entry.only, subject, shape):
                continue
            try:
                use = resolve_attack(entry.attack, threat=threat, registry=registry, source=source)
            except UnknownComponentError as error:
                notes.append(f"{protocol.name} goes without one of its attacks: {error}")
                continue
            chosen = [name for name in _views_of(entry, subject) if not views or name in views]
            if entry.views and not chosen:
                continue
            one = Also(use, tuple(chosen), whose)
            if whose != PAPER or _takes(one, threat):
                also.append(one)

    add(protocol.also, None, f"protocol {protocol.name!r}")
    if protocol.plugins and subject.component:
        for source, entries in _adaptive(subject, threat, registry):
            add(entries, ADAPTIVE, source)
        paper = paper_protocol(subject.component, threat=threat, registry=registry)
        if paper is not None:
            own = [Also(use, (), PAPER) for use in paper.attacks]
            also += [one for one in own if _takes(one, threat)]
            add(paper.also, PAPER, f"protocol {paper.name!r}")
    return Plan(
        attacks=protocol.attacks,
        views=views,
        limit=limit or protocol.limit,
        protocol=protocol.name,
        also=tuple(also),
        checks=checks or protocol.checks,
        thresholds=protocol.thresholds,
        notes=tuple(notes),
    )


def surrogate_plan(*plans: Plan) -> Plan:
    """How examples are made on a surrogate: by the plans' attacks that follow gradients."""
    found: list[UseAttack] = []
    for plan in plans:
        given = plan.attacks or plan.uses  # a paper's protocol may name none for every view
        white = tuple(use for use in given if is_base(use))
        found += [use for use in white or given[:1] if use not in found]
    limits = [plan.limit for plan in plans if plan.limit is not None]
    limit = max(limits) if len(limits) == len(plans) else None
    return Plan(tuple(found), ("deployed",), limit, plans[0].protocol)


def paper_protocol(component: str, *, threat: Threat | None, registry: Registry) -> Protocol | None:
    """The protocol of a defense's paper at a threat, if its plugin has one."""
    from phalanx.specs import Kind

    try:
        plugin = registry.find(Kind.DEFENSE, component).plugin
    except UnknownComponentError:
        return None
    name = f"{plugin}/{PAPER}"
    own = f"{plugin}/{component}-{PAPER}"
    known = protocol_files(registry)
    name = own if own in known else name
    return load_protocol(name, threat=threat, registry=registry) if name in known else None


def _adaptive(
    subject: Subject, threat: Threat | None, registry: Registry
) -> Iterator[tuple[str, list[Extra]]]:
    """What plugins say must break their own defense, each with whose it is, for errors."""
    answers = registry.ask(
        "phalanx_adaptive_attacks", defense=subject.component, threat=str(threat)
    )
    for plugin, tables in answers:
        source = f"adaptive attacks of plugin {plugin!r} for {subject.component}"
        try:
            entries = [Extra.model_validate(table) for table in tables or ()]
        except ValidationError as error:
            raise config_error_from_validation(error, source) from error
        except Exception as error:  # a plugin that answers with a generator raises anything here
            told = f"they cannot be read: {type(error).__name__}: {error}"
            raise ConfigError([told], source=source) from error
        yield source, entries


def _takes(one: Also, threat: Threat | None) -> bool:
    """Whether an attack of the paper's is at the threat that is evaluated."""
    own = getattr(one.use.params, "threat", None)
    return threat is None or own is None or str(own) == str(threat)


def _fits(only: str, subject: Subject, shape: Sequence[int]) -> bool:
    """Whether an entry is for this model."""
    model = subject.model
    if only == "stochastic":
        return model.stochastic
    if only == "deterministic":
        return not model.stochastic
    if only == "ensembles":
        return len(members_of(model)) > 1
    return averages(subject, shape)


def _views_of(entry: Extra, subject: Subject) -> tuple[str, ...]:
    """The views that an entry asks for, less those that are no average where it needs one.

    What a random model serves is one of its draws; its average is ``expected``.
    """
    if entry.only == "averages" and subject.model.stochastic:
        return tuple(name for name in entry.views if name != "deployed")
    return entry.views


def averages(subject: Subject, shape: Sequence[int]) -> bool:
    """Whether what the model serves, or what is expected of it, is an average of members."""
    model = subject.model
    try:
        with randomness.seeded("averages"), answering(model), torch.no_grad():
            found = model.combined(torch.zeros(1, *shape, device=device_of(model)))
    except Exception:  # somebody's network raises anything; its cells will say what
        return False
    return found is not None and len(found.logits) > 1
