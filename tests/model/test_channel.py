"""UCTransNet's decoder: against the paper's formulas head by head, and what it makes of any size and width."""

import pytest
import torch
from torch.nn import functional as F

from unetseg.errors import UserError
from unetseg.model import SkipUnet
from unetseg.model.channel import HEADS, ChannelDecoder, Embedding, Reconstruction

WIDTHS = [3, 64, 96, 300, 8, 10]
TOKENS = [64, 96, 256, 8]  # at most 64, 128, 256 and 512


def drawn(decoder):
    """Return the decoder in float64 and eval mode, none of whose numbers is that of the start."""
    for tensor in decoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(std=tensor[0].numel() ** -0.5)
    return decoder.double().eval()


def features(side):
    return [torch.randn(2, width, side >> i, side >> i, dtype=torch.float64) for i, width in enumerate(WIDTHS)]


def layer_norm(tokens, norm):
    mean, var = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
    return (tokens - mean) / torch.sqrt(var + 1e-6) * norm.weight + norm.bias


def instance_norm(scores):
    """Return the normalised scores of each picture and head."""
    return (scores - scores.mean()) / torch.sqrt(scores.var(correction=0) + 1e-5)


def conv_norm(x, layer):
    """Return a convolution, batch normalisation and ReLU in eval mode."""
    conv, norm = layer[0], layer[1]
    x = F.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return ((x - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).relu()


def expected(decoder, given):
    """Return what the paper's formulas make of features without a remainder, head by head."""
    size = given[-1].shape[-1]
    tokens = []
    for level, embedding in enumerate(decoder.embeddings):
        patch, own = 16 >> level, given[level + 1]
        squares = own.unfold(2, patch, patch).unfold(3, patch, patch)  # B x C x h x w x patch x patch
        found = torch.einsum("bchwyx,tcyx->bthw", squares, embedding.squares.weight)
        found = found + embedding.squares.bias.view(1, -1, 1, 1)
        found = found + F.interpolate(embedding.positions, size=(size, size), mode="bilinear")
        tokens.append(found.flatten(2).transpose(1, 2))
    for layer in decoder.layers:
        joint = layer_norm(torch.cat(tokens, 2), layer.norm)
        together = joint.shape[-1]
        keys, values = (
            [joint @ part.weight[head * together : (head + 1) * together].T for head in range(HEADS)]
            for part in (layer.key, layer.value)
        )
        for level, own in enumerate(layer.levels):
            normed, width = layer_norm(tokens[level], own.norm), tokens[level].shape[-1]
            contexts = []
            for head in range(HEADS):
                query = normed @ own.query.weight[head * width : (head + 1) * width].T
                scores = query.transpose(1, 2) @ keys[head] / together**0.5  # channels by channels
                weights = torch.stack([instance_norm(of_picture).softmax(-1) for of_picture in scores])
                contexts.append((weights @ values[head].transpose(1, 2)).transpose(1, 2))
            updated = tokens[level] + (sum(contexts) / HEADS) @ own.out.weight.T
            _, inner, _, outer = own.perceptron
            hidden = layer_norm(updated, own.perceptron[0]) @ inner.weight.T + inner.bias
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
            tokens[level] = updated + hidden @ outer.weight.T + outer.bias
    deep = given[-1]
    for level in (3, 2, 1, 0):
        own, reconstruction = given[level + 1], decoder.reconstructions[level]
        square = layer_norm(tokens[level], reconstruction.norm).transpose(1, 2).unflatten(2, (size, size))
        enlarged = square.repeat_interleave(16 >> level, 2).repeat_interleave(16 >> level, 3)
        skip = own + conv_norm(enlarged, reconstruction.conv)  # the paper enlarges first
        deep = deep.repeat_interleave(2, 2).repeat_interleave(2, 3)
        block = decoder.blocks[3 - level]
        gate = block.fusion.of_skip(skip.mean((2, 3))) + block.fusion.of_deep(deep.mean((2, 3)))
        gated = (skip * torch.sigmoid(gate / 2)[:, :, None, None]).relu()
        deep = conv_norm(conv_norm(torch.cat([deep, gated], 1), block.conv1), block.conv2)
    last = decoder.blocks[4]
    return conv_norm(conv_norm(deep.repeat_interleave(2, 2).repeat_interleave(2, 3), last.conv1), last.conv2)


def test_it_is_that_of_the_paper_written_out():
    torch.manual_seed(0)
    decoder = drawn(ChannelDecoder(WIDTHS, [12, 9, 7, 5, 4], ["both"] * 4, [1.0] * 4, "batch"))
    assert [embedding.squares.out_channels for embedding in decoder.embeddings] == TOKENS
    given = features(64)
    with torch.no_grad():
        torch.testing.assert_close(decoder(given), expected(decoder, given), rtol=1e-9, atol=1e-9)


def authors_size(widths, below, channels):
    """Return the weights of the authors' CTrans.py and CCA, without the convolutions of their decoder."""
    together, count = sum(widths), 0
    for level, width in enumerate(widths):
        count += width * width * (16 >> level) ** 2 + width + 14 * 14 * width  # squares and positions
        count += 4 * (2 * width + 4 * width**2 + width**2)  # four layers: norm, four queries, out
        count += 4 * (2 * width + 4 * width**2 + 4 * width + 4 * width**2 + width)  # norm, perceptron
        count += 2 * width + width**2 + width + 2 * width  # last norm, reconstruction and its bias and norm
    count += 4 * (2 * together + 2 * 4 * together**2)  # norm, four keys and values
    for width, deep in zip(reversed(widths), [below, *channels], strict=True):
        count += width**2 + width + deep * width + width  # the gate
    return count


def test_it_has_the_size_of_the_authors_code():
    widths, channels = [64, 128, 256, 512], [256, 128, 64, 64, 16]
    decoder = ChannelDecoder([3, *widths, 512], channels, ["both"] * 4, [1.0] * 4, "batch")
    convolutions = [w for block in decoder.blocks for part in (block.conv1, block.conv2) for w in part.parameters()]
    found = sum(w.numel() for w in decoder.parameters()) - sum(w.numel() for w in convolutions)
    theirs = authors_size(widths, 512, channels[:3])
    assert theirs - found == sum(widths), "their reconstructions have biases, which batch normalisation takes away"


@pytest.mark.parametrize("side", [(4, 3), (5, 4)], ids=["rounded up", "rounded down"])
def test_squares_beyond_the_features_are_zeros_and_features_beyond_the_squares_are_left_out(side):
    embedding = Embedding(1, 1, patch=4)
    embedding.squares.weight.data.fill_(1)
    embedding.squares.bias.data.zero_()
    tokens = embedding(torch.ones(1, 1, 14, 17), size=(4, 4)).view(4, 4)
    assert tokens[0, 0] == 16
    assert tokens[3, 0] == 4 * 2, "two of four rows are there"
    assert tokens[0, 3] == 16, "the 17th column is left out"


def test_features_come_back_at_the_levels_size():
    reconstruction = Reconstruction(3, 5, "none")
    tokens = torch.randn(1, 6, 3)
    found = reconstruction(tokens, grid=(2, 3), size=(8, 12))
    assert found.shape == (1, 5, 8, 12)
    assert torch.equal(found[:, :, :4, :4], found[:, :, :1, :1].expand(-1, -1, 4, 4))


@pytest.mark.parametrize("absent", [0, 2])
def test_a_level_of_no_channels_takes_no_part(absent):
    widths = [8, 8, 8, 8]
    widths[absent] = 0
    decoder = ChannelDecoder([3, *widths, 16], [16, 16, 8, 8, 4], ["both"] * 4, [1.0] * 4, "none")
    given = [torch.randn(2, width, 64 >> i, 64 >> i) for i, width in enumerate([3, *widths, 16])]
    decoder(given).sum().backward()
    assert all(weight.numel() and weight.grad is not None for weight in decoder.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in decoder.modules())
    assert sorted(id(w) for part in decoder.by_level for m in part for w in m.parameters()) == sorted(
        id(w) for w in decoder.parameters()
    )


def test_every_level_hears_every_other_by_the_tokens_alone():
    decoder = drawn(ChannelDecoder(WIDTHS, [12, 9, 7, 5, 4], ["both"] * 4, [1.0] * 4, "batch"))
    read = []
    decoder.reconstructions[3].register_forward_hook(lambda module, inputs, output: read.append(output))
    given = features(64)
    changed = [*given]
    changed[1] = torch.randn_like(given[1])
    with torch.no_grad():
        decoder(given), decoder(changed)
    assert not torch.equal(*read), "level 4's features are changed by those of level 1"


def test_a_size_out_of_reach_is_told_to_the_user():
    with pytest.raises(UserError, match="no decoder widths give") as error, torch.device("meta"):
        SkipUnet("densenet161", skip="channel", match_parameters=True, weights=None)
    assert "match_parameters=false" in str(error.value)
