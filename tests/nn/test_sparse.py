"""Tensors with zeros in groups come back bit for bit, in the bytes that the groups cost."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from phalanx.nn import sparse
from phalanx.nn.sparse import OVERHEAD, SUFFIX, decode, encode, pack, unpack
from phalanx.randomness import generator


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator(0, *shape)).to(dtype)


def kept(weight, mask):
    """The weight where the mask is, positive zero elsewhere."""
    return torch.where(mask.expand_as(weight), weight, torch.zeros((), dtype=weight.dtype))


def chosen(count, n):
    """`n` of `count` at random, as a mask."""
    return torch.zeros(count, dtype=torch.bool).index_fill_(
        0, torch.randperm(count, generator=generator(1, count))[:n], True
    )


def bits_of(tensor):
    return tensor.contiguous().view(sparse._BITS[tensor.dtype])


def the_same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits_of(a), bits_of(b))


def worked():
    """Two of the six 2x2 blocks of a 4x6 matrix."""
    weight = torch.zeros(4, 6)
    weight[:2, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    weight[2:, 4:] = torch.tensor([[0.0, 5.0], [0.0, -0.0]])
    return weight


def test_worked_blocks():
    blocks = sparse._grouped(sparse._held(worked()), (2, 2, 1))
    assert blocks.squeeze(2).tolist() == [[False, True, False], [False, False, True]]
    assert sparse._elements(blocks, (4, 6, 1), (2, 2, 1)) == 8
    packed = sparse.Packed((4, 6), (2, 2, 1), *parts(worked(), blocks, (2, 2, 1)))
    assert packed.bits.tolist() == [0b100010]
    assert packed.values.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 5.0, 0.0, -0.0]
    assert packed.nbytes == 1 + 8 * 4
    assert the_same(unpack(packed), worked())


def parts(weight, groups, group):
    where = sparse._spread(groups, sparse._three(tuple(weight.shape)), group).view(weight.shape)
    return sparse._to_bits(groups.flatten()), weight[where]


@pytest.mark.parametrize(
    ("mask", "group", "values"),
    [
        (chosen(64 * 32 * 9, 2304).view(64, 32, 3, 3), (1, 1, 1), 2304),
        (
            chosen(16 * 8 * 9, 144)
            .view(16, 8, 3, 3)
            .repeat_interleave(4, 0)
            .repeat_interleave(4, 1),
            (4, 4, 1),
            2304,
        ),
        (chosen(64, 16).view(64, 1, 1, 1), (1, 32, 9), 16 * 32 * 9),
        (chosen(32 * 9, 36).view(1, 32, 3, 3), (64, 1, 1), 36 * 64),
    ],
    ids=["irregular", "block", "filter", "column"],
)
def test_each_scheme_is_kept_in_its_own_group(mask, group, values):
    weight = kept(normal(64, 32, 3, 3), mask)
    packed = pack(weight)
    assert packed.group == group
    assert packed.values.numel() == values
    groups = math.prod(-(-size // part) for size, part in zip((64, 32, 9), group, strict=True))
    assert packed.bits.numel() == -(-groups // 8)
    assert packed.nbytes + OVERHEAD < weight.nbytes
    assert the_same(unpack(packed), weight)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(9, 7, 3, 3), (5, 33), (17, 3, 5), (2, 130, 1, 1), (40, 3, 2, 2, 2)]),
    group=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    share=st.floats(0.0, 0.6),
    dtype=st.sampled_from(sorted(sparse._BITS, key=str)),
    odd=st.booleans(),
)
def test_what_is_unpacked_is_what_was_packed(shape, group, share, dtype, odd):
    o, i = (-(-size // part) for size, part in zip(shape[:2], group, strict=True))
    blocks = chosen(o * i, round(share * o * i)).view(o, i)
    mask = blocks.repeat_interleave(group[0], 0).repeat_interleave(group[1], 1)
    mask = mask[: shape[0], : shape[1]].view(*shape[:2], *[1] * (len(shape) - 2))
    weight = kept(normal(*shape, dtype=dtype), mask)
    if odd:
        weight.view(-1)[[0, 1, -1]] = torch.tensor([-0.0, math.nan, math.inf], dtype=dtype)
    packed = pack(weight)
    if packed is not None:
        assert packed.nbytes + OVERHEAD < weight.nbytes
        assert the_same(unpack(packed), weight)
    found, told = encode({"w": weight, "n": torch.ones(3)})
    assert (told == {}) == (packed is None)
    back = decode(found, told)
    assert list(back) == ["w", "n"]
    assert the_same(back["w"], weight)


@pytest.mark.parametrize(
    "tensor",
    [
        normal(64, 64, 3, 3),
        torch.zeros(4096),
        torch.zeros(64, 64, dtype=torch.int32),
        torch.zeros(0, 64),
        torch.zeros(8, 8),
        torch.tensor(0.0),
        torch.full((64, 64), -0.0),
    ],
    ids=["dense", "vector", "integers", "empty", "small", "scalar", "negative zeros"],
)
def test_what_saves_nothing_stays_as_it_is(tensor):
    assert pack(tensor) is None
    found, told = encode({"x": tensor})
    assert found["x"] is tensor
    assert told == {}


def test_zeros_that_do_not_pay_for_the_header_stay():
    weight = torch.ones(16, 16)
    weight[:4] = 0.0  # 64 weights are 256 bytes, as much as the header's lines
    assert pack(weight) is None
    assert pack(torch.where(torch.arange(256).view(16, 16) < 128, 0.0, weight)) is not None


def test_a_tensor_whose_second_name_is_taken_stays():
    tensors = {"w": torch.zeros(64, 64), "w" + SUFFIX: torch.ones(2)}
    assert encode(tensors)[1] == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f, t: f.update({"w": f["w"][:-1]}), r"ValueError: 1023 values for groups of 1024"),
        (lambda f, t: f.update({"w/groups": f["w/groups"][1:]}), r"7 bytes of bits for 64 groups"),
        (lambda f, t: f.update({"w/groups": f["w"]}), r"1024 bytes of bits for 64 groups"),
        (lambda f, t: f.pop("w/groups"), r"KeyError: 'w/groups'"),
        (lambda f, t: t["tensors"]["w"].pop("shape"), r"KeyError: 'shape'"),
        (lambda f, t: t["tensors"]["w"].update(shape=[64, -64]), r"sizes \[64, -64\]"),
        (lambda f, t: t["tensors"]["w"].update(shape=[64]), r"shape \(64,\) in groups"),
        (lambda f, t: t["tensors"]["w"].update(group="x"), r"sizes x"),
        (lambda f, t: t["tensors"]["w"].update(group=[10**12, 1, 1]), r"in groups of \(10+, 1, 1"),
        (lambda f, t: t["tensors"]["w"].update(group=[1, 65, 1]), r"in groups of \(1, 65, 1\)"),
        (lambda f, t: t["tensors"]["w"].update(group=[1, 1, 17]), r"in groups of \(1, 1, 17\)"),
        (
            lambda f, t: t["tensors"]["w"].update(shape=[10**30, 1], group=[10**30, 1, 1]),
            r"bytes of bits|Error",
        ),
        (lambda f, t: t.pop("version"), r"KeyError: 'version'"),
        (lambda f, t: t.update(tensors=3), r"AttributeError: 'int'"),
    ],
)
def test_what_does_not_belong_together_is_damaged(change, told):
    weight = torch.zeros(64, 64)
    weight[::4] = 1.0
    found, header = encode({"w": weight})
    assert header["tensors"] == {"w": {"shape": [64, 64], "group": [1, 64, 1]}}
    change(found, header)
    with pytest.raises(ValueError, match=rf"^is damaged: .*cannot be put together.*{told}"):
        decode(found, header)


def test_a_newer_form_is_refused():
    with pytest.raises(ValueError, match=r"keeps its zeros in form 2, and this Phalanx knows form"):
        decode({}, {"version": 2, "tensors": {}})


def test_a_file_without_packed_tensors_is_read_as_it_is():
    tensors = {"w": torch.ones(2)}
    assert decode(tensors, None) == tensors == decode(tensors, {})
