"""Segmentation metrics from counts of pixels, summed first and divided once.

Every number comes from `image_counts`: whole pixels per image and class. A data set's IoU divides the sums over all its
images; a mean of batch values would weigh pictures by the batch that they are in.

Legend: B images, C classes, H x W pixels. Pixels whose target is IGNORE are never counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from unetseg.evaluation.statistics import rates_with_interval
from unetseg.names import IGNORE

if TYPE_CHECKING:
    import pandas as pd

COUNTS = ("intersection", "predicted", "true", "boundary_intersection", "boundary_predicted", "boundary_true")
"""The counts of each image and class: pixels of the masks, then pixels of their boundary bands."""

BOUNDARY_RATIO = 0.02
"""Width of the boundary band as a share of the image's diagonal (Cheng et al. 2021, Boundary IoU)."""

EDGE_DISTANCES = (1, 2, 4, 8, 16, 32)
"""Upper limits, in pixels, of the bands in which errors are counted; pixels farther away are one more band."""


def image_counts(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count each image's pixels.

    Args:
        predicted: BxHxW integers, 0 ... C-1.
        target: BxHxW integers, 0 ... C-1 or IGNORE.
        classes: C.

    Returns:
        BxCx6 int64 in the order of COUNTS.
    """
    height, width = target.shape[-2:]
    radius = max(1, round(BOUNDARY_RATIO * (height**2 + width**2) ** 0.5))
    valid = target != IGNORE
    index = torch.arange(classes, device=target.device).view(1, -1, 1, 1)
    own = [labels.unsqueeze(1) == index for labels in (predicted, target)]
    # eroded before ignored pixels are left out, so that these make no edge; in the target they count as every class
    cores = [erode(own[0], radius), erode(own[1] | ~valid.unsqueeze(1), radius)]
    masks = [mask & valid.unsqueeze(1) for mask in own]
    bands = [mask & ~core for mask, core in zip(masks, cores, strict=True)]
    pairs = [(a & b, a, b) for a, b in (masks, bands)]
    # in 32 bits, for a picture has fewer than 2**31 pixels: for 64 the booleans are copied eight times as large first
    areas = [area.flatten(-2).sum(-1, dtype=torch.int32) for pair in pairs for area in pair]
    return torch.stack(areas, dim=-1).long()


def confusion(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count the pixels of each true class (rows) by the class that is predicted (columns): CxC int64.

    Args:
        predicted: BxHxW integers, 0 ... C-1.
        target: BxHxW integers, 0 ... C-1 or IGNORE.
        classes: C.
    """
    valid = target != IGNORE
    cells = target[valid].long() * classes + predicted[valid].long()
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def class_table(counts: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return the scores of each class over a set, in 0..1; nan where a class is neither there nor predicted.

    Args:
        counts: NxCx6 counts of N images in the order of COUNTS.
        names: of the C classes.

    Returns:
        A row for each class: class, iou, dice, boundary_iou, precision (share of the predicted pixels that are right),
        recall (share of the true pixels that are found), pixels (true ones), images (that have any of them).
    """
    import pandas as pd

    total = counts.sum(0, dtype=np.float64)
    intersection, predicted, true, *boundary = total.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "class": list(names),
                "iou": intersection / (predicted + true - intersection),
                "dice": 2 * intersection / (predicted + true),
                "boundary_iou": boundary[0] / (boundary[1] + boundary[2] - boundary[0]),
                "precision": intersection / predicted,
                "recall": intersection / true,
                "pixels": true.astype(np.int64),
                "images": (counts[..., COUNTS.index("true")] > 0).sum(0),
            }
        )


def edge_bands(target: Tensor, classes: int) -> Tensor:
    """Return the band of EDGE_DISTANCES of each pixel, BxHxW int64: 0 ... 6, and 7 where the target is IGNORE.

    The distance to the edge is the distance to the nearest pixel of another class: 1 for a pixel beside it. It is taken
    in the chessboard metric (the larger of the steps across and down), as in the bands of Boundary IoU. The border of
    the picture and ignored pixels are no edge; a picture of one class lies in the last band.

    Args:
        target: BxHxW integers, 0 ... C-1 or IGNORE.
        classes: C.
    """
    index = torch.arange(classes, device=target.device).view(1, -1, 1, 1)
    own = target.unsqueeze(1) == index
    free_of_others = own | (target == IGNORE).unsqueeze(1)
    bands = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
    for distance in EDGE_DISTANCES:
        bands += (erode(free_of_others, distance, outside=True) & own).any(1)
    return torch.where(target == IGNORE, len(EDGE_DISTANCES) + 1, bands)


def errors_by_band(predicted: Tensor, target: Tensor, bands: Tensor) -> Tensor:
    """Count the pixels and the wrong pixels of each image and band: from BxHxW each to Bx7x2 int64."""
    count = len(EDGE_DISTANCES) + 2
    images = torch.arange(len(bands), device=bands.device).view(-1, 1, 1)
    cells = (images * count + bands).flatten()
    wrong = cells[(predicted != target).flatten()]
    counts = [torch.bincount(index, minlength=len(bands) * count).view(-1, count)[:, :-1] for index in (cells, wrong)]
    return torch.stack(counts, dim=-1)


def edge_table(counts: np.ndarray, groups: Sequence[str]) -> pd.DataFrame:
    """Return the error rate by distance to the edge, with its interval over images, or over groups if there are any.

    Args:
        counts: Nx7x2 pixels and errors of each image and band.
        groups: of the N images.
    """
    import pandas as pd

    pixels, errors = counts.sum(0).T
    rate, low, high = rates_with_interval(counts, groups)
    return pd.DataFrame(
        {
            "from_px": [1, *(limit + 1 for limit in EDGE_DISTANCES)],
            "to_px": [*EDGE_DISTANCES, math.inf],
            "pixels": pixels,
            "errors": errors,
            "error_rate": rate,
            "error_rate_low": low,
            "error_rate_high": high,
        }
    )


def erode(mask: Tensor, radius: int, outside: bool = False) -> Tensor:
    """Erode ...xHxW booleans by a square of side 2 * radius + 1; pixels outside the image count as `outside`.

    The same as `radius` erosions by 3x3, as in the reference code of Boundary IoU. A window of n is the conjunction of
    two windows of n/2, so log2(n) passes over the booleans are enough: fifty times faster than max-pooling here.
    """
    side = 2 * radius + 1
    for dim, padding in ((-2, (0, 0, radius, radius)), (-1, (radius, radius))):
        mask = F.pad(mask, padding, value=outside)
        window = 1
        while window < side:
            step = min(window, side - window)
            length = mask.shape[dim] - step
            mask = mask.narrow(dim, 0, length) & mask.narrow(dim, step, length)
            window += step
    return mask


def scores(counts: Tensor) -> dict[str, Tensor]:
    """Turn counts, ...xCx6, into iou, dice and boundary_iou, each of shape ... in 0..1 (float64).

    With two classes these are the scores of class 1, the foreground; with more, the mean over the classes that occur in
    the prediction or in the target. Where no class occurs (an image without foreground, predicted as such) a score is
    1, as in smp; where no pixel is counted (all are ignored) it is nan.
    """
    counts = counts.double()
    uncounted = counts[..., COUNTS.index("true")].sum(-1) == 0
    if counts.shape[-2] == 2:
        counts = counts[..., 1:, :]
    intersection, predicted, true, *boundary = counts.unbind(-1)
    means = {
        "iou": _mean_over_classes(intersection, predicted + true - intersection),
        "dice": _mean_over_classes(2 * intersection, predicted + true),
        "boundary_iou": _mean_over_classes(boundary[0], boundary[1] + boundary[2] - boundary[0]),
    }
    return {name: value.masked_fill(uncounted, math.nan) for name, value in means.items()}


def _mean_over_classes(part: Tensor, whole: Tensor) -> Tensor:
    """Return the mean of part / whole, ...xC, over the classes whose whole isn't 0, and 1 where there are none."""
    occurs = whole > 0
    ratio = torch.where(occurs, part / whole.clamp(min=1), 0.0)
    return torch.where(occurs.any(-1), ratio.sum(-1) / occurs.sum(-1).clamp(min=1), 1.0)


class SegmentationScores(Metric):
    """A data set's scores: sums of counts over images, batches and processes.

    Args:
        classes: C.

    Examples:
        >>> predicted, target = torch.tensor([[[1, 1], [0, 0]]]), torch.tensor([[[1, 0], [0, 0]]])
        >>> metric = SegmentationScores(classes=2)
        >>> metric.update(image_counts(predicted, target, classes=2))
        >>> metric.compute()["iou"].item()
        0.5
    """

    full_state_update = False
    counts: Tensor
    iou_sum: Tensor
    images: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.add_state("counts", torch.zeros(classes, len(COUNTS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Add the BxCx6 counts of some images."""
        self.counts += counts.sum(0)
        iou = scores(counts)["iou"]
        self.iou_sum += iou.nansum()
        self.images += (~iou.isnan()).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return iou, dice and boundary_iou over all pixels, and iou_per_image, the mean over the images with a score.

        All are nan where no pixel of any image is counted.
        """
        return {**scores(self.counts), "iou_per_image": self.iou_sum / self.images}
