"""Segmenter: the model that training, inference and export share. It maps images as they come to logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unetseg.model.encoders import MEAN, STD
from unetseg.model.unet import SkipUnet


class Segmenter(nn.Module):
    """A SkipUnet that normalises inside, so that no caller can forget it or do it differently.

    The mean and the standard deviation are buffers here and not of the SkipUnet, whose keys are those of smp.Unet.
    Two classes have one output channel (the logit of class 1), C > 2 classes have C.

    Args:
        classes: number of classes.
        channels_last: run in the memory layout with channels innermost.
        net: arguments of SkipUnet.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", skip="add", weights=None).eval()
        >>> images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
        >>> class_map(model(images)).shape
        torch.Size([1, 64, 96])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, classes: int, channels_last: bool = True, **net: Any):
        super().__init__()
        self.net = SkipUnet(classes=1 if classes == 2 else classes, **net)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor, with_features: bool = False) -> Any:
        """Map Bx3xHxW RGB, uint8 or float in 0..255, to logits, BxKxHxW.

        With `with_features` also return the encoder's features, [input, stride 2, ..., stride 32].
        """
        if not with_features:
            return self.net(self.normalise(images))
        features = self.net.encoder(self.normalise(images))
        return self.net.decode(features), features

    def normalise(self, images: Tensor) -> Tensor:
        """Map Bx3xHxW RGB, uint8 or float in 0..255, to the net's normalised images, Bx3xHxW float."""
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
