"""Encoders: smp's as they are, or the same network without its short skips or its normalisation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetseg.names import LEVELS, RESNETS

DEPTH = LEVELS + 1
"""Encoder stages; the deepest has no long skip, its features enter the decoder."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of RGB in 0..1: every ResNet and DenseNet of smp was trained with these."""


class Plain(nn.Module):
    """Turns a ResNet's block into its convolutions alone, without the addition and the projection that serves it."""

    relu: nn.ReLU

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        del self.downsample  # what has this attribute, be it None, is taken for a block that adds

    def forward(self, x: Tensor) -> Tensor:
        """Map BxCxHxW to BxOxhxw."""
        for number in (1, 2, 3) if hasattr(self, "conv3") else (1, 2):
            x = self.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        return x


class PlainBasicBlock(Plain, BasicBlock):
    """The block of ResNet-18 and 34."""


class PlainBottleneck(Plain, Bottleneck):
    """The block of ResNet-50 and deeper."""


PLAIN = {BasicBlock: PlainBasicBlock, Bottleneck: PlainBottleneck}


def make_encoder(
    name: str, *, in_channels: int, weights: str | None, short_skips: bool = True, normalisation: str = "batch"
) -> nn.Module:
    """Return an encoder that maps BxCxHxW to the features [input, stride 2, ..., stride 32].

    Args:
        name: a ResNet or DenseNet of smp.
        in_channels: C.
        weights: "imagenet" or None.
        short_skips: False leaves out ResNet's additions, and the projections that serve them.
        normalisation: "batch", or "none" for identities in place of ResNet's batch normalisations.

    Raises:
        ValueError: a DenseNet without short skips or normalisation, of which its layers are made.
    """
    if short_skips and normalisation == "batch":
        return get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=weights)
    if name not in RESNETS:
        raise ValueError(
            f"{name} can't be built without short skips or normalisation, only {', '.join(RESNETS)} can: a DenseNet is "
            "made of short skips, every layer takes all before it"
        )
    if weights is not None:
        raise ValueError("downloaded weights are those of the whole encoder, with short skips and normalisation")
    arguments = copy.deepcopy(encoders[name]["params"])  # smp's own table stays as it is
    if not short_skips:
        arguments["block"] = PLAIN[arguments["block"]]
    if normalisation == "none":
        arguments["norm_layer"] = nn.Identity
    with torch.random.fork_rng(devices=[]):
        encoder = encoders[name]["encoder"](depth=DEPTH, **arguments)
        encoder.set_in_channels(in_channels, pretrained=False)
    # the weights that the whole encoder draws from the same seed, so that the two differ only by the parts left out
    whole = get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=None).state_dict()
    encoder.load_state_dict({key: whole[key] for key in encoder.state_dict()})
    return encoder
