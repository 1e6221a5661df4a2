"""Encoders without short skips or normalisation: the same weights, less of the network."""

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


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("short_skips", [True, False])
@pytest.mark.parametrize("normalisation", ["batch", "none"])
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
    [{"skip": "none"}, {"skip": "add"}, {"short_skips": False}, {"normalisation": "none", "skip": "attention"}],
    ids=str,
)
def test_the_encoder_starts_alike_with_the_same_seed_whatever_else_is_chosen(initialisation, options):
    whole, other = start(initialisation=initialisation), start(initialisation=initialisation, **options)
    assert len(other) >= 17
    assert all(torch.equal(whole[name], weight) for name, weight in other.items())


@pytest.mark.parametrize("options", [{"short_skips": False}, {"normalisation": "none"}], ids=str)
def test_a_densenet_cannot_do_without(options):
    with pytest.raises(ValueError, match="only resnet18"):
        plain("densenet121", **options)
