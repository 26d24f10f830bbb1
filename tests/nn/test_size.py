"""What a network costs: counted on worked cases, and timed as it is told to be."""

import pytest
import torch
from torch import nn

from phalanx.nn import size
from phalanx.nn.size import Size, latencies, processor, size_of, tensor_bytes


def test_parameters_and_zeros_of_a_worked_network():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv1d(3, 4, 2), nn.Linear(4, 5)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
        network[0].weight[1] = 0.0
        network[1].bias.zero_()
        network[2].weight[0, 0] = -0.0
        network[3].weight[0] = 0.0
    counted = size_of(network)
    total = (54 + 3) + 6 + (24 + 4) + (20 + 5)
    assert counted == Size(total, total - 18 - 3 - 2 - 4, 54 + 24, 36 + 22)
    assert counted.sparsity == pytest.approx(20 / 78)
    assert tensor_bytes(network.state_dict().values()) == 4 * (total + 6) + 8


def test_a_shared_weight_counts_once_and_without_convolutions_nothing_is_sparse():
    first, second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False)
    second.weight = first.weight
    assert size_of(nn.Sequential(first, second)) == Size(2, 2, 2, 2)
    assert size_of(nn.Linear(2, 1)).sparsity == 0.0


class Clock:
    """Time that passes only where a function takes some."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Timed:
    """A function that takes as long as it is told."""

    def __init__(self, clock, *seconds, name="", asked=None):
        self.clock = clock
        self.name, self.asked = name, [] if asked is None else asked
        self.seconds = list(seconds)
        self.seen = []

    def __call__(self, x):
        self.clock.now += self.seconds.pop(0)
        self.asked.append(self.name)
        self.seen.append((torch.is_grad_enabled(), torch.get_num_threads()))
        return x


def test_latencies_are_medians_after_the_first_pass(clock):
    one, two = Timed(clock, 9.0, 4.0, 1.0, 3.0), Timed(clock, 9.0, 1.0, 1.0, 8.0)
    before = torch.get_num_threads()
    found = latencies([one, two], torch.rand(2, 1, 3, 3), threads=before + 1, passes=3, clock=clock)
    assert [latency.seconds for latency in found] == [1.5, 0.5]
    assert {(f.batch, f.passes, f.threads) for f in found} == {(2, 3, before + 1)}
    assert one.seen == two.seen == [(False, before + 1)] * 4
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "passes"), [(3.0, 5), (0.125, 8)])
def test_passes_are_repeated_until_one_has_taken_a_second(clock, seconds, passes):
    functions = [Timed(clock, *[part] * 20) for part in (seconds, 0.01)]
    found = latencies(functions, torch.rand(1, 1, 2, 2), clock=clock)
    assert [latency.passes for latency in found] == [passes] * 2


def test_who_begins_changes_from_round_to_round(clock):
    asked = []
    functions = [Timed(clock, *[1.0] * 4, name=name, asked=asked) for name in "ab"]
    latencies(functions, torch.rand(1, 1, 2, 2), passes=3, clock=clock)
    assert asked == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_the_wall_is_asked_unless_told_otherwise():
    (found,) = latencies([torch.nn.Identity()], torch.rand(1, 1, 2, 2), passes=2)
    assert found.seconds > 0.0


def test_threads_come_back_after_an_error(clock):
    before = torch.get_num_threads()
    with pytest.raises(IndexError):
        latencies([Timed(clock)], torch.rand(1, 1, 2, 2), threads=before + 1)
    assert torch.get_num_threads() == before


def test_the_processor_has_a_name(monkeypatch, tmp_path):
    assert processor()
    monkeypatch.setattr(size, "Path", lambda name: tmp_path / "none")
    monkeypatch.setattr(size.platform, "processor", lambda: "")
    monkeypatch.setattr(size.platform, "machine", lambda: "x86_64")
    assert processor() == "x86_64"
