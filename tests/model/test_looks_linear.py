"""The looks-linear start: what is linear at the beginning, and where it is refused."""

import pytest
import torch
from torch import nn

from unetseg.errors import UserError
from unetseg.model import SkipUnet
from unetseg.options.compose import compose
from unetseg.options.schema import Train

MIXED = ["none", "concat", "add", "concat"]


def started(encoder="resnet18", skip="concat", short_skips=False, seed=0, **options):
    torch.manual_seed(seed)
    plain = {"weights": None, "initialisation": "looks_linear", "decoder_channels": (16, 16, 8, 8, 8)}
    return SkipUnet(encoder, skip=skip, short_skips=short_skips, **plain, **options).double().eval()


def pictures(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


NETS = pytest.mark.parametrize(
    "options",
    [
        {"normalisation": "none"},
        {"skip": MIXED, "skip_flow": ["both", "backward", "forward", "both"], "classes": 3},
        {"short_skips": "concat", "skip": "add", "skip_scale": "kappa"},
        {"encoder": "resnet50", "short_skips": "concat", "normalisation": "none"},
    ],
    ids=str,
)


@NETS
@torch.no_grad()
def test_it_is_odd_and_grows_with_its_input(options):
    net, x = started(**options), pictures()
    y = net(x)
    assert y.abs().max() > 1e-3
    torch.testing.assert_close(net(-x), -y)
    torch.testing.assert_close(net(2.5 * x), 2.5 * y)
    assert not net(0 * x).any()


@NETS
@torch.no_grad()
def test_it_is_linear_but_for_the_pooling_of_the_stem(options):
    net = started(**options)
    x, z = pictures().split(1)
    assert not torch.allclose(net(x + z), net(x) + net(z)), "maxima aren't linear"
    net.encoder.maxpool = nn.AvgPool2d(3, 2, 1)
    torch.testing.assert_close(net(x + z), net(x) + net(z))


@torch.no_grad()
def test_batch_normalisation_keeps_the_mirror_while_training():
    net = started().train()
    seen = []
    net.decoder.blocks[-1].conv2[1].register_forward_hook(lambda *arguments: seen.append(arguments[2].clone()))
    net(pictures(4))
    first, second = seen[0].chunk(2, 1)
    torch.testing.assert_close(first, -second)


@torch.no_grad()
def test_signals_keep_their_size():
    net = started("resnet34", normalisation="none")
    net.encoder.maxpool = nn.Identity()
    net.encoder.layer1.register_forward_hook(lambda _, inputs, output: sizes.append((inputs[0], output)))
    sizes = []
    net(pictures())
    (before, after), *_ = sizes
    mirrored = [(part.chunk(2, 1)[0] - part.chunk(2, 1)[1]).square().mean() for part in (before, after)]
    assert float(mirrored[1] / mirrored[0]) == pytest.approx(1, abs=0.5), "after six convolutions"


def test_the_encoder_starts_alike_with_every_skip():
    encoders = [started(skip=skip).encoder.state_dict() for skip in ("concat", "none")]
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])
    assert not torch.equal(encoders[0]["conv1.weight"], started(seed=1).encoder.conv1.weight)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["model.encoder=densenet121", "model.short_skips=false"], "a ResNet"),
        (["model.encoder=resnet18"], "an addition of what a ReLU has cut"),
        (["model.short_skips=false", "model.skip=attention"], "skip=concat, add, shuffled or none"),
        (["model.short_skips=false", "model.skip_scale=learned"], "another skip_scale than learned"),
        (["model.short_skips=false", "model.stem_skip=true"], "neither stem_skip nor match_parameters"),
    ],
    ids=str,
)
def test_where_it_is_not_defined_it_is_refused_with_the_reason(options, reason):
    given = ["data=synthetic", "model.weights=null", "model.initialisation=looks_linear", *options]
    with pytest.raises(UserError, match=reason):
        compose("train", Train, given)


def test_the_network_itself_refuses_as_well():
    with pytest.raises(ValueError, match="looks_linear is for short_skips=false"):
        SkipUnet("resnet18", weights=None, initialisation="looks_linear")
    with pytest.raises(ValueError, match="even numbers of channels"):
        SkipUnet(
            "resnet18",
            weights=None,
            short_skips=False,
            initialisation="looks_linear",
            decoder_channels=(16, 15, 8, 8, 8),
        )
