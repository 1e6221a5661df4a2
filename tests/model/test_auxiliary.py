"""Auxiliary heads: each level's features predict the mask at its own resolution, and nothing else changes."""

import torch

from unetseg.model import Segmenter
from unetseg.model.auxiliary import AuxiliaryHeads

WIDTHS = [3, 8, 16, 32, 64, 128]


def test_each_level_that_a_long_skip_could_have_has_a_head_and_the_bottleneck_has_none():
    heads = AuxiliaryHeads(WIDTHS, classes=3)
    assert [tuple(head.weight.shape) for head in heads.heads] == [(3, width, 1, 1) for width in (8, 16, 32, 64)]
    assert all(not head.bias.any() for head in heads.heads)


def test_the_logits_are_those_of_the_level_enlarged_bilinearly():
    heads = AuxiliaryHeads([3, 1, 7], classes=1)
    heads.heads[0].weight.data.fill_(2)
    heads.heads[0].bias.data.fill_(1)
    features = torch.tensor([[[[0.0, 1.0]]]])  # 2 x + 1: 1 and 3 at the centres of two pixels each
    (logits,) = heads([torch.zeros(1, 3, 1, 4), features, torch.zeros(1, 7, 1, 1)], (1, 4))
    assert logits.flatten().tolist() == [1, 1.5, 2.5, 3]


def test_odd_sizes_and_reduced_precision_give_float32_logits_of_the_masks_size():
    model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
    heads = AuxiliaryHeads(model.net.encoder.out_channels, classes=1)
    images = torch.randint(0, 256, (1, 3, 61, 95), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        _, features, _ = model(images, with_features=True)
        found = heads(features, images.shape[-2:])
    assert [(x.shape, x.dtype) for x in found] == [((1, 1, 61, 95), torch.float32)] * 4


def test_with_features_the_logits_are_the_same_to_the_last_bit():
    model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    logits, features, nodes = model(images, with_features=True)
    assert torch.equal(logits, model(images))
    assert [f.shape[1] for f in features] == list(model.net.encoder.out_channels)
    assert [tuple(node.shape[1:]) for node in nodes] == [(256, 4, 4), (128, 8, 8), (64, 16, 16), (32, 32, 32)]


def test_the_encoder_gets_the_gradient_at_the_features_and_no_other():
    heads = AuxiliaryHeads([3, 2, 2], classes=1)
    encoded = torch.randn(1, 2, 4, 4, requires_grad=True)
    heads([torch.zeros(1, 3, 8, 8), encoded, torch.zeros(1, 2, 2, 2)], (8, 8))[0].sum().backward()
    weight = heads.heads[0].weight.detach().view(1, 2, 1, 1)
    assert torch.allclose(encoded.grad, 4 * weight.expand_as(encoded))  # four pixels of the mask to one of the level


def test_what_is_drawn_after_the_heads_is_the_same_as_without_them():
    torch.manual_seed(0)
    AuxiliaryHeads(WIDTHS, classes=1)
    with_heads = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), with_heads)
