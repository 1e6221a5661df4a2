"""Heads on the encoder's features: a gradient for the encoder that comes by no skip and through no frozen matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn
from torch.nn import functional as F


class AuxiliaryHeads(nn.Module):
    """Deep supervision (Lee et al. 2015, Deeply-Supervised Nets) of the encoder: a 1x1 convolution at each level.

    A head predicts the mask from the features e_l that level l's long skip would carry, at their own resolution; its
    logits are enlarged bilinearly, so that the mask needs no resizing and ignored pixels stay what they are. The heads
    serve training alone, and are no part of the network that is evaluated, saved for use or exported. They draw their
    weights aside: whatever is drawn after them is the same as without them.

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
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.heads = nn.ModuleList(
                nn.Conv2d(width, classes, kernel_size=1) for width in encoder_channels[1:-1] if width
            )
            initialize_head(self)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Map the encoder's features, [input, stride 2, ..., deepest], to logits, BxKxHxW float32, finest level first.

        Args:
            features: of one batch.
            size: H and W.
        """
        levels = zip(self.heads, (own for own in features[1:-1] if own.shape[1]), strict=True)
        coarse = [head(encoded) for head, encoded in levels]
        exact = [logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in coarse]
        return [F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False) for logits in exact]
