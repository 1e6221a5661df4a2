"""The fusions, by hand."""

import pytest
import torch
from torch.nn import functional as F

from unetseg.errors import UserError
from unetseg.model import SkipUnet
from unetseg.model.skips import FLOWS as FLOW_FUNCTIONS
from unetseg.model.skips import (
    FUSIONS,
    Add,
    Attention,
    Concat,
    Multiply,
    NoSkip,
    Placebo,
    ResPath,
    ResPathBlock,
    Shuffled,
    dosed,
)
from unetseg.names import FLOWS, FUSED, why_not_withheld

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


def test_multiply_projects_then_multiplies():
    fusion = Multiply(2, 1)
    fusion.projection.weight.data = torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)
    assert fusion(DEEP, SKIP).flatten().tolist() == [5, -20]
    assert fusion.out_channels == 2
    assert list(Multiply(2, 2).parameters()) == []


@pytest.mark.parametrize("kind", FUSED)
def test_a_fusion_tells_whether_the_deep_path_outlives_zeros(kind):
    deep = torch.randn(1, 4, 3, 3, requires_grad=True)
    FUSIONS[kind](4, 6).eval()(deep, torch.zeros(1, 6, 3, 3)).sum().backward()
    assert bool(deep.grad.any()) == FUSIONS[kind].is_whole_without


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


def test_the_options_are_the_fusions_and_the_flows():
    assert list(FUSIONS) == list(FUSED)
    assert list(FLOW_FUNCTIONS) == list(FLOWS)


def test_attention_weighs_the_skip_by_oktays_gate():
    fusion = Attention(2, 2)
    parameters = {"of_skip.weight": [1, -1], "of_deep.weight": [2, 0], "of_deep.bias": [-3], "psi.weight": [0.5]}
    fusion.load_state_dict(
        {name: torch.tensor(v).float().view(fusion.get_parameter(name).shape) for name, v in parameters.items()}
        | {"psi.bias": torch.tensor([-2.0])}
    )
    skip = torch.tensor([[[[10.0]], [[4.0]]]])
    # 10 - 4 from the skip, 2 * 1 - 3 from the deep features: relu(5) / 2 - 2 = 0.5
    alpha = 1 / (1 + torch.tensor(-0.5).exp())
    torch.testing.assert_close(fusion.gate(DEEP, skip).flatten(), alpha.view(1))
    torch.testing.assert_close(fusion(DEEP, skip).flatten(), torch.tensor([1, 2, 10 * alpha, 4 * alpha]))


@pytest.mark.parametrize(("deep", "skip", "stand_in"), [(2, 1, [1]), (2, 2, [1, 2]), (2, 5, [1, 2, 1, 2, 1])])
def test_placebo_repeats_or_cuts_the_deep_features_to_the_skips_width(deep, skip, stand_in):
    fusion = Placebo(deep, skip)
    assert fusion.out_channels == Concat(deep, skip).out_channels
    assert fusion(DEEP, torch.full((1, skip, 1, 1), 77.0)).flatten().tolist() == [1, 2, *stand_in]


def test_shuffled_gives_each_picture_another_ones_features_while_training():
    torch.manual_seed(0)
    fusion = Shuffled(1, 1)
    deep, skip = torch.zeros(5, 1, 1, 1), torch.arange(5.0).view(5, 1, 1, 1)
    drawn = [fusion(deep, skip)[:, 1].flatten().tolist() for _ in range(60)]
    for order in drawn:
        assert sorted(order) == [0, 1, 2, 3, 4]
        assert all(other != own for own, other in enumerate(order))
    assert {order[0] for order in drawn} == {1, 2, 3, 4}, "another one in other steps"
    torch.manual_seed(0)
    assert drawn == [fusion(deep, skip)[:, 1].flatten().tolist() for _ in range(60)], "drawn from the seed"
    assert torch.equal(fusion.eval()(deep, skip), Concat(1, 1)(deep, skip)), "in evaluation it is concat"


def test_the_gradient_of_a_shuffled_skip_is_of_another_pictures_loss():
    skip = torch.zeros(2, 1, 1, 1, requires_grad=True)
    (Shuffled(1, 1)(torch.zeros(2, 1, 1, 1), skip)[0, 1] * 3).backward()
    assert skip.grad.flatten().tolist() == [0, 3]


def test_a_picture_alone_in_a_training_batch_has_no_other():
    with pytest.raises(UserError, match="two or more on each device"):
        Shuffled(1, 1)(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("kind", ["concat", "add", "attention", "multiply", "respath", "scse"])
def test_forward_lets_the_features_through_and_no_gradient(kind):
    whole, cut = FUSIONS[kind](4, 6), FUSIONS[kind](4, 6, "forward")
    cut.load_state_dict(whole.state_dict())
    deep, skip = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(2, 6, 3, 3, requires_grad=True)
    assert torch.equal(whole(deep, skip), cut(deep, skip))
    cut(deep, skip).square().sum().backward()
    assert skip.grad is None
    assert deep.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in cut.parameters())


@pytest.mark.parametrize("factor", [0.25, 2.0])
@pytest.mark.parametrize("kind", ["concat", "add", "attention", "multiply", "respath", "scse"])
def test_a_dose_multiplies_the_skips_gradient_and_changes_nothing_else(kind, factor):
    whole, part = FUSIONS[kind](4, 6), FUSIONS[kind](4, 6, gradient=factor)
    part.load_state_dict(whole.state_dict())
    inputs = [[torch.randn(2, width, 3, 3) for width in (4, 6)]]
    inputs.append([tensor.clone() for tensor in inputs[0]])
    upstream = torch.randn_like(whole(*inputs[0]))
    for fusion, tensors in zip((whole, part), inputs, strict=True):
        output = fusion(*(tensor.requires_grad_() for tensor in tensors))
        (output * upstream).sum().backward()
    (deep, skip), (same_deep, dosed_skip) = inputs
    assert torch.equal(whole(deep, skip), part(deep, skip))
    assert torch.equal(dosed_skip.grad, factor * skip.grad)
    assert torch.equal(same_deep.grad, deep.grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_a_dose_of_1_is_no_operation_and_one_of_0_is_a_cut():
    skip = torch.ones(1, requires_grad=True)
    assert dosed(skip, 1) is skip
    assert not dosed(skip, 0).requires_grad


def test_a_dose_is_differentiated_twice_as_any_factor():
    skip = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(dosed(skip, 0.5) ** 2, skip, create_graph=True)
    assert first.item() == 0.5 * 6
    assert torch.autograd.grad(first, skip)[0].item() == 0.5 * 2 * 0.5


@pytest.mark.parametrize("kind", ["concat", "add", "attention"])
def test_backward_withholds_the_features_and_lets_the_gradient_through(kind):
    """The fusion sees zeros; the encoder gets the gradient with respect to them, the fusion's own weights get zero."""
    whole, cut = FUSIONS[kind](4, 6), FUSIONS[kind](4, 6, "backward")
    cut.load_state_dict(whole.state_dict())
    deep, skip, zeros = (torch.randn(2, width, 3, 3) for width in (4, 6, 6))
    skip.requires_grad_()
    zeros = torch.zeros_like(zeros, requires_grad=True)
    upstream = torch.randn_like(cut(deep, skip))
    assert torch.equal(cut(deep, skip), whole(deep, zeros))
    (whole(deep, zeros) * upstream).sum().backward()
    (cut(deep, skip) * upstream).sum().backward()
    assert torch.equal(skip.grad, zeros.grad)
    assert skip.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() == 0 for p in cut.parameters())


@pytest.mark.parametrize(("kind", "flow", "carries"), [
    *((kind, flow, flow != "backward") for kind in FUSED for flow in FLOWS
      if kind not in ("placebo", "none") and not why_not_withheld(kind, flow)),
    *((kind, flow, False) for kind in ("placebo", "none") for flow in FLOWS),
])  # fmt: skip
def test_a_fusion_tells_whether_it_carries_features(kind, flow, carries):
    fusion = FUSIONS[kind](4, 6, flow).eval()
    deep = torch.randn(1, 4, 3, 3)
    assert fusion.carries_features is carries
    assert torch.equal(fusion(deep, torch.randn(1, 6, 3, 3)), fusion(deep, torch.randn(1, 6, 3, 3))) is not carries


def normed(features, norm):
    """Return batch normalisation in eval mode, written out."""
    mean, var, weight, bias = (
        values.view(1, -1, 1, 1) for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (features - mean) / torch.sqrt(var + norm.eps) * weight + bias


def test_respath_is_that_of_the_paper_written_out():
    """Ibtehaz and Rahman 2020, Fig. 4: to each 3x3 convolution's output that of a 1x1 convolution is added."""
    fusion = ResPath(4, 6, length=3, width=5).double().eval()
    for module in fusion.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    deep, skip = (torch.randn(2, width, 7, 9, dtype=torch.float64) for width in (4, 6))
    found = skip
    for block in fusion.path:
        wide = normed(F.conv2d(found, block.conv[0].weight, padding=1), block.conv[1])
        shortcut = normed(torch.einsum("oi,bihw->bohw", block.shortcut[0].weight[:, :, 0, 0], found), block.shortcut[1])
        found = normed((wide.clamp(min=0) + shortcut).clamp(min=0), block.norm)
    torch.testing.assert_close(fusion(deep, skip), torch.cat([deep, found], 1), rtol=1e-10, atol=1e-10)
    assert fusion.out_channels == 4 + 5


def keras_size(module):
    """Return how many numbers Keras counts: all weights and statistics, but no scale of a convolution's own norm."""
    numbers = sum(tensor.numel() for tensor in [*module.parameters(), *module.buffers()] if tensor.dim())
    return numbers - sum(2 * block.norm.num_features for block in module.modules() if isinstance(block, ResPathBlock))


def test_the_papers_network_with_these_paths_has_the_papers_size():
    """Table 2 of Ibtehaz and Rahman 2020: 7,262,750. All but the paths is counted here."""

    def conv(sees, width, side):
        return sees * width * side**2 + 3 * width  # and the shift and the statistics of its normalisation

    def multires(sees, width):
        first, second, third = (int(1.67 * width * share) for share in (0.167, 0.333, 0.5))
        total = first + second + third
        convolutions = conv(sees, first, 3) + conv(first, second, 3) + conv(second, third, 3) + conv(sees, total, 1)
        return convolutions + 2 * 4 * total, total

    size, sees, paths = 0, 3, []
    for width, length in ((32, 4), (64, 3), (128, 2), (256, 1), (512, 0)):
        own, sees = multires(sees, width)
        size += own
        if length:
            paths.append(ResPath(width, sees, length=length, width=width))
    for width in (256, 128, 64, 32):
        own, above = multires(2 * width, width)
        size, sees = size + 4 * sees * width + width + own, above
    size += conv(sees, 1, 1)
    assert size + sum(keras_size(path) for path in paths) == 7_262_750


def test_respath_has_4_blocks_at_the_finest_level_and_1_at_the_coarsest():
    net = SkipUnet("resnet18", skip="respath", weights=None)
    assert [len(fusion.path) for fusion in net.fusions] == [4, 3, 2, 1]
    assert [fusion.path[-1].conv[0].out_channels for fusion in net.fusions] == [64, 64, 128, 256]
    bare = SkipUnet("resnet18", skip="respath", normalisation="none", weights=None)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in bare.modules())


@pytest.mark.parametrize("kind", [kind for kind in FUSED if kind not in ("attention", "add")])
def test_a_skip_of_no_channels_brings_no_layer(kind):
    fusion = FUSIONS[kind](4, 0)
    assert all(weight.numel() for weight in fusion.parameters())
    assert fusion(torch.randn(2, 4, 3, 3), torch.zeros(2, 0, 3, 3)).shape == (2, 4, 3, 3)
