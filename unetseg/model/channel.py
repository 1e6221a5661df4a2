"""The decoder of UCTransNet: the levels' channels attend to each other before they are fused.

The paper is Wang et al. 2022, https://arxiv.org/abs/2109.04335. Sizes that it leaves open are those of the authors'
code, https://github.com/McGregorWwww/UCTransNet.

Legend: B batch, level l = 1 ... L has C channels and stride 2^l, T channels in its tokens, K in those of all levels
together, N = h x w tokens, A = HEADS; lists over levels are written finest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.model.decoder import DecoderBlock
from unetseg.model.skips import NORMS, Concat, NoSkip, passages

HEADS = 4
LAYERS = 4
EXPANSION = 4
"""What the width of a level's tokens is multiplied with inside its perceptron."""
WIDTH = 64
"""Channels of the finest level's tokens, twice as many at each coarser one: the widths of the authors' encoder."""
GRID = 14
"""Learned positions in a row: the authors train at 224 px, with tokens of 16."""
EPS = 1e-6
"""Of the normalisations of tokens, as in the authors' code."""


class Embedding(nn.Module):
    """Tokens from squares of a level's features, each with what is learned for its position.

    The positions are interpolated bilinearly to the picture's number of tokens. A last square is filled with zeros
    where the encoder has rounded up, and left out where it has rounded down.

    Examples:
        >>> Embedding(8, 6, patch=4)(torch.zeros(2, 8, 15, 12), size=(4, 3)).shape
        torch.Size([2, 12, 6])
    """

    def __init__(self, channels: int, token_channels: int, patch: int):
        super().__init__()
        self.patch = patch
        self.squares = nn.Conv2d(channels, token_channels, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, token_channels, GRID, GRID))

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Map BxCxHxW to BxNxT, N the product of `size`, h and w."""
        height, width = (self.patch * length for length in size)
        frame = (0, width - features.shape[-1], 0, height - features.shape[-2])
        positions = F.interpolate(self.positions, size=list(size), mode="bilinear", align_corners=False)
        return (self.squares(F.pad(features, frame)) + positions).flatten(2).transpose(1, 2)


class LevelAttention(nn.Module):
    """A level's part of a layer: its channels attend to those of all levels, then a perceptron; both add to the tokens.

    The scores of channels with channels, TxK, are sums over tokens; they are normalised (instance normalisation) before
    the softmax. Heads are averaged.

    Examples:
        >>> key = value = torch.zeros(2, HEADS, 12, 20)
        >>> LevelAttention(6)(torch.zeros(2, 12, 6), key, value).shape
        torch.Size([2, 12, 6])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.query = nn.Linear(channels, HEADS * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels, eps=EPS),
            nn.Linear(channels, EXPANSION * channels),
            nn.GELU(),
            nn.Linear(EXPANSION * channels, channels),
        )

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map BxNxT, and keys and values BxAxNxK, to BxNxT."""
        query = _by_head(self.query(self.norm(tokens)))
        scores = query.transpose(2, 3) @ key / math.sqrt(key.shape[-1])
        weights = F.layer_norm(scores, scores.shape[-2:]).softmax(-1)
        context = (weights @ value.transpose(2, 3)).mean(1)
        tokens = tokens + self.out(context.transpose(1, 2))
        return tokens + self.perceptron(tokens)


class Layer(nn.Module):
    """A layer of channel-wise cross attention between the levels' tokens.

    Examples:
        >>> [tokens.shape[-1] for tokens in Layer([6, 14])([torch.zeros(2, 12, 6), torch.zeros(2, 12, 14)])]
        [6, 14]
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        together = sum(channels)
        self.norm = nn.LayerNorm(together, eps=EPS)
        self.key = nn.Linear(together, HEADS * together, bias=False)
        self.value = nn.Linear(together, HEADS * together, bias=False)
        self.levels = nn.ModuleList(LevelAttention(width) for width in channels)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Map each level's BxNxT to the like."""
        joint = self.norm(torch.cat([*tokens], 2))
        key, value = _by_head(self.key(joint)), _by_head(self.value(joint))
        return [level(own, key, value) for level, own in zip(self.levels, tokens, strict=True)]


class Reconstruction(nn.Module):
    """Features of a level from its tokens: normalised, a 1x1 convolution with normalisation and ReLU, then enlarged.

    The paper enlarges first, which gives the same features where the sides are whole multiples.

    Examples:
        >>> Reconstruction(6, 8, "batch")(torch.zeros(2, 12, 6), grid=(4, 3), size=(15, 12)).shape
        torch.Size([2, 8, 15, 12])
    """

    def __init__(self, token_channels: int, channels: int, normalisation: str):
        super().__init__()
        self.norm = nn.LayerNorm(token_channels, eps=EPS)
        self.conv = Conv2dReLU(token_channels, channels, kernel_size=1, use_norm=NORMS[normalisation])

    def forward(self, tokens: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
        """Map BxNxT, N = h x w of `grid`, to BxCxHxW of `size`."""
        features = self.conv(self.norm(tokens).transpose(1, 2).unflatten(2, tuple(grid)))
        return F.interpolate(features, size=list(size), mode="nearest")


class ChannelGate(Concat):
    """The skip's channels times gates in 0..1, which the means of both inputs' channels give, a ReLU, then concat.

    sigmoid((W_s mean(s) + W_x mean(x)) / 2), with biases.

    Examples:
        >>> ChannelGate(8, 4)(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def __init__(self, deep_channels: int, skip_channels: int):
        super().__init__(deep_channels, skip_channels)
        self.of_skip = nn.Linear(skip_channels, skip_channels)
        self.of_deep = nn.Linear(deep_channels, skip_channels)

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        gate = torch.sigmoid((self.of_skip(skip.mean((2, 3))) + self.of_deep(deep.mean((2, 3)))) / 2)
        return super().fuse(deep, torch.relu(skip * gate[:, :, None, None]))


class ChannelDecoder(nn.Module):
    """The decoder of UCTransNet (Wang et al. 2022): channels attend to those of all levels, and are gated where fused.

    Level l's features give tokens by squares of 2^(L + 1 - l) pixels (16, 8, 4, 2), so that all levels have as many,
    one for each pixel of the bottleneck. LAYERS layers let every level's channels attend to the channels of all levels;
    what they give is added to the level's features, and fused with the deep path through a channel gate. A level of 0
    channels takes no part.

    Heads, layers and operations are the published ones. Tokens are as wide as the level's features, but not wider than
    the published ones (WIDTH): resnet50's would make a network of 234 million parameters. Left out is the dropout, of
    0.1, which no other kind of skip has. The paper's positions are for pictures of one size; here they are
    interpolated. normalisation="none" leaves out the batch normalisations; those of tokens and scores are part of the
    attention, and stay. No level has the flow "backward", see `names.NOT_WITHHELD`.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 2^(L + 1)].
        channels: widths of the blocks, coarsest first.
        flow: what each level's long skip lets through, finest first: both or forward.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        scale: what the widths of the tokens are multiplied with, for networks of equal size.

    Attributes:
        node_channels: widths of the features that deep supervision reads: the blocks but the last one, coarsest first.

    Examples:
        >>> decoder = ChannelDecoder([3, 8, 8, 16], [16, 8, 4], ["both", "both"], [1.0, 1.0], "batch")
        >>> features = [torch.zeros(2, 3, 32, 32), torch.zeros(2, 8, 16, 16), torch.zeros(2, 8, 8, 8),
        ...             torch.zeros(2, 16, 4, 4)]
        >>> decoder(features).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        channels: Sequence[int],
        flow: Sequence[str],
        gradient: Sequence[float],
        normalisation: str,
        scale: float = 1.0,
    ):
        super().__init__()
        widths = [*encoder_channels[1:-1]]
        self.node_channels = [*channels[:-1]]
        self.levels = [level for level, width in enumerate(widths) if width]  # those with channels, counted from 0
        own = [widths[level] for level in self.levels]
        published = [WIDTH * 2**level for level in self.levels]
        tokens = [max(1, round(scale * min(pair))) for pair in zip(own, published, strict=True)]
        patches = [2 ** (len(widths) - level) for level in self.levels]
        self.embeddings = nn.ModuleList(map(Embedding, own, tokens, patches))
        self.layers = nn.ModuleList(Layer(tokens) for _ in range(LAYERS))
        self.reconstructions = nn.ModuleList(
            Reconstruction(narrow, width, normalisation) for narrow, width in zip(tokens, own, strict=True)
        )
        self.blocks = nn.ModuleList()
        inputs = [encoder_channels[-1], *channels[:-1]]
        for deep, skip, width in zip(inputs, [*reversed(widths), 0], channels, strict=True):
            fusion = ChannelGate(deep, skip) if skip else NoSkip(deep, skip)
            self.blocks.append(DecoderBlock(fusion, width, normalisation))
        self.fusions = passages(encoder_channels, flow, gradient)

    @property
    def by_level(self) -> list[list[nn.Module]]:
        """The layers of each level, coarsest first, and the last block; what all levels share is with the coarsest."""
        layers = [cast(Layer, layer) for layer in self.layers]
        parts: list[list[nn.Module]] = [[block] for block in self.blocks]
        for position, level in enumerate(self.levels):
            attentions = [layer.levels[position] for layer in layers]
            parts[len(self.fusions) - 1 - level] += [
                self.embeddings[position],
                *attentions,
                self.reconstructions[position],
            ]
        for level, way in enumerate(self.fusions):
            parts[len(self.fusions) - 1 - level].append(way)
        parts[0] += [part for layer in layers for part in (layer.norm, layer.key, layer.value)]
        return parts

    def forward(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ...], to BxOxHxW.

        With `with_nodes` also return what deep supervision reads.
        """
        skips = [fusion(skip, skip) for fusion, skip in zip(self.fusions, features[1:-1], strict=True)]
        grid = features[-1].shape[-2:]
        embedded = zip(self.embeddings, self.levels, strict=True)
        tokens = [embedding(skips[level], grid) for embedding, level in embedded]
        for layer in self.layers:
            tokens = layer(tokens)
        for level, reconstruction, own in zip(self.levels, self.reconstructions, tokens, strict=True):
            skips[level] = skips[level] + reconstruction(own, grid, skips[level].shape[-2:])
        deep, nodes = features[-1], []
        for block, skip in zip(self.blocks, [*reversed(skips), features[0]], strict=True):
            deep = block(deep, skip)
            if with_nodes:
                nodes.append(deep)
        return (deep, nodes[:-1]) if with_nodes else deep


def _by_head(projected: Tensor) -> Tensor:
    """Map BxNx(A C) to BxAxNxC."""
    return projected.unflatten(2, (HEADS, -1)).transpose(1, 2)
