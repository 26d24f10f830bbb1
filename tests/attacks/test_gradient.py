import pytest
import torch

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
    assert len(x) * 21 < model.rows <= len(x) * 21 + (len(x) - fooled) * 21
    coupled, x, y = linear_case(2, rowwise=False)
    PGD(PGDConfig(threat=Linf(eps), steps=20, restarts=2))(coupled, x, y, generator=rng)
    assert coupled.rows == len(x) * 21 * 2


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
