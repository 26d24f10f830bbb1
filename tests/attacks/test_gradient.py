import pytest
import torch

from phalanx.attack import Targeted
from phalanx.attacks.config import BIMConfig, FGSMConfig, MIFGSMConfig, PGDConfig
from phalanx.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from phalanx.specs import L2, Linf


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (FGSM(FGSMConfig(threat=Linf(0.01))), 1, 1),
        (BIM(BIMConfig(threat=Linf(0.01), steps=7)), 7, 7),
        (MIFGSM(MIFGSMConfig(threat=Linf(0.01), steps=7)), 7, 7),
        (PGD(PGDConfig(threat=Linf(0.01))), 40, 40),
        (PGD(PGDConfig(threat=Linf(0.01), steps=5, eot=3)), 15, 15),
        (PGD(PGDConfig(threat=L2(1e-6), steps=5, restarts=3)), 18, 15),
    ],
    ids=["fgsm", "bim", "mi-fgsm", "pgd", "pgd-eot", "pgd-restarts"],
)
def test_passes(attack, forwards, backwards, linear_case, rng):
    model, x, y = linear_case(4)
    attack(model, x, y, generator=rng)
    assert (model.forwards, model.backwards) == (forwards, backwards)


def test_fgsm_is_one_step_along_the_sign(linear_case, rng):
    model, x, y = linear_case(2)
    x_adv = FGSM(FGSMConfig(threat=Linf(0.1)))(model, x, y, generator=rng)
    slope = (model.weight[1 - y] - model.weight[y]).view_as(x)
    torch.testing.assert_close(x_adv, x + 0.1 * slope.sign())


def test_default_steps(linear_case, rng):
    model, x, y = linear_case(2)
    for kind, config, size in (
        (BIM, BIMConfig(threat=Linf(0.1), steps=10), 0.025),
        (PGD, PGDConfig(threat=Linf(0.1), steps=10, start="clean"), 0.025),
        (MIFGSM, MIFGSMConfig(threat=Linf(0.1)), 0.01),
    ):
        path = []
        kind(config)(model, x, y, generator=rng, observe=lambda s, z, loss: path.append(z))  # noqa: B023  # used at once
        torch.testing.assert_close((path[1] - path[0]).abs().amax(), torch.tensor(size))


def test_pgd_starts_inside_the_ball_or_at_the_clean_image(linear_case, rng):
    model, x, y = linear_case(2)
    for start, moved in (("random", True), ("clean", False)):
        path = []
        attack = PGD(PGDConfig(threat=Linf(0.1), steps=1, start=start))
        attack(model, x, y, generator=rng, observe=lambda s, z, loss: path.append(z))  # noqa: B023  # used at once
        assert bool((path[0] != x).any()) is moved


def test_restarts_attack_only_rows_not_yet_fooled(linear_case, rng):
    model, x, y = linear_case(2)
    eps = float(model.distances(x, y, Linf(0.1)).median())
    PGD(PGDConfig(threat=Linf(eps), steps=20, restarts=2))(model, x, y, generator=rng)
    fooled = int((model.distances(x, y, Linf(0.1)) < eps / 1.05).sum())
    assert fooled > 5
    stays = (len(x) - fooled) * 20  # fooled rows leave a run as well, and its result is scored
    assert 2 * (len(x) - fooled - 2) * 20 < model.rows <= 2 * stays + 2 * len(x) + fooled * 20
    coupled, x, y = linear_case(2, rowwise=False)
    PGD(PGDConfig(threat=Linf(eps), steps=20, restarts=2))(coupled, x, y, generator=rng)
    assert coupled.rows == len(x) * 21 * 2


@pytest.mark.parametrize(
    "attack",
    [
        BIM(BIMConfig(threat=Linf(0.3), steps=30, step=0.01)),
        MIFGSM(MIFGSMConfig(threat=Linf(0.3), steps=30, step=0.01)),
        PGD(PGDConfig(threat=Linf(0.3), steps=30, step=0.01, start="clean")),
        PGD(PGDConfig(threat=Linf(0.3), steps=30, step=0.01, start="clean", eot=2)),
    ],
    ids=["bim", "mi-fgsm", "pgd", "pgd-eot"],
)
def test_fooled_rows_leave_the_batch_where_rows_are_independent(attack, linear_case, rng):
    model, x, y = linear_case(2)
    x_adv = attack(model, x, y, generator=rng)
    distance = model.distances(x, y, Linf(0.3))
    assert (distance < 0.29).all()
    with torch.no_grad():
        assert (model(x_adv).argmax(1) != y).all()
    moved = (x_adv - x).flatten(1).abs().amax(1)
    torch.testing.assert_close(moved, (distance / 0.01).ceil() * 0.01, rtol=0, atol=1e-5)
    looks = 2 if "eot=2" in str(attack.config) else 1
    assert model.rows == len(x) + looks * int((distance / 0.01).ceil().sum() + len(x))

    coupled, x, y = linear_case(2, rowwise=False)
    x_adv = attack(coupled, x, y, generator=rng)
    torch.testing.assert_close((x_adv - x).flatten(1).abs().amax(1), torch.full((len(x),), 0.3))
    assert coupled.rows == len(x) * looks * 30


def test_an_image_that_is_fooled_already_stays_as_it_is(linear_case, rng):
    model, x, y = linear_case(2)
    y[::2] = 1 - y[::2]
    for attack in (FGSM(FGSMConfig(threat=Linf(0.1))), BIM(BIMConfig(threat=Linf(0.1)))):
        x_adv = attack(model, x, y, generator=rng)
        same = (x_adv == x).flatten(1).all(1)
        assert same[::2].all()
        assert not same[1::2].any()


def test_targeted_rows_leave_when_the_target_is_reached(linear_case, rng):
    model, x, y = linear_case(4)
    attack = PGD(PGDConfig(threat=Linf(0.3), steps=50, step=0.01))
    x_adv = attack(model, x, Targeted((y + 1) % 4), generator=rng)
    assert model.rows < 50 * len(x)
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == (y + 1) % 4).all()


def test_restarts_keep_the_better_example(rng):
    # Two hills: the low one at 0, the high one at 1; one step of PGD climbs the nearer.
    def model(x: torch.Tensor) -> torch.Tensor:
        hill = torch.where(x < 0.5, 0.5 - x, 3 * (x - 0.5)).flatten(1)
        return torch.cat([torch.full_like(hill, 5.0), hill], 1)

    x = torch.full((64, 1, 1, 1), 0.5)
    y = torch.zeros(64, dtype=torch.long)

    def share(restarts: int) -> float:
        config = PGDConfig(threat=Linf(0.5), steps=20, restarts=restarts)
        return float((PGD(config)(model, x, y, generator=rng) > 0.9).float().mean())

    assert 0.3 < share(1) < 0.7
    assert share(8) > 0.95


def test_a_note_says_what_replaced_dlr():
    attack = PGD(PGDConfig(threat=Linf(0.1), loss="dlr"))
    assert attack.note(10) == ""
    assert (
        attack.note(2) == "With 2 classes DLR is undefined: the margin max z_j - z_y was ascended."
    )
