"""Heads on features inside the network, which predict the mask as well while it trains: deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn
from torch.nn import functional as F


class MaskHeads(nn.Module):
    """Deep supervision (Lee et al. 2015, Deeply-Supervised Nets): a 1x1 convolution on each of several features.

    A head predicts the mask at its features' own resolution; its logits are enlarged bilinearly, so that the mask needs
    no resizing and ignored pixels stay what they are. The heads serve training alone, and are no part of the network
    that is evaluated, saved for use or exported. They draw their weights aside: whatever is drawn after them is as it
    would be without them.

    Args:
        channels: widths of the features; those of 0 channels have no head.
        classes: output channels K.

    Examples:
        >>> heads = MaskHeads([8, 16], classes=1)
        >>> nodes = [torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 8, 8)]
        >>> [tuple(logits.shape) for logits in heads(nodes, size=(32, 32))]
        [(2, 1, 32, 32), (2, 1, 32, 32)]
    """

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.heads = nn.ModuleList(nn.Conv2d(width, classes, kernel_size=1) for width in channels if width)
            initialize_head(self)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Map the features to logits, BxKxHxW float32, in their order.

        Args:
            features: of one batch.
            size: H and W.
        """
        pairs = zip(self.heads, (own for own in features if own.shape[1]), strict=True)
        coarse = [head(own) for head, own in pairs]
        exact = [logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in coarse]
        return [F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False) for logits in exact]


class AuxiliaryHeads(MaskHeads):
    """Heads on the encoder's features: a gradient for the encoder that comes by no skip and through no frozen matrix.

    Each predicts the mask from the features e_l that level l's long skip would carry.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., deepest]; the first and the last,
            which no long skip carries, have no head, and neither has a level without channels.
        classes: output channels K.

    Examples:
        >>> heads = AuxiliaryHeads([3, 8, 16, 32], classes=1)
        >>> features = [torch.zeros(2, width, 32 >> level, 32 >> level) for level, width in enumerate([3, 8, 16, 32])]
        >>> [tuple(logits.shape) for logits in heads(features, size=(32, 32))]
        [(2, 1, 32, 32), (2, 1, 32, 32)]
    """

    def __init__(self, encoder_channels: Sequence[int], classes: int):
        super().__init__(encoder_channels[1:-1], classes)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Map the encoder's features, [input, stride 2, ..., deepest], to logits, BxKxHxW float32, finest level first.

        Args:
            features: of one batch.
            size: H and W.
        """
        return super().forward(features[1:-1], size)
