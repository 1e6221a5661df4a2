"""The fusions: how a long skip is merged into the decoder, and what it lets through.

A fusion is built from the widths of its two inputs, and has its own width in `out_channels`. It maps the upsampled deep
features and the encoder's features of the same resolution to the decoder block's input. It holds only the layers that
it uses: a parameter without a gradient would stop distributed training.

Legend: B batch, D channels of the deep path, S channels of the skip, H x W the resolution of the level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU, get_norm_layer
from torch import Tensor, nn

from unetseg.errors import UserError

NORMS = {"batch": "batchnorm", "none": "identity"}
"""smp's names of the normalisations."""

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
        is_whole_without: whether the deep path is as ever where the skip's features are zeros.
        scale: multiplies what flows through the skip, see `unetseg.model.controls`.

    Examples:
        >>> fusion = FUSIONS["concat"](deep_channels=8, skip_channels=4)
        >>> fusion(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    is_whole_without = True

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__()
        self.flow, self.gradient = flow, gradient
        self.out_channels = deep_channels
        self.carries_features = flow != "backward" and skip_channels > 0
        self.scale: nn.Module = nn.Identity()

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxHxW and BxSxHxW to Bx(out_channels)xHxW."""
        return self.fuse(deep, self.scale(dosed(FLOWS[self.flow](skip), self.gradient)))

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


class Multiply(Fusion):
    """The product, as in MONAI's SkipConnection(mode="mul"); a 1x1 projection without bias brings both to one width.

    Zeros in place of the skip's features would leave nothing of the deep path. So there is no flow "backward", which
    withholds the features, and no lesion by zeros; lesions by the mean and by other pictures' features are defined. A
    skip of 0 channels is no factor.

    Examples:
        >>> Multiply(1, 1)(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)).flatten()
        tensor([6.])
    """

    is_whole_without = False

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        self.skip_channels = skip_channels
        self.projection: nn.Module = nn.Identity()
        if skip_channels not in (0, deep_channels):
            self.projection = nn.Conv2d(skip_channels, deep_channels, kernel_size=1, bias=False)

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return BxDxHxW."""
        return deep * self.projection(skip) if self.skip_channels else deep


class Scse(Concat):
    """Concat; the decoder's block reweighs the result and its own output by scSE, see `decoder.DecoderBlock`.

    Examples:
        >>> Scse(1, 1)(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).flatten()
        tensor([1., 0.])
    """


class Attention(Concat):
    """The additive attention gate of Oktay et al. 2018 on the skip, then concat.

    alpha = sigmoid(psi(relu(W_s s + W_x x))), one number in 0..1 for each position; the gated skip is alpha * s. W_s,
    W_x (with bias) and psi (with bias) are 1x1 convolutions, S // 2 channels, at least one, lie between them. The paper
    computes alpha on the coarser grid of x and interpolates it; here x comes upsampled and alpha is computed at the
    skip's resolution.

    Examples:
        >>> Attention(8, 4).gate(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, deep_channels: int, skip_channels: int, flow: str = "both", gradient: float = 1.0):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        between = max(1, skip_channels // 2)
        self.of_skip = nn.Conv2d(skip_channels, between, kernel_size=1, bias=False)
        self.of_deep = nn.Conv2d(deep_channels, between, kernel_size=1)
        self.psi = nn.Conv2d(between, 1, kernel_size=1)

    def gate(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return alpha, Bx1xHxW in 0..1."""
        return torch.sigmoid(self.psi(torch.relu(self.of_skip(skip) + self.of_deep(deep))))

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        return super().fuse(deep, self.gate(deep, skip) * skip)


class ResPathBlock(nn.Module):
    """A residual block of a ResPath: norm(relu(relu(norm(conv3x3(x))) + norm(conv1x1(x)))).

    Examples:
        >>> ResPathBlock(8, 4, "batch")(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(self, in_channels: int, out_channels: int, normalisation: str):
        super().__init__()
        norm = NORMS[normalisation]
        self.conv = Conv2dReLU(in_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=normalisation == "none"),
            get_norm_layer(norm, out_channels),
        )
        self.norm = get_norm_layer(norm, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map BxSxHxW to BxOxHxW."""
        return self.norm(torch.relu(self.conv(features) + self.shortcut(features)))


class ResPath(Concat):
    """A path of residual blocks on the skip, then concat (MultiResUNet, Ibtehaz and Rahman 2020).

    The paper's paths are as wide as its U-Net at that level, and so are these: S channels. A skip of 0 channels has no
    blocks.

    Args:
        deep_channels: D.
        skip_channels: S.
        flow: both or forward. With backward the blocks would normalise zeros, whose variance is 0: each normalisation
            would multiply the gradient that comes back with up to 1 / sqrt(eps), 316.
        gradient: what the gradient that comes back by the skip is multiplied with, >= 0.
        length: the number of blocks; in the paper 4 at the finest level, then 3, 2 and 1.
        normalisation: "batch" or "none".
        width: channels of the path; None: S.

    Examples:
        >>> ResPath(8, 4, length=2)(torch.zeros(2, 8, 16, 16), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def __init__(
        self,
        deep_channels: int,
        skip_channels: int,
        flow: str = "both",
        gradient: float = 1.0,
        length: int = 1,
        normalisation: str = "batch",
        width: int | None = None,
    ):
        width = skip_channels if width is None or skip_channels == 0 else width
        super().__init__(deep_channels, width, flow, gradient)
        inputs = [skip_channels, *[width] * (length - 1)] if skip_channels else []
        self.path = nn.Sequential(*(ResPathBlock(own, width, normalisation) for own in inputs))

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+width)xHxW."""
        return super().fuse(deep, self.path(skip))


def of_width(features: Tensor, channels: int) -> Tensor:
    """Return the features repeated, or cut, along the channels: BxDxHxW to Bx(channels)xHxW."""
    repeats = -(-channels // features.shape[1])
    return features.repeat(1, repeats, 1, 1)[:, :channels]


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
        return super().fuse(deep, of_width(deep, self.skip_channels))


class Shuffled(Concat):
    """Concat of another picture's features while training: the right kind of numbers, and nothing of this picture.

    The pictures of a batch pass their features on by a number of places, drawn for each level and step from the
    process-wide generator, which a run that is resumed finds as it was; so no picture keeps its own. Several devices
    exchange within the batch of each. The gradient that comes back by the skip is that of another picture's loss. In
    evaluation a picture has its own features, so that its mask depends on no other picture: a decoder that was trained
    so has not learned to use what they say of it. What their exchange costs a trained model, a lesion says ("shuffle").

    Attributes:
        zeros_alone: whether a picture alone in a batch gets zeros, as from a placebo: where unreadable pictures are
            left out, the others of its batch may all be gone.

    Raises:
        UserError: there is one picture alone in a batch of training, without `zeros_alone`.

    Examples:
        >>> Shuffled(1, 1)(torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).flatten()
        tensor([0., 2., 0., 1.])
    """

    zeros_alone = False

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return Bx(D+S)xHxW."""
        return super().fuse(deep, self.of_another(skip) if self.training else skip)

    def of_another(self, features: Tensor) -> Tensor:
        """Return the BxSxHxW features of other pictures of the batch."""
        size = len(features)
        if size == 1 and self.zeros_alone:
            return torch.zeros_like(features)
        if size == 1:
            raise UserError(
                "skip=shuffled with one picture in a batch of training",
                accepted="two or more on each device, whose features are exchanged",
                advice="data.batch_size=8",
            )
        places = torch.randint(1, size, (1,), device="cpu")  # the same draws on every kind of device
        return features[((torch.arange(size, device="cpu") + places) % size).to(features.device)]


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
    """What a long skip lets through, alone, for decoders of all levels (topologies.py, channel.py).

    Examples:
        >>> Passage(1, 1, flow="backward")(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).flatten()
        tensor([0.])
    """

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return the BxSxHxW features of the skip."""
        return skip


def passages(encoder_channels: Sequence[int], flow: Sequence[str], gradient: Sequence[float]) -> nn.ModuleList:
    """Return the way of each level's features into a decoder, finest first."""
    ways = zip(encoder_channels[1:-1], flow, gradient, strict=True)
    return nn.ModuleList(Passage(width, width, own, factor) for width, own, factor in ways)


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "add": Add,
    "attention": Attention,
    "multiply": Multiply,
    "respath": ResPath,
    "scse": Scse,
    "placebo": Placebo,
    "shuffled": Shuffled,
    "none": NoSkip,
}
