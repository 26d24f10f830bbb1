"""Keys are stable, and the global generators are left as they were."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from phalanx import randomness


def test_a_key_is_the_same_in_every_process():
    code = "from phalanx import randomness; print(randomness.key(1, 'fit', 2))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == randomness.key(1, "fit", 2) == 2509954569


def test_keys_fit_torchs_cpu_generator():
    assert all(0 <= randomness.key(i) < 2**32 for i in range(100))


@pytest.mark.parametrize(
    ("one", "two"),
    [(("a", "b"), ("ab",)), ((1,), ("1",)), ((1, 2), (2, 1)), (("a", ""), ("a",))],
)
def test_different_parts_give_different_keys(one, two):
    assert randomness.key(*one) != randomness.key(*two)


def test_equal_keys_give_equal_draws():
    first, second = (torch.rand(5, generator=randomness.generator(1, "x")) for _ in range(2))
    assert torch.equal(first, second)


def test_seeded_restores_all_three_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def fail():
        with randomness.seeded("inside"):
            torch.rand(3), np.random.rand(3), random.random()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


def test_seeded_gives_the_same_draws_again():
    draws = []
    for _ in range(2):
        with randomness.seeded(7):
            draws.append((float(torch.rand(())), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
