"""The stages of an encoder: each parameter belongs to the first feature that it has a part in."""

import pytest
import segmentation_models_pytorch as smp
import torch
from nets import Scale, numbers, one_thread, step  # noqa: F401 (a fixture that every test uses)
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import nn

from unetseg.gradients import blocks_of
from unetseg.gradients.blocks import stages_of

STAGES = [f"encoder{number}" for number in range(1, 5)]
ONE_OF_EACH_CLASS = list({entry["encoder"]: name for name, entry in reversed(encoders.items())}.values())


def ids(weights) -> list[int]:
    return [id(weight) for weight in weights]


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_every_encoder_of_smp_has_stages_and_each_parameter_is_in_one(name):
    encoder = get_encoder(name, weights=None)
    stages = stages_of(encoder)
    # mit has no feature of stride 2; the last stage of VGG is a pooling
    wanted = [stage for stage in ("stem", *STAGES) if (name[:3], stage) not in (("mit", "stem"), ("vgg", "encoder4"))]
    assert [stage for stage in stages if stage != "unused"] == wanted
    assert sorted(ids(w for weights in stages.values() for w in weights)) == sorted(ids(encoder.parameters()))


def test_the_stages_are_those_whose_weights_a_feature_has_a_gradient_for():
    """By numbers, and not by the graph: what feature k reaches and no earlier one does is stage k."""
    encoder = get_encoder("efficientnet-b0", weights=None).eval()
    features = encoder(torch.randn(1, 3, 64, 64))
    names, earlier, wanted = [name for name, _ in encoder.named_parameters()], set(), {}
    for stage, feature in zip(("stem", *STAGES), features[1:], strict=True):
        gradients = torch.autograd.grad(feature.sum(), encoder.parameters(), retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        wanted[stage], earlier = reached - earlier, earlier | reached
    wanted["unused"] = set(names) - earlier
    name_of = {id(weight): name for name, weight in encoder.named_parameters()}
    assert {stage: {name_of[id(w)] for w in weights} for stage, weights in stages_of(encoder).items()} == wanted
    assert wanted["unused"] == {"_conv_head.weight", "_bn1.weight", "_bn1.bias"}


def test_a_resnets_stages_are_its_layers():
    net = smp.Unet("resnet18", encoder_weights=None)
    by_name, by_graph = blocks_of(net), stages_of(net.encoder)
    assert {stage: ids(weights) for stage, weights in by_graph.items()} == {
        stage: ids(by_name[stage]) for stage in ("stem", *STAGES)
    }


def test_the_gradient_of_another_encoder_is_read_by_stage():
    torch.manual_seed(0)
    net = smp.UnetPlusPlus("efficientnet-b0", encoder_weights=None).eval()
    found = numbers(step(net, torch.randn(2, 3, 32, 32), routes=True))
    assert [block for block, name in found if name == "rms"] == ["stem", *STAGES, "unused", "decoder", "head"]
    shares = [sum(v for (b, n), v in found.items() if b == block and n.startswith("share_")) for block in STAGES]
    assert shares == pytest.approx([1] * 4)
    assert (found["unused", "rms"], found["unused", "zero"]) == (0, 1)


def test_convolutions_between_encoder_and_decoder_are_a_block_of_their_own():
    with torch.device("meta"):
        net = smp.Unet("vgg11", encoder_weights=None)
    blocks = blocks_of(net)
    assert list(blocks) == ["stem", *STAGES[:3], "centre", *(f"decoder{level}" for level in range(4, -1, -1)), "head"]
    assert ids(blocks["centre"]) == ids(net.decoder.center.parameters())


def test_telling_the_stages_changes_nothing_and_sees_frozen_weights():
    encoder = get_encoder("mobilenet_v2", weights=None).requires_grad_(False).train()
    encoder.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    assert list(stages_of(encoder)) == ["stem", *STAGES]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_an_encoder_whose_stages_cannot_be_told_is_one_block_and_said_to_be():
    class NeedsNumbers(nn.Module):
        out_channels = [3, 3, 3]

        def __init__(self):
            super().__init__()
            self.first, self.second = Scale(1), Scale(2)

        def forward(self, images):
            if images.sum() > 0:
                images = -images
            return [images, self.first(images), self.second(self.first(images))]

    encoder = NeedsNumbers()
    with pytest.warns(UserWarning, match="NeedsNumbers can't be told .*: it is read as one block"):
        stages = stages_of(encoder)
    assert {stage: len(weights) for stage, weights in stages.items()} == {"encoder": 2}
    assert stages_of(encoder).keys() == {"encoder"}, "it is said once"
