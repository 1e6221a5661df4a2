"""Short skips: a ResNet that doesn't add or concatenates instead, a DenseNet that doesn't concatenate or adds instead.

A ResNet's block adds its input to what its convolutions make of it (He et al. 2016). A DenseNet's layer gets all that
the layers before it made, side by side (Huang et al. 2017). Each of them is built here with the other's way, and with
none; resolutions, and the widths of the features that leave a stage, stay what they are.

Legend: B batch, C, O channels of a block's input and output, H x W resolution; in a dense block g is the growth rate,
and layer l = 1 ... n has the input's C channels and those of l - 1 layers, C + (l - 1) g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class Branch(nn.Module):
    """A ResNet's block of which another class says what becomes of its branch."""

    relu: nn.ReLU
    downsample: nn.Module | None

    def branch(self, x: Tensor) -> Tensor:
        """Map BxCxHxW to BxOxhxw by the block's convolutions, with a ReLU between them."""
        last = 3 if hasattr(self, "conv3") else 2
        for number in range(1, last + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = self.relu(x) if number < last else x
        return x


class Plain(Branch):
    """Turns a ResNet's block into its convolutions alone, without the addition and the projection that serves it."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        del self.downsample  # what has this attribute, be it None, is taken for a block with a short skip

    def forward(self, x: Tensor) -> Tensor:
        """Map BxCxHxW to BxOxhxw."""
        return self.relu(self.branch(x))


class Concatenating(Branch):
    """Turns the addition of a ResNet's block into a concatenation.

    A 1x1 convolution without bias brings both, 2 O channels, back to O. It could learn to add.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        last: nn.Conv2d = self.conv3 if hasattr(self, "conv3") else self.conv2  # type: ignore[assignment]
        self.merge = nn.Conv2d(2 * last.out_channels, last.out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map BxCxHxW to BxOxhxw."""
        made = self.branch(x)
        kept = x if self.downsample is None else self.downsample(x)
        return self.relu(self.merge(torch.cat([made, kept], dim=1)))


class PlainBasicBlock(Plain, BasicBlock):
    """The block of ResNet-18 and 34 without a short skip."""


class PlainBottleneck(Plain, Bottleneck):
    """The block of ResNet-50 and deeper without a short skip."""


class ConcatenatingBasicBlock(Concatenating, BasicBlock):
    """The block of ResNet-18 and 34 that concatenates."""


class ConcatenatingBottleneck(Concatenating, Bottleneck):
    """The block of ResNet-50 and deeper that concatenates."""


RESIDUAL: dict[bool | str, dict[type[nn.Module], type[nn.Module]]] = {
    False: {BasicBlock: PlainBasicBlock, Bottleneck: PlainBottleneck},
    "concat": {BasicBlock: ConcatenatingBasicBlock, Bottleneck: ConcatenatingBottleneck},
}
"""What takes the place of a ResNet's blocks, by the short skips that are asked for."""


class Chain(nn.ModuleDict):
    """The layers of a dense block one after the other, without its concatenations: no short skips, or additions.

    Without short skips layer l sees what layer l - 1 made, g channels, and the first one the block's input. With
    additions layer l sees the sum of what the layers 1 ... l - 1 made, as in a ResNet; the block's input, which has
    another width, is no part of it. Either is repeated, or cut, along the channels to the width that the layer has in
    the dense block, and in the end to the width of the block's output: weights, names, FLOPs and shapes stay what they
    are, as with the long skip placebo.

    Args:
        layers: of the dense block, by their names.
        growth: g.
        adds: whether there are additions.

    Examples:
        >>> layers = {"denselayer1": nn.Conv2d(4, 2, 1), "denselayer2": nn.Conv2d(6, 2, 1)}
        >>> Chain(layers, growth=2, adds=False)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(self, layers: Mapping[str, nn.Module], growth: int, adds: bool):
        super().__init__(layers)
        self.growth, self.adds = growth, adds

    def forward(self, x: Tensor) -> Tensor:
        """Map BxCxHxW to Bx(C + n g)xHxW."""
        seen, width = x, x.shape[1]
        for number, layer in enumerate(self.values()):
            made = layer(filled(seen, width))
            seen = seen + made if self.adds and number else made
            width += self.growth
        return filled(seen, width)


def filled(features: Tensor, width: int) -> Tensor:
    """Return features, BxCxHxW, repeated or cut along the channels to a width."""
    repeats = -(-width // features.shape[1])
    return features.repeat(1, repeats, 1, 1)[:, :width]


def replace_dense_blocks(encoder: nn.Module, *, adds: bool) -> None:
    """Put chains of the same layers in the place of a DenseNet's dense blocks."""
    features: Any = encoder.features
    for name, block in [*features.named_children()]:
        if name.startswith("denseblock"):
            layers = dict(block.items())
            growth = next(reversed(layers.values())).conv2.out_channels
            setattr(features, name, Chain(layers, growth, adds))
