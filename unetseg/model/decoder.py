"""The decoder: five blocks that upsample, fuse a long skip and convolve twice; and widths of equal cost.

Legend: B batch, D, S, O channels of the deep path, the skip and the output, H x W resolution; blocks run from coarse
to fine, lists over levels from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.modules import Conv2dReLU
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.model.skips import FUSIONS

TOLERANCE = 0.01
"""Largest difference of a matched network's size, as a share of the size that it should have."""


class DecoderBlock(nn.Module):
    """Upsample to the resolution of the skip, fuse, convolve twice.

    Examples:
        >>> block = DecoderBlock(16, 8, 4, skip="concat", flow="both", gradient=1.0, normalisation="batch")
        >>> block(torch.zeros(2, 16, 8, 8), torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        skip: str,
        flow: str,
        gradient: float,
        normalisation: str,
    ):
        super().__init__()
        norm = {"batch": "batchnorm", "none": "identity"}[normalisation]
        self.fusion = FUSIONS[skip](in_channels, skip_channels, flow, gradient)
        self.conv1 = Conv2dReLU(self.fusion.out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.conv2 = Conv2dReLU(out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxhxw deep features and the encoder's BxSxHxW to BxOxHxW."""
        deep = F.interpolate(deep, size=skip.shape[-2:], mode="nearest")
        return self.conv2(self.conv1(self.fusion(deep, skip)))


class Decoder(nn.Module):
    """Five blocks from the deepest features up to the input's resolution; the last one has no skip.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 32].
        channels: widths of the blocks, coarsest first.
        skip: kind of each level's fusion, finest first.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".

    Examples:
        >>> decoder = Decoder([3, 8, 8, 16], [16, 8, 4], skip=["concat", "none"], flow=["both", "both"],
        ...                   gradient=[1.0, 1.0], normalisation="batch")
        >>> features = [torch.zeros(2, 3, 32, 32), torch.zeros(2, 8, 16, 16), torch.zeros(2, 8, 8, 8),
        ...             torch.zeros(2, 16, 4, 4)]
        >>> decoder(features).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        channels: Sequence[int],
        skip: Sequence[str],
        flow: Sequence[str],
        gradient: Sequence[float],
        normalisation: str,
    ):
        super().__init__()
        inputs = [encoder_channels[-1], *channels[:-1]]
        skips = [*reversed(encoder_channels[1:-1]), 0]
        kinds = [*reversed(skip), "none"]
        passes = [*zip(reversed(flow), reversed(gradient), strict=True), ("both", 1.0)]
        blocks = zip(inputs, skips, channels, kinds, passes, strict=True)
        self.blocks = nn.ModuleList(
            DecoderBlock(deep_width, skip_width, width, kind, let_through, factor, normalisation)
            for deep_width, skip_width, width, kind, (let_through, factor) in blocks
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the encoder's features, [input, stride 2, ..., stride 32], to BxOxHxW."""
        deep = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            deep = block(deep, skip)
        return deep


def matched_channels(
    encoder: nn.Module, channels: Sequence[int], skip: Sequence[str], normalisation: str, classes: int
) -> list[int]:
    """Return `channels`, scaled so that the network has as many parameters as with concat at every level.

    Args:
        encoder: the encoder, which both networks share.
        channels: the widths of concat's decoder, coarsest first.
        skip: kind of each level's fusion, finest first.
        normalisation: "batch" or "none".
        classes: output channels of the head.

    Raises:
        ValueError: no widths come within TOLERANCE of that number.
    """
    encoder_channels: Sequence[int] = encoder.out_channels  # type: ignore[assignment]
    shared = sum(p.numel() for p in encoder.parameters())

    def size(widths: Sequence[int], kinds: Sequence[str]) -> int:
        with torch.device("meta"):
            parts = (
                Decoder(encoder_channels, widths, kinds, ["both"] * len(kinds), [1.0] * len(kinds), normalisation),
                SegmentationHead(widths[-1], classes, kernel_size=3),
            )
        return shared + sum(p.numel() for part in parts for p in part.parameters())

    wanted = size(channels, ["concat"] * len(skip))
    low, high = 0.1, 10.0
    for _ in range(20):  # bisection, as the size grows with the scale
        scale = (low * high) ** 0.5
        widths = [max(1, round(scale * width)) for width in channels]
        parameters = size(widths, skip)
        if parameters == wanted:
            break
        low, high = (scale, high) if parameters < wanted else (low, scale)
    if abs(parameters - wanted) > TOLERANCE * wanted:
        raise ValueError(f"no decoder widths give {wanted} parameters: the nearest, {widths}, give {parameters}")
    return widths
