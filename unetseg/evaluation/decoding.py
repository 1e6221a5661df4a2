"""Decoding a batch again and again with a few of its long skips changed: what stays the same is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from unetseg.model.decoder import Decoder
from unetseg.model.unet import SkipUnet


class Redecoder:
    """Decodes the features of a batch, each time from the first block on whose inputs have changed.

    Blocks run from coarse to fine, so the fewer changes there are at coarse levels the less is computed. It keeps one
    result for each block, and gives what `net.decode` gives, to the last bit. A decoder with a forward of its
    own, also a subclass of the U-Net's, decodes anew each time.

    Args:
        net: in eval mode.

    Examples:
        >>> import torch
        >>> net = SkipUnet("resnet18", weights=None).eval()
        >>> features, redecoder = net.encoder(torch.zeros(1, 3, 32, 32)), Redecoder(net)
        >>> redecoder.decode(features, changes=[None] * 5).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, net: SkipUnet):
        self.net = net
        self._path: list[tuple[Hashable, Tensor]] = []
        """The deepest features, and of each block what was changed at its level and its result."""

    def decode(self, features: Sequence[Tensor], changes: Sequence[Hashable]) -> Tensor:
        """Return the logits, BxKxHxW.

        Args:
            features: the encoder's, [input, stride 2, ..., stride 32]; the deepest are the same each time.
            changes: what was done to the features, or is by hooks, at each level from 0 on: equal where they are.
        """
        decoder: Any = self.net.decoder
        if type(decoder).forward is not Decoder.forward:
            return self.net.decode(features)  # type: ignore[no-any-return]
        if not self._path:
            self._path = [(None, decoder.center(features[-1]))]
        levels = zip(decoder.blocks, reversed(features[:-1]), reversed(changes), strict=True)
        for number, (block, skip, change) in enumerate(levels, start=1):
            if number == len(self._path) or self._path[number][0] != change:
                deep = self._path[number - 1][1]
                self._path[number:] = [(change, block(deep, skip))]  # what follows is of other features
        return self.net.segmentation_head(self._path[-1][1])  # type: ignore[no-any-return]
