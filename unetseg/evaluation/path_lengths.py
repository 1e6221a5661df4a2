"""The path lengths of a trained ResNet's gradient over a data set: by how many residual branches it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unetseg.data.dataset import Batch
from unetseg.evaluation.statistics import rates_with_interval
from unetseg.model.segmenter import Segmenter


def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    criterion: nn.Module,
    split: Callable[..., Tensor],
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> tuple[np.ndarray, list[int]]:
    """Return the inner products of every picture's gradient terms, and the pictures' positions in their data set.

    The gradient is that of each picture's own loss at the input of the first residual block.

    Args:
        model: in eval mode, on `device`.
        batches: the pictures.
        criterion: the loss, in eval mode: maps logits 1xKxHxW and classes 1xHxW to a scalar.
        split: `gradients.path_lengths.gradient_by_path_length`.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.

    Returns:
        Nx(n+1)x2 float64: <g, g> and <c_k, g> of each of the N pictures and k = 0 ... n residual branches.
    """
    products, indices = [], []
    for batch in track(batches, "path lengths of the gradient"):
        for image, mask in zip(batch.images.split(1), batch.masks.split(1), strict=True):
            target = mask.to(device)

            def loss(logits: Tensor, target: Tensor = target) -> Tensor:
                value: Tensor = criterion(logits, target)
                return value

            terms = split(model.net, model.normalise(image.to(device)), loss)
            vectors = terms.flatten(1).cpu().double()
            whole = vectors.sum(0)
            products.append(torch.stack([(whole @ whole).expand(len(vectors)), vectors @ whole], dim=-1).numpy())
        indices += batch.indices.tolist()
    return np.stack(products), indices


def table(products: np.ndarray, groups: Sequence[str]) -> pd.DataFrame:
    """Return the share of the gradient, <c_k, g> / <g, g> over all pictures, by its number of residual branches k.

    `low` and `high` are the ends of the 95 % bootstrap interval over the pictures, or over groups where there are
    several: what other pictures would have shown of this one model. The shares sum to 1.

    Args:
        products: of `measure`.
        groups: of the N pictures.
    """
    share, low, high = rates_with_interval(products, groups)
    return pd.DataFrame({"residual_branches": range(len(share)), "share": share, "low": low, "high": high})
