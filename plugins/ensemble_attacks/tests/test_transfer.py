"""Transfer from members: which rows are decided by whom, what is kept, and the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from phalanx.api import AttackInapplicable, Linf, Targeted, UseAttack, generator
from phalanx.attacks.apgd import APGDCE
from phalanx.attacks.config import APGDConfig, FGSMConfig
from phalanx.attacks.gradient import FGSM
from phalanx.errors import ThreatModelError
from phalanx_ensemble_attacks.config import MemberTransferConfig
from phalanx_ensemble_attacks.transfer import MemberTransfer, transfer_matrix

LINF = Linf(0.1)


def transfer(threat: Any = LINF, **given: Any) -> MemberTransfer:
    return MemberTransfer(MemberTransferConfig.model_validate({"threat": threat, **given}))


def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("rowwise", [True, False])
def test_breaks_what_the_average_hides(planted: Any, rowwise: bool) -> None:
    model, x, y = planted(3.0, rowwise=rowwise)
    found = APGDCE(APGDConfig(threat=LINF, steps=50))(model, x, y, generator=generator(1))
    assert accuracy(model, found, y) == 1.0
    nested = {"use": "pgd", "params": {"steps": 20, "loss": "margin"}}
    found = transfer(attack=nested)(model, x, y, generator=generator(1))
    assert accuracy(model, found, y) == 0.0
    found = transfer(attack=nested, member=2)(model, x, y, generator=generator(1))
    assert accuracy(model, found, y) == 1.0


FGSM_ = {"use": "fgsm"}


def by_member(model: Any, x: Tensor, y: Tensor, threat: Linf = LINF) -> list[Tensor]:
    """The examples of each member, of an attack that draws nothing."""
    attack = FGSM(FGSMConfig(threat=threat))
    return [attack(member, x, y, generator=generator(0)) for member in model.members]


def test_the_first_member_that_fools_the_whole_decides(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    made = by_member(model, x, y)
    fooled = torch.stack([model(one).argmax(1) != y for one in made])
    assert fooled.any(0).any()
    assert not fooled.any(0).all()
    model.whole.clear()
    found = transfer(attack=FGSM_)(model, x, y, generator=generator(0))
    for row in range(len(x)):
        if bool(fooled[:, row].any()):
            first = int(fooled[:, row].int().argmax())
            assert torch.equal(found[row], made[first][row])
    left = [len(x), int((~fooled[0]).sum()), int((~fooled[:2].any(0)).sum())]
    assert model.whole == left


@pytest.mark.parametrize("rowwise", [True, False])
def test_of_the_rest_the_example_that_leads_by_most(random_ensemble: Any, rowwise: bool) -> None:
    model, x, y = random_ensemble(rowwise=rowwise)
    made = by_member(model, x, y)
    scores = torch.stack([model(one) for one in made])
    own = scores.gather(2, y.expand(3, -1)[..., None]).squeeze(2)
    lead = scores.scatter(2, y.expand(3, -1)[..., None], -torch.inf).amax(2) - own
    found = transfer(attack=FGSM_)(model, x, y, generator=generator(0))
    rows = range(len(x)) if not rowwise else (lead < 0).all(0).nonzero().flatten().tolist()
    assert rows
    for row in rows:
        assert torch.equal(found[row], made[int(lead[:, row].argmax())][row])


def test_all_rows_stay_where_they_are_not_independent(random_ensemble: Any) -> None:
    model, x, y = random_ensemble(rowwise=False)
    transfer(Linf(0.5), attack=FGSM_)(model, x, y, generator=generator(0))
    assert model.whole == [len(x)] * 3
    assert {count for member in model.members for count in member.batches} == {len(x)}


@pytest.mark.parametrize("member", [0, 2])
def test_one_member_alone(random_ensemble: Any, member: int) -> None:
    model, x, y = random_ensemble()
    made = by_member(model, x, y)[member]
    model.whole.clear()
    found = transfer(attack=FGSM_, member=member)(model, x, y, generator=generator(0))
    assert torch.equal(found, made)
    assert model.whole == [len(x)]


def test_targets_are_reached(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    wanted = Targeted((y + 1) % 4)
    found = transfer(Linf(0.4))(model, x, wanted, generator=generator(0))
    assert accuracy(model, found, wanted.labels) > 0.5
    assert accuracy(model, x, wanted.labels) == 0.0


def test_an_observer_sees_all_rows_of_each_member(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    seen: list[tuple[int, int]] = []
    nested = {"use": "bim", "params": {"steps": 2}}
    attack = transfer(Linf(0.5), attack=nested)
    attack(
        model,
        x,
        y,
        generator=generator(0),
        observe=lambda step, images, loss: seen.append((step, len(images))),
    )
    assert seen == [(step, len(x)) for _ in range(3) for step in range(3)]


def test_ball_box_determinism_and_no_rows(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    x = x.round(decimals=1)
    first, second, other = (transfer()(model, x, y, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert float((first - x).abs().max()) <= 0.1 + 1e-12
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0
    assert not first.requires_grad
    model.whole.clear()
    assert len(transfer()(model, x[:0], y[:0], generator=generator(1))) == 0
    assert model.whole == []


# ---------------------------------------------------------------- refusals


def test_a_function_without_members_is_refused(rng: Generator) -> None:
    x, y = torch.rand(2, 1, 2, 2, generator=rng), torch.zeros(2, dtype=torch.long)
    text = (
        r"^attack 'member-transfer' makes its examples on members, and this function names none: "
        r"attack it itself, with 'apgd-ce' or 'square', or say what its members are, "
        r"phalanx\.wrap\(module, members=\[\.\.\.\]\)$"
    )
    with pytest.raises(AttackInapplicable, match=text):
        transfer()(nn.Flatten(), x, y, generator=rng)


def test_a_member_that_is_not_there_is_refused(random_ensemble: Any, rng: Generator) -> None:
    model, x, y = random_ensemble()
    text = (
        "^attack 'member-transfer' was asked for member 3, and this function has 3: write "
        "member = 0 to 2, or leave it out for all$"
    )
    with pytest.raises(AttackInapplicable, match=text):
        transfer(member=3)(model, x, y, generator=rng)


def test_the_nested_attack_says_what_it_takes() -> None:
    with pytest.raises(ThreatModelError, match="attack APGDCE cannot take threat none; it takes"):
        transfer("none")
    with pytest.raises(ThreatModelError, match="attack MemberTransfer has no threat"):
        MemberTransfer(MemberTransferConfig())


def test_at_another_threat_members_are_attacked_at_it_too(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    use = UseAttack.model_validate({"use": "member-transfer", "params": {"threat": LINF}})
    attack = use.create().at(Linf(0.01))
    found = attack(model, x, y, generator=generator(1))
    assert 0.009 < float((found - x).abs().max()) <= 0.01 + 1e-12


# ---------------------------------------------------------------- the matrix


def test_matrix_of_targets_and_sources(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    attack = FGSM(FGSMConfig(threat=LINF))
    made = by_member(model, x, y)
    found = transfer_matrix(model.members, attack, x, y, generator=generator(0))
    expected = [[accuracy(target, images, y) for images in made] for target in model.members]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))
    assert not torch.equal(found, found.T)


def test_matrix_of_members_that_look_elsewhere(planted: Any) -> None:
    """What moves the right half moves both saturated members and not the third."""
    model, x, y = planted(2.0)
    for member in model.members:
        member.rowwise = False
    attack = UseAttack.model_validate(
        {"use": "pgd", "params": {"threat": LINF, "steps": 5, "loss": "margin"}}
    ).create()
    found = transfer_matrix(model.members, attack, x, y, generator=generator(0))
    assert found.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


def test_matrix_of_nothing_is_refused(random_ensemble: Any) -> None:
    model, x, y = random_ensemble()
    attack = FGSM(FGSMConfig(threat=LINF))
    with pytest.raises(ValueError, match=r"found 0 members and 12 images$"):
        transfer_matrix([], attack, x, y, generator=generator(0))
    with pytest.raises(ValueError, match=r"found 3 members and 0 images$"):
        transfer_matrix(model.members, attack, x[:0], y[:0], generator=generator(0))
