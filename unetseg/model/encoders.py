"""Encoders: smp's as they are, or the same network with other short skips or without its normalisation."""

from __future__ import annotations

import copy

import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import nn

from unetseg.model.short_skips import RESIDUAL, replace_dense_blocks
from unetseg.names import LEVELS, RESNETS, own_short_skips

DEPTH = LEVELS + 1
"""Encoder stages; the deepest has no long skip, its features enter the decoder."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of RGB in 0..1: every ResNet and DenseNet of smp was trained with these."""


def make_encoder(
    name: str, *, in_channels: int, weights: str | None, short_skips: bool | str = True, normalisation: str = "batch"
) -> nn.Module:
    """Return an encoder that maps BxCxHxW to the features [input, stride 2, ..., stride 32].

    Args:
        name: a ResNet or DenseNet of smp.
        in_channels: C.
        weights: "imagenet" or None.
        short_skips: True for its own; False for none; "add" or "concat", see `unetseg.model.short_skips`.
        normalisation: "batch", or "none" for identities in place of ResNet's batch normalisations.

    Raises:
        ValueError: a DenseNet without normalisation, of which its layers are made; weights with other short skips.
    """
    if short_skips == own_short_skips(name):
        short_skips = True
    if short_skips is True and normalisation == "batch":
        return get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=weights)
    if weights is not None:
        raise ValueError("downloaded weights are those of the whole encoder, with its short skips and normalisation")
    if name not in RESNETS:
        if normalisation == "none":
            raise ValueError(
                f"{name} can't be built without normalisation, only {', '.join(RESNETS)} can: every layer of a "
                "DenseNet begins with it"
            )
        encoder = get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=None)
        replace_dense_blocks(encoder, adds=short_skips == "add")
        return encoder
    arguments = copy.deepcopy(encoders[name]["params"])  # smp's own table stays as it is
    if short_skips is not True:
        arguments["block"] = RESIDUAL[short_skips][arguments["block"]]
    if normalisation == "none":
        arguments["norm_layer"] = nn.Identity
    with torch.random.fork_rng(devices=[]):
        encoder = encoders[name]["encoder"](depth=DEPTH, **arguments)
        encoder.set_in_channels(in_channels, pretrained=False)
    # the weights that the whole encoder draws from the same seed, so that the two differ only by what was changed
    whole = get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=None).state_dict()
    own = encoder.state_dict()
    encoder.load_state_dict({key: whole.get(key, value) for key, value in own.items()})
    return encoder
