"""The U-Net's decoder: five blocks that upsample, fuse a long skip and convolve twice.

Legend: B batch, D, S, O channels of the deep path, the skip and the output, H x W resolution; blocks run from coarse
to fine, lists over levels from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetCenterBlock
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.model.skips import FUSIONS

NORMS = {"batch": "batchnorm", "none": "identity"}
"""smp's names of the normalisations."""


class Convolutions(nn.Module):
    """Two 3x3 convolutions, each with its normalisation and ReLU, named as in smp's decoder blocks.

    Examples:
        >>> import torch
        >>> Convolutions(8, 4, "batch")(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(self, in_channels: int, out_channels: int, normalisation: str):
        super().__init__()
        norm = NORMS[normalisation]
        self.conv1 = Conv2dReLU(in_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.conv2 = Conv2dReLU(out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map BxDxHxW to BxOxHxW."""
        return self.conv2(self.conv1(features))


class DecoderBlock(nn.Module):
    """Upsample to the resolution of the skip, fuse, convolve twice.

    Examples:
        >>> import torch
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
        norm = NORMS[normalisation]
        self.fusion = FUSIONS[skip](in_channels, skip_channels, flow, gradient)
        self.conv1 = Conv2dReLU(self.fusion.out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.conv2 = Conv2dReLU(out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxhxw deep features and the encoder's BxSxHxW to BxOxHxW."""
        deep = F.interpolate(deep, size=skip.shape[-2:], mode="nearest")
        return self.conv2(self.conv1(self.fusion(deep, skip)))


class Decoder(nn.Module):
    """Five blocks from the deepest features up to the input's resolution; the last one has no skip.

    At a level of which an encoder has no features, 0 channels as a transformer's at stride 2, a skip of any kind is the
    concatenation with nothing, as in smp.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 32].
        channels: widths of the blocks, coarsest first.
        skip: kind of each level's fusion, finest first.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        centre: two convolutions on the deepest features before the blocks, which smp gives to VGG alone: its last stage
            is a pooling.

    Examples:
        >>> import torch
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
        centre: bool = False,
    ):
        super().__init__()
        inputs = [encoder_channels[-1], *channels[:-1]]
        skips = [*reversed(encoder_channels[1:-1]), 0]
        kinds = [kind if width else "concat" for kind, width in zip(reversed(skip), skips[:-1], strict=True)]
        kinds.append("none")
        passes = [*zip(reversed(flow), reversed(gradient), strict=True), ("both", 1.0)]
        blocks = zip(inputs, skips, channels, kinds, passes, strict=True)
        deepest, norm = encoder_channels[-1], NORMS[normalisation]
        self.center = UnetCenterBlock(deepest, deepest, norm) if centre else nn.Identity()  # smp's name
        self.blocks = nn.ModuleList(
            DecoderBlock(deep_width, skip_width, width, kind, let_through, factor, normalisation)
            for deep_width, skip_width, width, kind, (let_through, factor) in blocks
        )

    @property
    def fusions(self) -> list[nn.Module]:
        """The fusion of each level, finest first."""
        return [block.fusion for block in reversed(self.blocks[:-1])]  # type: ignore[misc]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the encoder's features, [input, stride 2, ..., stride 32], to BxOxHxW."""
        deep = self.center(features[-1])
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            deep = block(deep, skip)
        return deep
