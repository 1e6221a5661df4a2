"""The fusions: how a long skip is merged into the decoder, and what it lets through.

A fusion is built from the widths of its two inputs, and has its own width in `out_channels`. It maps the upsampled deep
features and the encoder's features of the same resolution to the decoder block's input. It holds only the layers that
it uses: a parameter without a gradient would stop distributed training.

Legend: B batch, D channels of the deep path, S channels of the skip, H x W the resolution of the level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FLOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "both": lambda skip: skip,
    "forward": lambda skip: skip.detach(),
    "backward": lambda skip: skip - skip.detach(),
}
"""What a long skip lets through, applied to the encoder's features before any layer of the fusion sees them.

forward: the features; no gradient comes back.
backward: the fusion sees zeros, and the gradient with respect to these zeros goes on to the encoder. A weight that is
multiplied with them (the skip's columns of a decoder convolution after concat, add's projection, all of attention's
gate) has a gradient of exactly zero: it stays what it was at the start but for weight decay, and the encoder hears the
loss through that fixed random matrix, as in feedback alignment (Lillicrap et al. 2016). With add between equal widths
there is no such matrix.
"""


class ScaledGradient(torch.autograd.Function):
    """The features as they are; the gradient that comes back is multiplied with a factor.

    Examples:
        >>> features = torch.ones(2, requires_grad=True)
        >>> ScaledGradient.apply(features, 0.25).sum().backward()
        >>> features.grad
        tensor([0.2500, 0.2500])
    """

    @staticmethod
    def forward(features: Tensor, factor: float) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def dosed(skip: Tensor, factor: float) -> Tensor:
    """Return the skip's features, whose gradient is multiplied with the factor: at 1 and 0 with no further operation.

    At 1 it is the flow "both", at 0 the flow "forward", both to the last bit.
    """
    if factor == 1:
        return skip
    return skip.detach() if factor == 0 else ScaledGradient.apply(skip, factor)


class Fusion(nn.Module, ABC):
    """A fusion maps BxDxHxW and BxSxHxW to Bx(out_channels)xHxW.

    Args:
        deep_channels: D.
        skip_channels: S.
        flow: a key of FLOWS.
        gradient: what the gradient that comes back by the skip is multiplied with, >= 0.

    Attributes:
        out_channels: width of the result.
        carries_features: whether the encoder's features can change the result.

    Examples:
        >>> fusion = FUSIONS["concat"](deep_channels=8, skip_channels=4)
        >>> fusion(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__()
        self.flow, self.gradient = flow, gradient
        self.out_channels = deep_channels
        self.carries_features = flow != "backward" and skip_channels > 0

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxHxW and BxSxHxW to Bx(out_channels)xHxW."""
        return self.fuse(deep, dosed(FLOWS[self.flow](skip), self.gradient))

    @abstractmethod
    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Merge the deep features with what flows through the skip."""


class Concat(Fusion):
    """The U-Net's own fusion (Ronneberger et al. 2015): both, side by side.

    Examples:
        >>> Concat(1, 1)(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).flatten()
        tensor([1., 0.])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        self.out_channels = deep_channels + skip_channels

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        return torch.cat([deep, skip], dim=1)


class Add(Fusion):
    """The sum, as in LinkNet and FPN; a 1x1 projection without bias brings the skip to the deep path's width.

    Examples:
        >>> Add(1, 1)(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).flatten()
        tensor([2.])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        self.projection: nn.Module = nn.Identity()
        if skip_channels != deep_channels:
            self.projection = nn.Conv2d(skip_channels, deep_channels, kernel_size=1, bias=False)

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return BxDxHxW."""
        return deep + self.projection(skip)


class Attention(Concat):
    """The additive attention gate of Oktay et al. 2018 on the skip, then concat.

    alpha = sigmoid(psi(relu(W_s s + W_x x))), one number in 0..1 for each position; the gated skip is alpha * s. W_s,
    W_x (with bias) and psi (with bias) are 1x1 convolutions, S // 2 channels lie between them. The paper computes alpha
    on the coarser grid of x and interpolates it; here x comes upsampled and alpha is computed at the skip's resolution.

    Examples:
        >>> Attention(8, 4).gate(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        between = skip_channels // 2
        self.of_skip = nn.Conv2d(skip_channels, between, kernel_size=1, bias=False)
        self.of_deep = nn.Conv2d(deep_channels, between, kernel_size=1)
        self.psi = nn.Conv2d(between, 1, kernel_size=1)

    def gate(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return alpha, Bx1xHxW in 0..1."""
        return torch.sigmoid(self.psi(torch.relu(self.of_skip(skip) + self.of_deep(deep))))

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        return super().fuse(deep, self.gate(deep, skip) * skip)


class Placebo(Concat):
    """Concat's size without its information: the deep features stand in for the skip.

    They are repeated, or cut, along the channels to the skip's width. The decoder has exactly the parameters and FLOPs
    of concat, and gets the encoder's features by the deep path only.

    Examples:
        >>> Placebo(1, 2)(torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 1, 1)).flatten()
        tensor([1., 1., 1.])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        self.skip_channels = skip_channels
        self.carries_features = False

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        repeats = -(-self.skip_channels // deep.shape[1])
        return super().fuse(deep, deep.repeat(1, repeats, 1, 1)[:, : self.skip_channels])


class NoSkip(Fusion):
    """No long skip: the block sees the deep path alone.

    Examples:
        >>> NoSkip(1, 1)(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).flatten()
        tensor([1.])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        self.carries_features = False

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return the BxDxHxW features of the deep path."""
        return deep


class Passage(Fusion):
    """What a long skip lets through, alone, for decoders that use it in several places (topologies.py).

    Examples:
        >>> Passage(1, 1, flow="backward")(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).flatten()
        tensor([0.])
    """

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return the BxSxHxW features of the skip."""
        return skip


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "add": Add,
    "attention": Attention,
    "placebo": Placebo,
    "none": NoSkip,
}
