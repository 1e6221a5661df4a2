"""SkipUnet: an encoder of segmentation-models-pytorch (smp), a U-Net decoder with switchable long skips, a head.

Legend: B batch, C input channels, K output channels, H x W the input's resolution (any, also odd), L = 4 levels;
level l = 1 ... 4 has stride 2^l, and lists over levels are written finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.accepted import LEVELS, one_or_per_level
from unetseg.config import SKIPS
from unetseg.model.encoders import make_encoder
from unetseg.model.skips import FUSIONS


class DecoderBlock(nn.Module):
    """Upsample to the resolution of the skip, fuse, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, skip: str, normalisation: str):
        super().__init__()
        norm = {"batch": "batchnorm", "none": "identity"}[normalisation]
        self.fusion = FUSIONS[skip](in_channels, skip_channels)
        self.conv1 = Conv2dReLU(self.fusion.out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.conv2 = Conv2dReLU(out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxhxw deep features and the encoder's BxSxHxW to BxOxHxW."""
        deep = F.interpolate(deep, size=skip.shape[-2:], mode="nearest")
        return self.conv2(self.conv1(self.fusion(deep, skip)))


class Decoder(nn.Module):
    """Five blocks from the deepest features up to the input's resolution; the last one has no skip."""

    def __init__(
        self, encoder_channels: Sequence[int], channels: Sequence[int], skip: Sequence[str], normalisation: str
    ):
        super().__init__()
        inputs = [encoder_channels[-1], *channels[:-1]]
        skips = [*reversed(encoder_channels[1:-1]), 0]
        kinds = [*reversed(skip), "none"]  # blocks run from coarse to fine
        blocks = zip(inputs, skips, channels, kinds, strict=True)
        self.blocks = nn.ModuleList(DecoderBlock(*sizes, normalisation) for sizes in blocks)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the encoder's features, [input, stride 2, ..., stride 32], to BxOxHxW."""
        deep = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            deep = block(deep, skip)
        return deep


class SkipUnet(nn.Module):
    """A U-Net whose long skips are a switch.

    With skip="concat" it has the state-dict keys of `smp.Unet` and, with the same weights, equal outputs and
    gradients to the last bit.

    Args:
        encoder: a ResNet or DenseNet of smp.
        skip: concat | add | none, or a list with one kind for each of the 4 levels, finest first.
        weights: "imagenet" downloads the encoder's weights by smp; None starts from random ones. Files are read by
            `unetseg.model.weights.load_encoder`.
        short_skips: False leaves out the additions inside a ResNet.
        normalisation: "batch", or "none" for a ResNet and a decoder without batch normalisation.
        initialisation: random weights by "he" (He et al. 2015: torchvision's and smp's own) or, of every convolution,
            by "glorot" (Glorot and Bengio 2010, normal), which loses half the variance at each ReLU.
        classes: output channels K.
        decoder_channels: widths of the decoder's blocks, coarsest first.
        in_channels: input channels C.

    Raises:
        ValueError: an unknown kind, a list of the wrong length, a DenseNet without short skips or normalisation.
    """

    def __init__(
        self,
        encoder: str = "resnet34",
        *,
        skip: str | Sequence[str] = "concat",
        weights: str | None = "imagenet",
        short_skips: bool = True,
        normalisation: str = "batch",
        initialisation: str = "he",
        classes: int = 1,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        in_channels: int = 3,
    ):
        super().__init__()
        kinds = one_or_per_level(skip, SKIPS, "skip")
        self.skip = [kinds] * LEVELS if isinstance(kinds, str) else kinds
        self.encoder = make_encoder(
            encoder, in_channels=in_channels, weights=weights, short_skips=short_skips, normalisation=normalisation
        )
        self.decoder = Decoder(
            cast(Sequence[int], self.encoder.out_channels), decoder_channels, self.skip, normalisation
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, kernel_size=3)
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)
        if initialisation == "glorot":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, BxCxHxW float, to logits, BxKxHxW float."""
        return self.segmentation_head(self.decoder(self.encoder(images)))
