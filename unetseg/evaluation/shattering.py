"""Shattered gradients (Balduzzi et al. 2017): how alike the gradients of neighbouring inputs are, by depth.

The input moves in a straight line from one picture to another. At every point the gradient of one number of the output
is taken with respect to the features of every depth. Where it changes like white noise from point to point, a step that
helps here says nothing of there.

Legend: T points of a line, P lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unetseg.evaluation.statistics import jackknife
from unetseg.model.decoder import Decoder
from unetseg.model.segmenter import Segmenter

LINES = 8
"""Lines, each between two pictures of the split."""
POINTS = 64
"""Points of a line, both ends included."""
ENTRIES = 4096
"""Entries of the features of a depth, drawn by a seed, whose gradients are compared."""
AT_ONCE = 8
"""Points in a forward and a backward pass."""


def features_by_depth(model: Segmenter, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the network's parts hand on, from the input to the decoder's last level, and the logits, BxKxHxW.

    Args:
        model: on the images' device.
        images: BxCxHxW, normalised.

    Returns:
        BxDxhxw by input, stem, encoder1 ... encoder4 and, of the U-Net's own decoder, decoder4 ... decoder1, the names
        of the blocks; parts without channels are left out.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> parts, _ = features_by_depth(model, torch.zeros(1, 3, 32, 32))
        >>> [*parts][-3:], parts["stem"].shape
        (['decoder3', 'decoder2', 'decoder1'], torch.Size([1, 64, 16, 16]))
    """
    features = list(model.net.encoder(images))
    logits, nodes = model.net.decode(features, with_nodes=True)
    parts = dict(zip(("input", "stem", *(f"encoder{number}" for number in range(1, 5))), features, strict=True))
    if isinstance(model.net.decoder, Decoder):
        parts |= {f"decoder{len(nodes) - number}": node for number, node in enumerate(nodes)}
    return {name: part for name, part in parts.items() if part.shape[1]}, logits


def measure(
    model: Segmenter,
    images: Tensor,
    *,
    track: Callable[..., Iterable[Any]] = lambda sequence, description: sequence,
) -> pd.DataFrame:
    """Return the autocorrelation of the gradients at every depth, see `table`.

    The gradient is that of the mean logit over all pixels, of the last class where there are several. It comes back as
    it does in training, by what the long skips let through.

    Args:
        model: in eval mode.
        images: 2PxCxHxW, on the model's device: the ends of line l are pictures l and P + l.
        track: wraps a sequence, with a description, to show a progress bar.
    """
    lines = len(images) // 2
    shares = torch.linspace(0, 1, POINTS, device=images.device).view(-1, 1, 1, 1)
    products: dict[str, list[Tensor]] = {}
    for line in track(range(lines), "gradients from picture to picture"):
        start, end = (model.normalise(images[place : place + 1]) for place in (line, lines + line))
        gradients: dict[str, list[Tensor]] = {}
        for share in shares.split(AT_ONCE):
            features, logits = features_by_depth(model, (start + share * (end - start)).requires_grad_())
            output = logits[:, -1].mean((1, 2)).sum()  # the points don't see each other
            found = torch.autograd.grad(output, list(features.values()), allow_unused=True)
            for depth, gradient in zip(features, found, strict=True):
                if gradient is not None:  # a feature that nothing reads has none
                    gradients.setdefault(depth, []).append(_some(gradient.flatten(1)))
        for depth, parts in gradients.items():
            vectors = torch.cat(parts)
            products.setdefault(depth, []).append(vectors @ vectors.T)
    return table({depth: torch.stack(own).numpy() for depth, own in products.items()})


def _some(vectors: Tensor) -> Tensor:
    """Return ENTRIES columns of TxN vectors, the same ones every time, in double precision on the CPU."""
    chosen = torch.randperm(vectors.shape[1], generator=torch.Generator().manual_seed(0))[:ENTRIES]
    return vectors[:, chosen.to(vectors.device)].cpu().double()


def table(products: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return by depth and lag how alike vectors are that are so many points apart, pooled over P lines.

    Args:
        products: PxTxT inner products of the T vectors of each line, by depth.

    Returns:
        depth, lag (0 ... T/2 points), and, each with its 95 % interval by the jackknife over the lines: `acf`, the
        autocorrelation, from which the vectors' mean over their line is taken away, nan where all are equal; and
        `cosine`, from which it isn't: 1 where they are all equal.
    """
    rows = []
    for depth, own in products.items():
        columns = {"acf": _acf_sums(own), "cosine": _cosine_sums(own)}
        numbers: dict[str, np.ndarray] = {}
        for name, sums in columns.items():
            whole = _ratio(sums.sum(0))
            half = jackknife(np.stack([_ratio(np.delete(sums, line, 0).sum(0)) for line in range(len(sums))]))
            numbers |= {name: whole, f"{name}_low": whole - half, f"{name}_high": whole + half}
        rows.append(pd.DataFrame({"depth": depth, "lag": range(len(whole)), **numbers}))
    return pd.concat(rows, ignore_index=True)


def _acf_sums(products: np.ndarray) -> np.ndarray:
    """Return the sums over pairs of a lag, of vectors less their mean, and over all points: PxLx2."""
    means = products.mean(-1, keepdims=True)
    centred = products - means - means.swapaxes(-1, -2) + means.mean(-2, keepdims=True)
    rounding = 1e-12 * np.abs(products).max((-1, -2), keepdims=True)
    centred = np.where(np.abs(centred).max((-1, -2), keepdims=True) > rounding, centred, 0.0)
    pairs = _diagonals(centred)
    return np.stack(np.broadcast_arrays(pairs, pairs[:, :1]), -1)


def _cosine_sums(products: np.ndarray) -> np.ndarray:
    """Return the sums over pairs of a lag, and the sums of both ones' mean square: PxLx2."""
    squares = np.diagonal(products, axis1=-2, axis2=-1)
    return np.stack([_diagonals(products), _diagonals((squares[:, :, None] + squares[:, None, :]) / 2)], -1)


def _diagonals(products: np.ndarray) -> np.ndarray:
    """Return the sum of each diagonal, from the middle one to that of half the points: PxL."""
    lags = range(products.shape[-1] // 2 + 1)
    return np.stack([np.trace(products, offset=lag, axis1=-2, axis2=-1) for lag in lags], -1)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Return the first of each pair through the second; nan where that is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(len(sums), np.nan), where=sums[..., 1] > 0)


def expected_acf(kind: str, points: int) -> np.ndarray:
    """Return the autocorrelation, by lag, of so many points of white noise, or of a random walk (brown noise).

    It is what `table` finds of very many of them. For white noise it is -1/T and less at most lags, and not 0, as the
    mean is that of the points themselves.
    """
    steps = np.arange(1, points + 1)
    products = np.eye(points) if kind == "white" else np.minimum(steps[:, None], steps).astype(float)
    return _ratio(_acf_sums(products[None])[0])
