"""The fusions, by hand."""

import torch

from unetseg.model.skips import Add, Concat, NoSkip

DEEP = torch.tensor([[[[1.0]], [[2.0]]]])
SKIP = torch.tensor([[[[10.0]]]])


def test_concat_puts_the_skip_behind_the_deep_features():
    assert Concat(2, 1)(DEEP, SKIP).flatten().tolist() == [1, 2, 10]
    assert Concat(2, 1).out_channels == 3


def test_add_projects_then_sums():
    fusion = Add(2, 1)
    fusion.projection.weight.data = torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)
    assert fusion(DEEP, SKIP).flatten().tolist() == [6, -8]
    assert fusion.out_channels == 2


def test_add_of_equal_widths_has_no_parameter():
    assert list(Add(2, 2).parameters()) == []
    assert Add(2, 2)(DEEP, DEEP).flatten().tolist() == [2, 4]


def test_none_returns_the_deep_features():
    assert NoSkip(2, 1)(DEEP, SKIP) is DEEP
    assert list(NoSkip(2, 1).parameters()) == []


def test_equal_halves_make_concat_an_addition():
    """A convolution over [x; s] is W_x x + W_s s: with W_x = W_s, concat and add are one."""
    x, s, weight = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(5, 4, 3, 3)
    joined = torch.nn.functional.conv2d(Concat(4, 4)(x, s), torch.cat([weight, weight], 1))
    summed = torch.nn.functional.conv2d(Add(4, 4)(x, s), weight)
    torch.testing.assert_close(joined, summed, rtol=1e-4, atol=1e-4)
