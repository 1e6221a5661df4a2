"""The U-Net's decoder: five blocks that upsample, fuse a long skip and convolve twice.

Legend: B batch, D, S, O channels of the deep path, the skip and the output, H x W resolution; blocks run from coarse
to fine, lists over levels from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segmentation_models_pytorch.base.modules import Attention, Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetCenterBlock
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.model.own import own_fusion
from unetseg.model.skips import FUSIONS, NORMS, Fusion, NoSkip, ResPath
from unetseg.names import is_own


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

    Args:
        fusion: of the level.
        out_channels: O.
        normalisation: "batch" or "none".
        scse: reweigh what is fused, where there is a skip, and what is returned, by concurrent spatial and channel
            squeeze and excitation (Roy et al. 2018), with the names and operations of smp's decoder_attention_type.

    Examples:
        >>> import torch
        >>> from unetseg.model.skips import Concat
        >>> block = DecoderBlock(Concat(16, 8), 4, normalisation="batch")
        >>> block(torch.zeros(2, 16, 8, 8), torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(self, fusion: Fusion, out_channels: int, normalisation: str, scse: bool = False):
        super().__init__()
        norm = NORMS[normalisation]
        self.fusion = fusion
        self.conv1 = Conv2dReLU(fusion.out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.attention1 = _scse(fusion.out_channels) if scse and not isinstance(fusion, NoSkip) else nn.Identity()
        self.conv2 = Conv2dReLU(out_channels, out_channels, kernel_size=3, padding=1, use_norm=norm)
        self.attention2 = _scse(out_channels) if scse else nn.Identity()

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxhxw deep features and the encoder's BxSxHxW to BxOxHxW."""
        deep = F.interpolate(deep, size=skip.shape[-2:], mode="nearest")
        fused = self.attention1(self.fusion(deep, skip))
        return self.attention2(self.conv2(self.conv1(fused)))


def _scse(channels: int) -> nn.Module:
    """Return smp's scSE; fewer channels than 16 are squeezed to one."""
    return Attention("scse", in_channels=channels, reduction=min(16, channels))


def make_fusion(
    kind: str,
    deep_channels: int,
    skip_channels: int,
    flow: str,
    gradient: float,
    *,
    length: int,
    normalisation: str,
    scale: float,
) -> Fusion:
    """Return the fusion of a level; the last three are of respath's path: its blocks, and the factor on its width.

    Raises:
        UserError: a class of the user's own is not found, or is not what `own_fusion` asks for.
    """
    if is_own(kind):
        return own_fusion(kind, deep_channels, skip_channels, flow, gradient)
    if kind == "respath":
        width = max(1, round(scale * skip_channels))
        return ResPath(deep_channels, skip_channels, flow, gradient, length, normalisation, width)
    return FUSIONS[kind](deep_channels, skip_channels, flow, gradient)


class Decoder(nn.Module):
    """Five blocks from the deepest features up to the input's resolution; the last one has no skip but with stem_skip.

    At a level of which an encoder has no features, 0 channels as a transformer's at stride 2, a skip of any kind is the
    concatenation with nothing, as in smp.

    Args:
        encoder_channels: widths of the encoder's features, [input, stride 2, ..., stride 32].
        channels: widths of the blocks, coarsest first.
        skip: kind of each level's fusion, finest first.
        flow: what each level's long skip lets through, finest first.
        gradient: what the gradient that comes back by each level's long skip is multiplied with, finest first.
        normalisation: "batch" or "none".
        scale: what the width of respath's paths is multiplied with, for networks of equal size.
        stem_skip: give the last block the input itself as level 0, fused as level 1's features are.
        centre: two convolutions on the deepest features before the blocks, which smp gives to VGG alone: its last stage
            is a pooling.

    Attributes:
        node_channels: widths of the features that deep supervision reads: the blocks but the last one, coarsest first.

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
        scale: float = 1.0,
        stem_skip: bool = False,
        centre: bool = False,
    ):
        super().__init__()
        self.node_channels = [*channels[:-1]]
        inputs = [encoder_channels[-1], *channels[:-1]]
        skips = [*reversed(encoder_channels[1:-1]), encoder_channels[0] if stem_skip else 0]
        kinds = [kind if width else "concat" for kind, width in zip(reversed(skip), skips[:-1], strict=True)]
        kinds.append(skip[0] if stem_skip else "none")
        passes = [*zip(reversed(flow), reversed(gradient), strict=True), (flow[0] if stem_skip else "both", 1.0)]
        reweighed = [kind == "scse" for kind in (*reversed(skip), skip[0])]  # the last block is as level 1
        deepest = encoder_channels[-1]
        self.center = UnetCenterBlock(deepest, deepest, NORMS[normalisation]) if centre else nn.Identity()  # smp's name
        self.blocks = nn.ModuleList()
        levels = zip(inputs, skips, channels, kinds, passes, reweighed, strict=True)
        for number, (deep_width, skip_width, width, kind, passed, scse) in enumerate(levels, start=1):
            # respath has a block at the coarsest level, and one more at each finer one
            fusion = make_fusion(
                kind, deep_width, skip_width, *passed, length=number, normalisation=normalisation, scale=scale
            )
            self.blocks.append(DecoderBlock(fusion, width, normalisation, scse))

    @property
    def fusions(self) -> list[nn.Module]:
        """The fusion of each level, finest first."""
        return [block.fusion for block in reversed(self.blocks[:-1])]  # type: ignore[misc]

    def forward(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ..., stride 32], to BxOxHxW.

        With `with_nodes` also return what deep supervision reads.
        """
        deep, nodes = self.center(features[-1]), []
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            deep = block(deep, skip)
            if with_nodes:
                nodes.append(deep)
        return (deep, nodes[:-1]) if with_nodes else deep
