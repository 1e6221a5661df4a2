"""Decoders in which a level's features go elsewhere than to its own block, and the choice of a decoder.

They are U-Net++, U-Net 3+, and the U-Net's own decoder with its levels permuted.

The features of a level enter by a `Passage`, once, wherever the decoder uses them: what a level's long skip lets
through, and its lesion, is all that the decoder gets of these features.

Legend: B batch, O output channels, H x W resolution; level l = 1 ... L has stride 2^l; lists over levels are written
finest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.errors import UserError
from unetseg.model.channel import ChannelDecoder
from unetseg.model.decoder import Convolutions, Decoder
from unetseg.model.own import own_decoder
from unetseg.model.skips import NORMS, of_width, passages


class NestedDecoder(nn.Module):
    """The decoder of U-Net++ (Zhou et al. 2018), with the names, widths and operations of smp's UnetPlusPlus.

    Node (l, j) sees the node below it, (l + 1, j - 1), upsampled, and all nodes of its own level before it: the
    encoder's features (l, 0), (l, 1), ..., (l, j - 1). The last node of a level is as wide as the U-Net's block there,
    the others as the encoder's features; where these have 0 channels the level has its last node alone.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 2^(L + 1)].
        channels: widths of the U-Net's blocks, coarsest first.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        scale: what the widths of the nodes before a level's last one are multiplied with, for networks of equal size.

    Attributes:
        node_channels: widths of what deep supervision reads, the nodes of the finest level as in the paper.

    Examples:
        >>> decoder = NestedDecoder([3, 8, 8, 16], [16, 8, 4], ["both", "both"], [1.0, 1.0], "batch")
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
        skips = [*reversed(encoder_channels[1:-1])]  # coarsest first, as smp counts
        inputs = [encoder_channels[-1], *channels[:-1]]
        inner = [max(1, round(scale * width)) if width else 0 for width in skips]
        self.depth = len(skips)
        self.blocks = nn.ModuleDict()
        for layer, width in enumerate(skips):
            for begin in range(layer + 1):
                before = inputs[layer] if begin == 0 else skips[layer - 1] if begin == layer else inner[layer - 1]
                sees = before + inner[layer] * (layer - begin) + width
                own = channels[layer] if begin == 0 else inner[layer]
                if own:
                    self.blocks[f"x_{begin}_{layer}"] = Convolutions(sees, own, normalisation)
        self.blocks[f"x_0_{self.depth}"] = Convolutions(inputs[-1], channels[-1], normalisation)
        self.fusions = passages(encoder_channels, flow, gradient)
        self.node_channels = [*[inner[-1]] * (self.depth - 1), channels[-2]]

    @property
    def by_level(self) -> list[list[nn.Module]]:
        """The nodes of each level and its way in, coarsest first, and the block of the input's resolution."""
        names = ([f"x_{begin}_{layer}" for begin in range(layer + 1)] for layer in range(self.depth))
        nodes = [[self.blocks[name] for name in of_level if name in self.blocks] for of_level in names]
        levels = [[*own, way] for own, way in zip(nodes, reversed([*self.fusions]), strict=True)]
        return [*levels, [self.blocks[f"x_0_{self.depth}"]]]

    def forward(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ...], to BxOxHxW.

        With `with_nodes` also return what deep supervision reads.
        """
        levels = [fusion(skip, skip) for fusion, skip in zip(self.fusions, features[1:-1], strict=True)]
        below = [features[-1], *reversed(levels)]  # coarsest first
        nodes: dict[tuple[int, int], Tensor] = {}
        for length in range(self.depth):
            for begin in range(self.depth - length):
                layer, name = begin + length, f"x_{begin}_{begin + length}"
                if name not in self.blocks:  # a level of 0 channels
                    nodes[begin, layer] = below[layer + 1]
                    continue
                deep = below[begin] if length == 0 else nodes[begin, layer - 1]
                own = [*(nodes[other, layer] for other in range(begin + 1, layer + 1)), below[layer + 1]]
                deep = F.interpolate(deep, size=own[0].shape[-2:], mode="nearest")
                nodes[begin, layer] = self.blocks[name](torch.cat([deep, torch.cat(own, 1)], 1))
        deep = F.interpolate(nodes[0, self.depth - 1], size=features[0].shape[-2:], mode="nearest")
        result = self.blocks[f"x_0_{self.depth}"](deep)
        finest = self.depth - 1
        return (result, [nodes[begin, finest] for begin in reversed(range(self.depth))]) if with_nodes else result


class FullDecoder(nn.Module):
    """The decoder of U-Net 3+ (Huang et al. 2020): each level sees every level of the encoder or of the decoder.

    The node of level l concatenates, each after a 3x3 convolution to `source_channels`: the encoder's levels 1 ... l,
    the finer ones max-pooled to its resolution; the decoder's nodes l + 1 ... L and the bottleneck, upsampled
    bilinearly. A 3x3 convolution over all of them gives the node. A level of the encoder with 0 channels is no source.
    A last block, as the U-Net's, upsamples level 1 to the input's resolution; the paper's encoder has no stride there,
    and needs none.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 2^(L + 1)].
        channels: widths of the nodes, coarsest first, and of the last block.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        source_channels: of each node's sources, coarsest first; None: a quarter of its width. The paper has 64, and
            nodes of 320.

    Attributes:
        node_channels: widths of the features that deep supervision reads: the bottleneck and each node, coarsest first,
            as in the paper.

    Examples:
        >>> decoder = FullDecoder([3, 8, 8, 16], [16, 8, 4], ["both", "both"], [1.0, 1.0], "batch")
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
        source_channels: Sequence[int] | None = None,
    ):
        super().__init__()
        norm, widths = NORMS[normalisation], [*encoder_channels[1:-1]]
        depth = len(widths)
        nodes = [*reversed(channels[:depth])]  # finest first, from here on
        sources = [*reversed(source_channels)] if source_channels else [max(1, width // 4) for width in nodes]
        self.sources, self.merges = nn.ModuleList(), nn.ModuleList()
        for level, (width, source) in enumerate(zip(nodes, sources, strict=True)):
            inputs = [*filter(None, widths[: level + 1]), *nodes[level + 1 :], encoder_channels[-1]]
            self.sources.append(
                nn.ModuleList(Conv2dReLU(own, source, kernel_size=3, padding=1, use_norm=norm) for own in inputs)
            )
            self.merges.append(Conv2dReLU(source * len(inputs), width, kernel_size=3, padding=1, use_norm=norm))
        self.last = Convolutions(nodes[0], channels[-1], normalisation)
        self.node_channels = [encoder_channels[-1], *channels[:depth]]
        self.fusions = passages(encoder_channels, flow, gradient)

    @property
    def by_level(self) -> list[list[nn.Module]]:
        """The layers of each level's node and its way in, coarsest first, and the block of the input's resolution."""
        nodes = [list(parts) for parts in zip(self.sources, self.merges, self.fusions, strict=True)]
        return [*reversed(nodes), [self.last]]

    def forward(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ...], to BxOxHxW.

        With `with_nodes` also return what deep supervision reads.
        """
        levels = [fusion(skip, skip) for fusion, skip in zip(self.fusions, features[1:-1], strict=True)]
        deeper = [features[-1]]  # the nodes that are there already, finest first, and the bottleneck
        for level in reversed(range(len(levels))):
            size = levels[level].shape[-2:]
            finer = [_pooled(own, 2 ** (level - k), size) for k, own in enumerate(levels[:level]) if own.shape[1]]
            upsampled = [F.interpolate(own, size=size, mode="bilinear", align_corners=False) for own in deeper]
            inputs = [*finer, *(own for own in levels[level : level + 1] if own.shape[1]), *upsampled]
            layers = cast(nn.ModuleList, self.sources[level])
            sources = [layer(own) for layer, own in zip(layers, inputs, strict=True)]
            deeper.insert(0, self.merges[level](torch.cat(sources, 1)))
        result = self.last(F.interpolate(deeper[0], size=features[0].shape[-2:], mode="nearest"))
        return (result, deeper[::-1]) if with_nodes else result


def _pooled(features: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Return the maxima of squares of factor x factor, as many as a coarser level has pixels.

    A last square is cut short where the encoder has rounded up, and left out where it has rounded down.
    """
    height, width = (factor * length for length in size)
    frame = (0, width - features.shape[-1], 0, height - features.shape[-2])
    return F.max_pool2d(F.pad(features, frame, value=-math.inf), factor)


class PermutedDecoder(Decoder):
    """The U-Net's decoder with the levels' features exchanged: the finest goes to the coarsest block, and so on.

    It is concat in all but what it concatenates: level l's block gets the features of level L + 1 - l, in its own
    resolution and width. That order has no fixed point for an even L. Finer features are max-pooled, as in U-Net 3+;
    coarser ones are enlarged by nearest neighbours, as the U-Net's deep path is. Channels are repeated, or cut to the
    first ones, as in the placebo. So the decoder has exactly the parameters of concat, and information of the encoder
    that is not that of its resolution; what is cut off reaches it by the deep path only. That a U-Net with permuted
    skips may segment as well as the usual one is said for task-adaptive mixtures of skips (UTANet, AAAI 2025); which
    permutations it tried we don't know, and this one is our own choice.

    A level's flow, dose and scale are those of its own features, wherever they go.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 2^(L + 1)].
        channels: widths of the blocks, coarsest first.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        centre: as Decoder's.

    Raises:
        UserError: a level has no features that could go elsewhere.

    Examples:
        >>> decoder = PermutedDecoder([3, 8, 4, 16], [16, 8, 4], ["both", "both"], [1.0, 1.0], "batch")
        >>> features = [torch.zeros(2, 3, 32, 32), torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 8, 8),
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
        centre: bool = False,
    ):
        widths = [*encoder_channels[1:-1]]
        depth = len(widths)
        if not all(widths) or depth % 2:
            raise UserError(
                f"skip=permuted with an encoder whose levels have {', '.join(map(str, widths))} channels",
                accepted="an encoder with features at every level, so that each can go to another one",
                advice="model.encoder=resnet34",
            )
        whole = ["concat"] * depth, ["both"] * depth, [1.0] * depth
        super().__init__(encoder_channels, channels, *whole, normalisation, centre=centre)
        self.widths = widths
        self.ways = passages(encoder_channels, flow, gradient)

    @property
    def fusions(self) -> list[nn.Module]:
        """The way of each level's features into the decoder, finest first."""
        return [*self.ways]

    @property
    def by_level(self) -> list[list[nn.Module]]:
        """The block of each level and the way of its own features, coarsest first, and the last block."""
        blocks = [[block, way] for block, way in zip(self.blocks[:-1], reversed([*self.ways]), strict=True)]
        return [*blocks, [self.blocks[-1]]]

    def forward(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ...], to BxOxHxW.

        With `with_nodes` also return what deep supervision reads.
        """
        levels = [way(skip, skip) for way, skip in zip(self.ways, features[1:-1], strict=True)]
        exchanged = []
        for level, (other, width) in enumerate(zip(reversed(levels), self.widths, strict=True)):
            size, source = levels[level].shape[-2:], len(levels) - 1 - level
            if source < level:
                other = _pooled(other, 2 ** (level - source), size)
            else:
                other = F.interpolate(other, size=size, mode="nearest")
            exchanged.append(of_width(other, width))
        return super().forward([features[0], *exchanged, features[-1]], with_nodes)


def make_decoder(
    encoder_channels: Sequence[int],
    channels: Sequence[int],
    skip: Sequence[str],
    flow: Sequence[str],
    gradient: Sequence[float],
    normalisation: str,
    scale: float = 1.0,
    stem_skip: bool = False,
    centre: bool = False,
    decoder: str | None = None,
) -> nn.Module:
    """Return the decoder of these skips, a kind a level, finest first.

    For networks of equal size, `scale` multiplies the widths of nested's inner nodes, of respath's paths and of
    channel's tokens. `stem_skip` and `centre` are of the U-Net's own decoder. `decoder` names a class of the user's own
    in the place of all these.
    """
    if decoder is not None:
        return own_decoder(decoder, encoder_channels, channels, skip, flow, gradient, normalisation)
    match skip[0]:
        case "nested":
            return NestedDecoder(encoder_channels, channels, flow, gradient, normalisation, scale)
        case "full":
            return FullDecoder(encoder_channels, channels, flow, gradient, normalisation)
        case "channel":
            return ChannelDecoder(encoder_channels, channels, flow, gradient, normalisation, scale)
        case "permuted":
            return PermutedDecoder(encoder_channels, channels, flow, gradient, normalisation, centre)
        case _:
            return Decoder(encoder_channels, channels, skip, flow, gradient, normalisation, scale, stem_skip, centre)
