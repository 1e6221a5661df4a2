"""Segmenter: the model that training, inference and export share. It maps images as they come to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unetseg.model.encoders import normalisation_of
from unetseg.model.unet import SkipUnet


class Segmenter(nn.Module):
    """A SkipUnet that normalises inside, so that no caller can forget it or do it differently.

    The mean and the standard deviation are buffers here and not of the SkipUnet, whose keys are those of smp.Unet.
    Two classes have one output channel (the logit of class 1), C > 2 classes have C.

    Args:
        classes: number of classes.
        channels_last: run in the memory layout with channels innermost.
        in_channels: D, the channels of the images.
        mean: of each channel in the images' values; None: the encoder's own, of RGB in 0..255, which is ImageNet's with
            most. A checkpoint brings its own.
        std: of each channel, likewise.
        net: further arguments of SkipUnet.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", skip="add", weights=None).eval()
        >>> images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
        >>> class_map(model(images)).shape
        torch.Size([1, 64, 96])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        classes: int,
        channels_last: bool = True,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **net: Any,
    ):
        super().__init__()
        self.net = SkipUnet(classes=1 if classes == 2 else classes, in_channels=in_channels, **net)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        of_encoder = normalisation_of(self.net.encoder_name)
        for name, stated, own in zip(("mean", "std"), (mean, std), of_encoder, strict=True):
            if stated is None:
                values = 255 * torch.tensor(own) if in_channels == 3 else torch.ones(in_channels)
            else:
                values = torch.tensor(stated, dtype=torch.float32)
            self.register_buffer(name, values.view(1, in_channels, 1, 1))

    def forward(self, images: Tensor, with_features: bool = False) -> Any:
        """Map BxDxHxW, RGB in 0..255 as uint8 or float, or other channels, to logits, BxKxHxW.

        With `with_features` also return the encoder's features, [input, stride 2, ..., stride 32], and the decoder's
        that deep supervision reads.
        """
        if not with_features:
            return self.net(self.normalise(images))
        features = self.net.encoder(self.normalise(images))
        logits, nodes = self.net.decode(features, with_nodes=True)
        return logits, features, nodes

    def normalise(self, images: Tensor) -> Tensor:
        """Map BxDxHxW images to the net's normalised ones, BxDxHxW float."""
        images = (images.to(self.mean.dtype) - self.mean) / self.std
        return images.contiguous(memory_format=self.memory_format)


def class_map(logits: Tensor) -> Tensor:
    """Map logits, BxKxHxW, to the likeliest classes, BxHxW uint8 (K = 1: class 1 where the logit is above 0)."""
    classes = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return classes.to(torch.uint8)


def probabilities(logits: Tensor) -> Tensor:
    """Map logits, BxKxHxW, to the probabilities of the classes, BxCxHxW in 0..1 (K = 1: C = 2, background first)."""
    if logits.shape[1] == 1:
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    return logits.softmax(1)
