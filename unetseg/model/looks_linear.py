"""The looks-linear start (Balduzzi et al. 2017, section 5): ReLU networks that begin as linear ones.

Half of every layer's channels begin as the others with the opposite sign, z and -z. Behind the ReLU their difference is
z again, and the next convolution's weights, [[W, -W], [-W, W]], take just that difference. Every W is orthogonal, so
that a signal keeps its size. The training is free to leave the mirror.

The stem of a ResNet has a pooling by maxima, and that is not linear: max(z) - max(-z) changes its sign with the input
and grows with it, but of a sum of inputs it is not the sum. All the rest of the network is linear. Batch normalisation
keeps the mirror; it is linear with stored statistics.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def start_encoder(encoder: nn.Module) -> None:
    """Draw a ResNet's weights, without additions in its blocks: none, or concatenations."""
    seed = int(torch.randint(2**62, ()))
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            whole = module.in_channels
            if name.endswith("merge"):  # of the branch, which no ReLU has cut, and of the input, which one has
                _draw(module, name, seed, [whole // 2, whole // 2])
                with torch.no_grad():
                    module.weight[:, : whole // 2] /= 2  # z - (-z)
            else:
                _draw(module, name, seed, [] if name == "conv1" else [whole])  # the picture has no mirror


def start_decoder(decoder: nn.Module, head: nn.Module, deepest: int) -> None:
    """Draw the weights of the U-Net's own decoder, with concat, add or no skips, and of its head.

    Args:
        decoder: a Decoder.
        head: whose first layer is its convolution.
        deepest: channels of the encoder's last features.
    """
    seed, deep = int(torch.randint(2**62, ())), deepest
    blocks: Any = decoder.blocks
    for number, block in enumerate(blocks):
        projection = getattr(block.fusion, "projection", None)
        if isinstance(projection, nn.Conv2d):
            _draw(projection, f"{number}.projection", seed, [projection.in_channels])
            with torch.no_grad():
                projection.weight /= 2  # z - (-z): no ReLU follows
        first, second = block.conv1[0], block.conv2[0]
        groups = [deep, first.in_channels - deep]
        _draw(first, f"{number}.conv1", seed, [width for width in groups if width])
        _draw(second, f"{number}.conv2", seed, [second.in_channels])
        deep = second.out_channels
    last: Any = head
    _draw(last[0], "head", seed, [deep], mirrored=False)


def _draw(conv: nn.Conv2d, name: str, seed: int, groups: Sequence[int], mirrored: bool = True) -> None:
    """Draw a convolution's weights by its name, so that they are the same whatever other layers there are.

    Args:
        conv: of one group.
        name: its name.
        seed: of all.
        groups: widths of the features that it reads side by side, each with z in its first half; none for a picture.
        mirrored: whether its outputs are to be z and -z.

    Raises:
        ValueError: there is an odd number of channels.
    """
    if any(width % 2 for width in (*groups, conv.out_channels if mirrored else 0)):
        raise ValueError(f"initialisation=looks_linear needs even numbers of channels, not {groups} in {name}")
    rows = conv.out_channels // 2 if mirrored else conv.out_channels
    half = conv.weight.new_empty(rows, sum(groups) // 2 or conv.in_channels, *conv.kernel_size)
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    nn.init.orthogonal_(half, generator=generator)
    if groups:
        parts = half.split([width // 2 for width in groups], 1)
        half = torch.cat([signed for part in parts for signed in (part, -part)], 1)
    with torch.no_grad():
        conv.weight.copy_(torch.cat([half, -half]) if mirrored else half)
