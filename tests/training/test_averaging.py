"""The moving average of weights: its closed form, what it leaves alone, and masks."""

import pytest
import torch
from torch import nn

from phalanx.errors import ArtifactError
from phalanx.training.averaging import Average


def test_closed_form():
    """After t steps: the first weights times decay^t, and a geometric sum of the later ones."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    decay, values = 0.9, [p.detach().clone() for p in layer.parameters()]
    average = Average(layer, decay=decay)
    expected = [decay**4 * value for value in values]
    for step in range(1, 5):
        for place, p in enumerate(layer.parameters()):
            p.data.normal_()
            expected[place] += (1 - decay) * decay ** (4 - step) * p.detach()
        average.update()
    for found, value in zip(average.state().values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12)


def test_applied_gives_the_weights_back():
    layer = nn.Linear(3, 2)
    average = Average(layer, decay=0.5)
    own = {name: value.clone().add_(1.0) for name, value in layer.state_dict().items()}
    layer.load_state_dict(own)
    average.update()
    seen = []

    def fail():
        seen.append((layer.weight.clone(), average.state()["weight"].clone()))
        raise KeyError

    with pytest.raises(KeyError), average.applied():
        fail()
    ((inside, expected),) = seen
    assert torch.equal(inside, expected)
    assert not torch.equal(inside, own["weight"])
    assert all(torch.equal(value, own[name]) for name, value in layer.state_dict().items())


def test_buffers_are_the_trained_ones():
    norm = nn.BatchNorm1d(2)
    average = Average(norm, decay=0.9)
    norm(torch.randn(8, 2) + 3.0)
    average.update()
    mean = norm.running_mean.clone()
    average.apply()
    assert torch.equal(norm.running_mean, mean)
    assert int(norm.num_batches_tracked) == 1
    assert average.state().keys() == {"weight", "bias"}


def test_frozen_and_masked_weights_stay_exactly():
    layer = nn.Linear(40, 40)
    mask = torch.rand(40, 40) < 0.5
    layer.weight.data[mask] = 0.0
    layer.bias.requires_grad_(False)
    average = Average(layer, decay=0.999)
    before = layer.bias.clone()
    for _ in range(50):
        layer.weight.data.add_(torch.randn(40, 40)).masked_fill_(mask, 0.0)
        average.update()
    assert torch.equal(average.state()["bias"], before)
    assert bool((average.state()["weight"][mask] == 0.0).all())
    assert not bool((average.state()["weight"][~mask] == 0.0).any())


def test_a_stored_average_goes_on_bit_for_bit():
    def steps(layer, average, count, start):
        for step in range(start, start + count):
            layer.weight.data.fill_(float(step))
            average.update()

    whole, parts = nn.Linear(2, 2), nn.Linear(2, 2)
    parts.load_state_dict(whole.state_dict())
    one, two = Average(whole, decay=0.99), Average(parts, decay=0.99)
    steps(whole, one, 7, 0)
    steps(parts, two, 3, 0)
    stored = {name: value.clone() for name, value in two.state().items()}
    again = Average(parts, decay=0.99)
    again.load_state(stored)
    steps(parts, again, 4, 3)
    assert torch.equal(one.state()["weight"], again.state()["weight"])


def test_another_modules_average_is_refused():
    average = Average(nn.Linear(2, 2), decay=0.5)
    with pytest.raises(ArtifactError, match="does not fit: 1 tensors differ, such as bias"):
        average.load_state({"weight": torch.zeros(2, 2)})
