import pytest
import torch

from phalanx.config import Backbone
from phalanx.errors import InputError
from phalanx.nn import build_member, capture
from phalanx.specs import Task

TASK = Task(name="t", shape=(3, 16, 16), classes=10, train_size=1, mean=(0.5,) * 3, std=(0.2,) * 3)


@pytest.fixture
def member():
    return build_member(Backbone(use="resnet20_cifar"), TASK).eval()


def test_layer_output_with_its_graph(member):
    x = torch.rand(2, 3, 16, 16)
    with capture(member, "layer2.0.bn1") as box:
        member(x)
    assert box.value.shape == (2, 32, 8, 8)
    assert box.value.requires_grad


def test_names_with_and_without_backbone(member):
    x = torch.rand(2, 3, 16, 16)
    with capture(member, "bn1") as short, capture(member, "backbone.bn1") as long:
        member(x)
    assert torch.equal(short.value, long.value)
    with capture(member.backbone, "bn1") as box:
        member.backbone(x)
    assert box.value.shape == (2, 16, 16, 16)


class InPlace(torch.nn.Module):
    """A layer whose output the next one overwrites, as timm's ResNets do."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 1)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv(x))


def test_a_later_layer_in_place_does_not_change_what_was_captured():
    network, x = InPlace(), torch.randn(4, 1, 3, 3)
    with capture(network, "conv") as box:
        network(x)
    expected = network.conv(x)
    assert (expected < 0).any()
    assert torch.equal(box.value, expected)
    found, own = (
        torch.autograd.grad((value**2).sum(), network.conv.weight)[0]
        for value in (box.value, expected)
    )
    assert torch.allclose(found, own)


def test_the_latest_pass_counts_and_the_hook_goes(member):
    first, second = torch.rand(1, 3, 16, 16), torch.rand(2, 3, 16, 16)
    with capture(member, "bn1") as box:
        member(first)
        member(second)
    member(first)
    assert len(box.value) == 2
    assert not member.backbone.bn1._forward_hooks


def test_the_hook_goes_after_an_error(member):
    with pytest.raises(ZeroDivisionError), capture(member, "bn1"):
        raise ZeroDivisionError
    assert not member.backbone.bn1._forward_hooks


def test_unknown_layer(member):
    with (
        pytest.raises(InputError, match=r"Member has no layer 'layer2.0.bn9'; did you mean "),
        capture(member, "layer2.0.bn9"),
    ):
        pass


def test_layer_that_has_not_run(member):
    with capture(member, "bn1") as box, pytest.raises(InputError, match="layer 'bn1' has not run"):
        _ = box.value
