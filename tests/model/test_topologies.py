"""U-Net++, U-Net 3+, permuted levels: against smp, slow implementations, their sizes, and what every skip can do."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from unetseg.errors import UserError
from unetseg.evaluation.lesions import levels_to_cut
from unetseg.gradients.blocks import blocks_of
from unetseg.model import Segmenter, SkipUnet
from unetseg.model.decoder import Convolutions
from unetseg.model.topologies import FullDecoder, PermutedDecoder
from unetseg.names import why_not_withheld
from unetseg.options.compose import compose
from unetseg.options.schema import Train

TOPOLOGIES = ("nested", "full", "channel", "permuted")


def net_of(skip: str, encoder: str = "resnet18", **options) -> SkipUnet:
    torch.manual_seed(0)
    return SkipUnet(encoder, skip=skip, weights=None, **options)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_nested_equals_smps_unet_plus_plus_bit_for_bit(encoder, training):
    ours, theirs = net_of("nested", encoder, classes=2), smp.UnetPlusPlus(encoder, encoder_weights=None, classes=2)
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    for net in (ours, theirs):
        net.train(training)
        net(images).square().mean().backward()
    assert torch.equal(ours(images), theirs(images))
    gradients = dict(theirs.named_parameters())
    assert all(torch.equal(weight.grad, gradients[name].grad) for name, weight in ours.named_parameters())


def test_the_same_seed_gives_the_weights_of_smps_unet_plus_plus():
    ours = net_of("nested").state_dict()
    torch.manual_seed(0)
    theirs = smp.UnetPlusPlus("resnet18", encoder_weights=None).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def conv(features, layer):
    """Return what a 3x3 convolution, its batch normalisation in eval mode and a ReLU make of features."""
    weights, norm = layer[0].weight, layer[1]
    result = F.conv2d(features, weights, padding=1)
    mean, var = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
    scaled = (result - mean) / torch.sqrt(var + norm.eps)
    return F.relu(scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1))


def pooled(features, factor):
    """Return the maximum of each square, pixel by pixel."""
    height, width = (math.ceil(side / factor) for side in features.shape[-2:])
    squares = [
        [
            features[..., y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].amax((-2, -1))
            for x in range(width)
        ]
        for y in range(height)
    ]
    return torch.stack([torch.stack(row, -1) for row in squares], -2)


@pytest.mark.parametrize("size", [(64, 96), (61, 95)], ids=str)
def test_full_is_that_of_the_paper_written_out(size):
    net = net_of("full").double().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    _, e1, e2, e3, e4, e5 = net.encoder(images)
    decoder = net.decoder

    def up(features, like):
        return F.interpolate(features, size=like.shape[-2:], mode="bilinear")

    def node(level, *inputs):
        layers = decoder.sources[level - 1]
        return conv(torch.cat([conv(own, layer) for own, layer in zip(inputs, layers, strict=True)], 1), merges[level])

    merges = dict(enumerate(decoder.merges, start=1))
    d4 = node(4, pooled(e1, 8), pooled(e2, 4), pooled(e3, 2), e4, up(e5, e4))
    d3 = node(3, pooled(e1, 4), pooled(e2, 2), e3, up(d4, e3), up(e5, e3))
    d2 = node(2, pooled(e1, 2), e2, up(d3, e2), up(d4, e2), up(e5, e2))
    d1 = node(1, e1, up(d2, e1), up(d3, e1), up(d4, e1), up(e5, e1))
    last = F.interpolate(d1, size=size, mode="nearest")
    expected = net.segmentation_head(conv(conv(last, decoder.last.conv1), decoder.last.conv2))
    torch.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-10)


def test_full_has_the_size_that_its_paper_states():
    """Table 1 of Huang et al. 2020: 26.97 million, without deep supervision; their convolutions have biases."""
    widths = [64, 128, 256, 512, 1024]
    decoder = FullDecoder([3, *widths], [320] * 4 + [1], ["both"] * 4, [1.0] * 4, "batch", [64] * 4)
    nodes = [*decoder.sources.parameters(), *decoder.merges.parameters()]
    encoder = [w for pair in zip([3, *widths], widths, strict=False) for w in Convolutions(*pair, "batch").parameters()]
    biases = 4 * (5 * 64 + 320) + 2 * sum(widths)
    head = 9 * 320 + 1
    assert round((sum(w.numel() for w in [*nodes, *encoder]) + biases + head) / 1e6, 2) == 26.97


def enlarged(features, size):
    """Return each position's value by the share of the way that it lies along each side."""
    height, width = features.shape[-2:]
    rows = [min(height - 1, y * height // size[0]) for y in range(size[0])]
    columns = [min(width - 1, x * width // size[1]) for x in range(size[1])]
    return features[..., rows, :][..., columns]


@pytest.mark.quick
@pytest.mark.parametrize("size", [(64, 96), (61, 95)], ids=str)
def test_permuted_is_concat_of_the_other_levels_features(size):
    """Levels 1 and 4, 2 and 3 are exchanged; of 64, 64, 128 and 256 channels some are repeated, others cut."""
    net, concat = net_of("permuted").double().eval(), net_of("concat").double().eval()
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in concat.state_dict().items()
    }
    concat.load_state_dict(net.state_dict())
    features = net.encoder(torch.randn(1, 3, *size, dtype=torch.float64))
    first, e1, e2, e3, e4, last = features
    by_hand = [
        enlarged(e4, e1.shape[-2:])[:, :64],
        enlarged(e3, e2.shape[-2:])[:, :64],
        torch.cat([pooled(e2, 2)] * 2, 1),
        torch.cat([pooled(e1, 8)] * 4, 1),
    ]
    torch.testing.assert_close(net.decode(features), concat.decode([first, *by_hand, last]), rtol=1e-12, atol=1e-12)


def test_permuted_needs_features_to_exchange():
    with pytest.raises(UserError, match="levels have 0, 8 channels"):
        PermutedDecoder([3, 0, 8, 16], [16, 8, 4], ["both"] * 2, [1.0] * 2, "batch")


def test_the_flow_of_a_permuted_level_is_that_of_its_own_features():
    """Level 1's features go to the coarsest block; its flow and dose are theirs, wherever they go."""
    net = net_of("permuted").eval()
    features = [own.detach().requires_grad_() for own in net.encoder(torch.randn(1, 3, 64, 64))]
    seen = {}
    net.decoder.blocks[0].fusion.register_forward_hook(lambda _, inputs, output: seen.update(skip=inputs[1]))
    net.decode(features).square().sum().backward()
    assert torch.equal(seen["skip"][:, :64], pooled(features[1], 8))
    cut = net_of("permuted", skip_flow=["forward", "both", "both", "both"]).eval()
    again = [own.detach().requires_grad_() for own in features]
    cut.decode(again).square().sum().backward()
    assert [own.grad is None for own in again[1:-1]] == [True, False, False, False]


@pytest.mark.parametrize("skip", TOPOLOGIES)
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "densenet121"])
def test_equal_size_means_the_parameters_of_concat(encoder, skip):
    with torch.device("meta"):
        wanted = sum(p.numel() for p in SkipUnet(encoder, weights=None).parameters())
        matched = SkipUnet(encoder, skip=skip, weights=None, match_parameters=True)
    assert sum(p.numel() for p in matched.parameters()) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("skip", TOPOLOGIES)
def test_any_size_is_accepted_also_of_encoders_that_round_down(skip):
    for encoder in ("resnet18", "densenet121"):
        net = net_of(skip, encoder, classes=3).eval()
        for size in ((33, 47), (64, 64), (70, 95)):
            assert net(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("skip", TOPOLOGIES)
def test_a_levels_lesion_is_all_that_the_decoder_gets_of_it(skip):
    """With every level's features cut the result depends on the bottleneck alone."""
    net = net_of(skip).eval()
    features = net.encoder(torch.randn(2, 3, 64, 64))
    cut = [features[0], *(torch.zeros_like(own) for own in features[1:-1]), features[-1]]
    other = [features[0], *(torch.randn_like(own) for own in features[1:-1]), features[-1]]
    if why_not_withheld(skip, "backward"):
        hooks = [f.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output)) for f in net.fusions]
        withheld = net.decode(other)
        assert all(hook.remove() is None for hook in hooks)
        assert torch.equal(withheld, net.decode(cut))
        return
    backward = net_of(skip, skip_flow="backward").eval()
    assert torch.equal(backward.decode(other), net.decode(cut))
    model = Segmenter(classes=2, encoder="resnet18", weights=None, skip=skip, skip_flow=["both", "backward"] * 2)
    assert levels_to_cut(model) == [1, 3]


@pytest.mark.parametrize("skip", TOPOLOGIES)
def test_flows_and_doses_are_those_of_a_level(skip):
    images, found = torch.randn(2, 3, 64, 64), {}
    for name, options in (
        ("both", {}),
        ("forward", {"skip_flow": "forward"}),
        ("half", {"skip_gradient": 0.5}),
        ("none of level 1", {"skip_flow": ["forward", "both", "both", "both"]}),
    ):
        features = [own.detach().requires_grad_() for own in net_of(skip).eval().encoder(images)]
        net_of(skip, **options).eval().decode(features).square().sum().backward()
        found[name] = [own.grad if own.grad is not None else torch.zeros_like(own) for own in features[1:]]
    for level in range(4):
        assert not found["forward"][level].any()
        torch.testing.assert_close(found["half"][level], found["both"][level] / 2)
        assert found["none of level 1"][level].any() == (level > 0)
    assert torch.equal(found["forward"][4], found["both"][4]), "the bottleneck's gradient is as ever"


@pytest.mark.parametrize("skip", TOPOLOGIES)
def test_the_gradient_flow_has_a_block_a_level(skip):
    found = blocks_of(net_of(skip, skip_scale="learned"))
    assert [name for name in found if name.startswith("decoder")] == [f"decoder{n}" for n in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("given", ["model.skip=[nested,concat,concat,concat]", "model.skip=nestd"])
def test_a_topology_is_of_all_levels(given):
    with pytest.raises(UserError, match=r"model\.skip"):
        compose("train", Train, ["data=synthetic", given])
    with pytest.raises(ValueError, match="accepted are"):
        SkipUnet("resnet18", skip=["full", "concat", "concat", "concat"], weights=None)
