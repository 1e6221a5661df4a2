"""Decoder widths of equal size: each kind of skip with the parameters of concat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base import SegmentationHead
from torch import nn

from unetseg.errors import UserError
from unetseg.model.topologies import make_decoder

TOLERANCE = 0.01
"""Largest difference of a matched network's size, as a share of the size that it should have."""


def matched_channels(
    encoder: nn.Module,
    channels: Sequence[int],
    skip: Sequence[str],
    normalisation: str,
    classes: int,
    others: int = 0,
    stem_skip: bool = False,
    centre: bool = False,
    decoder: str | None = None,
) -> tuple[list[int], float]:
    """Return `channels`, scaled so that the network has the parameters of concat at every level, and the scale.

    Args:
        encoder: the encoder, which both networks share.
        channels: the widths of concat's decoder, coarsest first.
        skip: kind of each level's fusion, finest first.
        normalisation: "batch" or "none".
        classes: output channels of the head.
        others: parameters of the network that concat's has not, and that no width of the decoder changes.
        stem_skip: whether both networks have a long skip of stride 1.
        centre: whether concat's decoder has convolutions on the deepest features, see Decoder.
        decoder: a class of the user's own in the place of the decoder of these skips.

    Raises:
        UserError: no widths come within TOLERANCE of that number.
    """
    encoder_channels: Sequence[int] = encoder.out_channels  # type: ignore[assignment]
    shared = sum(p.numel() for p in encoder.parameters())

    def size(widths: Sequence[int], kinds: Sequence[str], scale: float = 1.0, own: str | None = None) -> int:
        with torch.device("meta"):
            whole = ["both"] * len(kinds), [1.0] * len(kinds)
            parts = (
                make_decoder(encoder_channels, widths, kinds, *whole, normalisation, scale, stem_skip, centre, own),
                SegmentationHead(widths[-1], classes, kernel_size=3),
            )
        return shared + sum(p.numel() for part in parts for p in part.parameters())

    wanted = size(channels, ["concat"] * len(skip))
    low, high = 0.1, 10.0
    for _ in range(20):  # bisection, as the size grows with the scale
        scale = (low * high) ** 0.5
        widths = [max(1, round(scale * width)) for width in channels]
        parameters = size(widths, skip, scale, decoder) + others
        if parameters == wanted:
            break
        low, high = (scale, high) if parameters < wanted else (low, scale)
    if abs(parameters - wanted) > TOLERANCE * wanted:
        raise UserError(
            f"no decoder widths give {wanted} parameters: the nearest, {widths}, give {parameters}",
            accepted=f"kinds of skips that can be as small as concat's, not {', '.join(dict.fromkeys(skip))}",
            advice="model.match_parameters=false",
        )
    return widths, scale
