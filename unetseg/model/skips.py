"""The fusions: how a long skip is merged into the decoder.

A fusion is built from the two widths that meet, tells its own width in `out_channels`, and maps the upsampled deep
features and the encoder's features of the same resolution to the decoder block's input. A fusion holds only the
layers that it uses: a parameter without a gradient would stop distributed training.

Legend: B batch, D channels of the deep path, S channels of the skip, H x W the resolution of the level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """The U-Net's own fusion (Ronneberger et al. 2015): both, side by side."""

    def __init__(self, deep_channels: int, skip_channels: int):
        super().__init__()
        self.out_channels = deep_channels + skip_channels

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxHxW and BxSxHxW to Bx(D+S)xHxW."""
        return torch.cat([deep, skip], dim=1)


class Add(nn.Module):
    """The sum, as in LinkNet and FPN; a 1x1 projection without bias brings the skip to the deep path's width."""

    def __init__(self, deep_channels: int, skip_channels: int):
        super().__init__()
        self.out_channels = deep_channels
        self.projection: nn.Module = nn.Identity()
        if skip_channels != deep_channels:
            self.projection = nn.Conv2d(skip_channels, deep_channels, kernel_size=1, bias=False)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxHxW and BxSxHxW to BxDxHxW."""
        return deep + self.projection(skip)


class NoSkip(nn.Module):
    """No long skip: the block sees the deep path alone."""

    def __init__(self, deep_channels: int, skip_channels: int):
        super().__init__()
        self.out_channels = deep_channels

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return the BxDxHxW features of the deep path."""
        return deep


FUSIONS: dict[str, type[Concat] | type[Add] | type[NoSkip]] = {"concat": Concat, "add": Add, "none": NoSkip}
