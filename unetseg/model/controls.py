"""Doses of what a long skip carries: its features times a number, or times factors that are learned.

Legend: B batch, S channels of a skip, H x W resolution; level l = 1 ... L has stride 2^l, level 1 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unetseg.names import LEVELS

KAPPA = 0.7
"""The base of skip_scale="kappa"; the authors' code suggests 0.5 to 0.95."""
REDUCTION = 16
"""What a calibration's hidden layer is narrower by, as in the authors' code."""


class Scaled(nn.Module):
    """The features times a constant.

    Examples:
        >>> Scaled(0.5)(torch.ones(1, 1, 1, 1)).flatten()
        tensor([0.5000])
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, skip: Tensor) -> Tensor:
        """Map BxSxHxW to BxSxHxW."""
        return skip * self.factor


class Calibration(nn.Module):
    """The learnable scaling of ScaleLong (Huang et al. 2023): a factor in 0..1 for each picture and channel.

    kappa = sigmoid(W_2 relu(W_1 GAP(s) + b_1) + b_2), with S // 16 numbers in between and the means GAP over all
    positions, which is a squeeze-and-excitation (Hu et al. 2018). One a level, as the levels' widths differ: the
    authors' "LS (non-share)"; their "LS" shares one network, and has a factor for each token of a transformer. The
    weights begin small, as theirs do (a normal distribution of deviation 0.02, biases 0), so that every factor begins
    near 0.5.

    Examples:
        >>> Calibration(32)(torch.zeros(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        for layer in (self.squeeze, self.excite):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, skip: Tensor) -> Tensor:
        """Map BxSxHxW to BxSxHxW."""
        factors = torch.sigmoid(self.excite(torch.relu(self.squeeze(skip.mean((-2, -1))))))
        return skip * factors[..., None, None]


def scales_of(skip_scale: str | float | Sequence[float]) -> list[float | str]:
    """Return a number, or "learned", for each level, finest first.

    "kappa" is the constant scaling of ScaleLong, kappa^(i - 1) for the i-th long skip. Their i counts from the input:
    the finest skip is left as it is, and the coarsest is scaled the most.

    Examples:
        >>> scales_of("learned"), [f"{scale:.3g}" for scale in scales_of("kappa")]
        (['learned', 'learned', 'learned', 'learned'], ['1', '0.7', '0.49', '0.343'])
    """
    if skip_scale == "kappa":
        return [KAPPA**level for level in range(LEVELS)]
    if isinstance(skip_scale, str | float | int):
        return [skip_scale] * LEVELS
    return [float(scale) for scale in skip_scale]


def make_scales(widths: Sequence[int], scales: Sequence[float | str]) -> list[nn.Module]:
    """Return what scales each level's long skip, finest first; at 1 it is no operation at all.

    Weights are drawn aside: whatever is drawn after them is the same as without them.

    Args:
        widths: S of each level; 0 where it has no features.
        scales: of each level, see `scales_of`.
    """
    with torch.random.fork_rng(devices=[]):
        return [
            nn.Identity() if scale == 1 or not width else Calibration(width) if scale == "learned" else Scaled(scale)  # type: ignore[arg-type]
            for width, scale in zip(widths, scales, strict=True)
        ]
