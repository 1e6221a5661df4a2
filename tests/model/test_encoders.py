"""Encoders with other short skips or without normalisation: the same weights, another network."""

import itertools

import pytest
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn

from unetseg.model import SkipUnet
from unetseg.model.encoders import make_encoder
from unetseg.names import RESNETS


def plain(name, **options):
    return make_encoder(name, in_channels=3, weights=None, **options)


@pytest.mark.parametrize("name", RESNETS)
def test_without_short_skips_only_the_projections_are_gone(name):
    with torch.device("meta"):
        whole, cut = plain(name), plain(name, short_skips=False)
    gone = whole.state_dict().keys() - cut.state_dict().keys()
    assert gone == {key for key in whole.state_dict() if "downsample" in key}
    assert cut.state_dict().keys() <= whole.state_dict().keys()


def test_a_block_without_its_short_skip_is_its_convolutions_alone():
    whole, cut = plain("resnet18").eval(), plain("resnet18", short_skips=False).eval()
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if "downsample" not in k})
    x = torch.randn(1, 64, 8, 8)
    block = whole.layer1[0]
    identity_free = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    assert torch.equal(cut.layer1[0](x), identity_free)
    assert not torch.equal(whole.layer1[0](x), identity_free)


@pytest.mark.parametrize(
    ("name", "short_skips", "normalisation"),
    [
        *itertools.product(["resnet18", "resnet50"], [True, False, "concat"], ["batch", "none"]),
        *itertools.product(["densenet121"], [False, "add"], ["batch"]),
    ],
)
def test_no_variant_leaves_a_parameter_without_a_gradient(name, short_skips, normalisation):
    net = SkipUnet(name, weights=None, short_skips=short_skips, normalisation=normalisation)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_without_normalisation_there_is_none_in_the_whole_net():
    net = SkipUnet("resnet18", weights=None, normalisation="none")
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_smps_own_table_stays_as_it_is():
    before = dict(encoders["resnet50"]["params"])
    plain("resnet50", short_skips=False, normalisation="none")
    assert encoders["resnet50"]["params"] == before


def test_glorot_weights_have_glorots_variance():
    net = SkipUnet("resnet18", weights=None, initialisation="glorot")
    weight = net.encoder.layer4[1].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 512 + 9 * 512), rel=0.01)


def start(**options):
    """Return the weights of the encoder's convolutions as they are drawn with seed 0."""
    torch.manual_seed(0)
    encoder = SkipUnet("resnet18", weights=None, **options).encoder
    return {name: module.weight for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("initialisation", ["he", "glorot"])
@pytest.mark.parametrize(
    "options",
    [
        {"skip": "none"},
        {"skip": "add"},
        {"short_skips": False},
        {"short_skips": "concat"},
        {"normalisation": "none", "skip": "attention"},
    ],
    ids=str,
)
def test_the_encoder_starts_alike_with_the_same_seed_whatever_else_is_chosen(initialisation, options):
    whole, other = start(initialisation=initialisation), start(initialisation=initialisation, **options)
    shared = whole.keys() & other.keys()
    assert len(shared) >= 17
    assert all(torch.equal(whole[name], other[name]) for name in shared)


def test_a_densenet_cannot_do_without_normalisation():
    with pytest.raises(ValueError, match="only resnet18"):
        plain("densenet121", normalisation="none")


@pytest.mark.parametrize(("name", "own"), [("resnet18", "add"), ("densenet121", "concat")])
def test_the_encoders_own_way_is_the_encoder_itself(name, own):
    torch.manual_seed(0)
    published = plain(name)
    torch.manual_seed(0)
    named = plain(name, short_skips=own)
    assert type(named) is type(published)
    assert all(torch.equal(value, named.state_dict()[key]) for key, value in published.state_dict().items())


def filled(features, width):
    """Repeat or cut the channels, one after the other."""
    return torch.stack([features[:, channel % features.shape[1]] for channel in range(width)], dim=1)


@pytest.mark.parametrize("short_skips", [False, "add"])
def test_a_dense_block_without_concatenations_is_what_a_slow_loop_finds(short_skips):
    torch.manual_seed(0)
    whole = plain("densenet121").double().eval()
    torch.manual_seed(0)
    other = plain("densenet121", short_skips=short_skips).double().eval()
    assert whole.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())
    x = torch.randn(1, 64, 4, 4, dtype=torch.float64)
    layers = list(whole.features.denseblock1.values())
    made = [layers[0](x)]
    for number, layer in enumerate(layers[1:], start=1):
        seen = torch.stack(made).sum(0) if short_skips == "add" else made[-1]
        made.append(layer(filled(seen, 64 + 32 * number)))
    out = filled(torch.stack(made).sum(0) if short_skips == "add" else made[-1], 64 + 32 * 6)
    torch.testing.assert_close(other.features.denseblock1(x), out, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole.features.denseblock1(x), out)


def test_without_short_skips_nothing_goes_past_a_dense_layer():
    """Where its convolution gives zeros, nothing of the picture is left."""
    net = plain("densenet121", short_skips=False).eval()
    other = plain("densenet121", short_skips="add").eval()
    for encoder in (net, other):
        encoder.features.denseblock1.denselayer4.conv2.weight.data.zero_()
    pictures = torch.randn(2, 3, 64, 64)
    for encoder, alike in ((net, True), (other, False), (plain("densenet121").eval(), False)):
        first, second = encoder(pictures)[-1]
        assert torch.equal(first, second) == alike


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_that_concatenates_could_add(name):
    """With ones on the two diagonals of its 1x1 convolution it is the published block."""
    whole, other = plain(name).double().eval(), plain(name, short_skips="concat").double().eval()
    other.load_state_dict({key: whole.state_dict().get(key, value) for key, value in other.state_dict().items()})
    merges = [module.merge for module in other.modules() if hasattr(module, "merge")]
    assert len(merges) == len([key for key in whole.state_dict() if key.endswith("bn2.weight")])
    for merge in merges:
        width = merge.out_channels
        merge.weight.data = torch.cat([torch.eye(width), torch.eye(width)], dim=1)[:, :, None, None].double()
    pictures = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(other(pictures), whole(pictures), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    extra = sum(merge.weight.numel() for merge in merges)
    assert extra == sum(2 * merge.out_channels**2 for merge in merges)
    assert sum(p.numel() for p in other.parameters()) - sum(p.numel() for p in whole.parameters()) == extra


def test_smps_unet_is_only_the_one_with_the_encoders_own_short_skips():
    assert SkipUnet("resnet18", weights=None, short_skips="add").is_smp_unet
    assert not SkipUnet("resnet18", weights=None, short_skips="concat").is_smp_unet
    assert not SkipUnet("densenet121", weights=None, short_skips="add").is_smp_unet
