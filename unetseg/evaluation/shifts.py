"""Shifts: what a trained model loses when pictures are noisy, blurred, pale, too bright or compressed.

Kinds and strengths are those of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to
common corruptions and perturbations"), applied to the square that the model sees. Each picture has noise of its own, by
its name: every model, and every strength, gets the same.

Legend: N images, C classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unetseg.data.dataset import Batch
from unetseg.data.view import View
from unetseg.evaluation.metrics import image_counts, scores
from unetseg.evaluation.statistics import interval, resampled_sums, sum_by_unit
from unetseg.evaluation.whole import answer
from unetseg.model.segmenter import Segmenter
from unetseg.names import cell

SHIFTS: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "speckle": (0.15, 0.2, 0.35, 0.45, 0.6),
    "blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "jpeg": (25, 18, 15, 10, 7),
}
"""The amounts of the strengths 1 ... 5.

noise, speckle: the standard deviation of what is added, and of what is multiplied with the picture and added, in 0..1.
blur: the standard deviation of a Gaussian in pixels of a picture whose longer side has BLUR_SIDE; of others in
proportion. contrast: by which the distance from each channel's mean is multiplied. brightness: what is added to the
value of HSV, in 0..1. jpeg: the quality, 0..100.
"""
BLUR_SIDE = 224
"""The side of ImageNet-C's pictures."""
STRENGTHS = 5
CONDITIONS = [("none", 0), *((shift, strength) for shift in SHIFTS for strength in range(1, STRENGTHS + 1))]
"""The picture as it is, and every shift at every strength."""
SCORES = ("iou", "boundary_iou")


def shifted(picture: np.ndarray, shift: str, amount: float, seed: int = 0) -> np.ndarray:
    """Return a picture after a shift.

    Args:
        picture: HxWx3 RGB in 0..255.
        shift: a key of SHIFTS.
        amount: see SHIFTS.
        seed: of noise and speckle.

    Returns:
        HxWx3 uint8.

    Examples:
        >>> shifted(np.full((1, 1, 3), 51, np.uint8), "brightness", 0.2).ravel()
        array([102, 102, 102], dtype=uint8)
    """
    if shift == "jpeg":
        whole = np.clip(picture, 0, 255).round().astype(np.uint8)
        _, code = cv2.imencode(".jpg", whole[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(amount)])
        return cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]
    values: np.ndarray = np.clip(picture / 255, 0, 1).astype(np.float32)
    match shift:
        case "noise" | "speckle":
            drawn = amount * np.random.default_rng(seed).standard_normal(values.shape, np.float32)
            values += drawn if shift == "noise" else values * drawn
        case "blur":
            sigma = amount * max(values.shape[:2]) / BLUR_SIDE
            length = 2 * int(4 * sigma + 0.5) + 1  # of four standard deviations to each side, as scikit-image's
            values = cv2.GaussianBlur(values, (length, length), sigma, borderType=cv2.BORDER_REPLICATE)
        case "contrast":
            means = values.mean((0, 1), keepdims=True)
            values = (values - means) * amount + means
        case "brightness":
            parts = cv2.cvtColor(values, cv2.COLOR_RGB2HSV)
            parts[..., 2] = np.clip(parts[..., 2] + amount, 0, 1)
            values = cv2.cvtColor(parts, cv2.COLOR_HSV2RGB)
        case _:
            raise ValueError(f"shift={shift!r}: accepted are {', '.join(SHIFTS)}")
    return (255 * np.clip(values, 0, 1)).round().astype(np.uint8)


def seed_of(name: str, shift: str) -> int:
    """Return the seed of a picture's noise, by its name: it is the same for every model."""
    return zlib.crc32(f"{shift} {name}".encode())


@dataclass(frozen=True)
class Shifted:
    """The counts under all shifts.

    Attributes:
        counts: 31xNxCx6 int64 pixels, as `metrics.image_counts` finds them, for each of CONDITIONS.
        indices: of the N images in their data set.
    """

    counts: Tensor
    indices: list[int]


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    names: Sequence[str],
    classes: int,
    view: View,
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> Shifted:
    """Count the pixels under every shift at every strength.

    Args:
        model: in eval mode, on `device`, of three channels.
        batches: of pictures in 0..255.
        names: of all pictures of the data set, by their indices.
        classes: C.
        view: how the model sees pictures.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.
    """
    counts: list[Tensor] = []
    indices: list[int] = []
    for batch in track(batches, f"{len(SHIFTS)} shifts at {STRENGTHS} strengths"):
        target = batch.masks.to(device)
        size = (target.shape[1], target.shape[2])
        pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        own = batch.indices.tolist()
        of_batch = []
        for shift, strength in CONDITIONS:
            images = batch.images
            if strength:
                amount = SHIFTS[shift][strength - 1]
                pairs = zip(pictures, own, strict=True)
                changed = [shifted(picture, shift, amount, seed_of(names[index], shift)) for picture, index in pairs]
                images = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)
            _, predicted = answer(model, images.to(device), view, size, batch_size=4)
            of_batch.append(image_counts(predicted, target, classes).cpu())
        counts.append(torch.stack(of_batch))
        indices += own
    return Shifted(torch.cat(counts, dim=1), indices)


def tables(found: Shifted, names: Sequence[str], groups: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return shift, the scores over the set and what each shift loses, and shift_per_image, those of each image.

    The intervals at 95 % are by bootstrap over the images, or over groups where there are several: they say what other
    images would have shown of this one model.

    Args:
        found: the counts.
        names: of the N images.
        groups: of the N images.
    """
    resampled = resampled_sums(sum_by_unit(found.counts.transpose(0, 1).numpy(), groups))
    draws = {name: value.numpy() for name, value in scores(torch.from_numpy(resampled)).items()}
    whole = {name: value.numpy() for name, value in scores(found.counts.sum(1)).items()}
    of_images = {name: value.numpy() for name, value in scores(found.counts).items()}
    rows, each = [], []
    for number, (shift, strength) in enumerate(CONDITIONS):
        amount = SHIFTS[shift][strength - 1] if strength else 0
        row: dict[str, Any] = {"shift": shift, "strength": strength, "amount": amount}
        for name in SCORES:
            low, high = interval(draws[name][:, 0] - draws[name][:, number])
            lost = whole[name][0] - whole[name][number]
            row |= {name: whole[name][number], f"{name}_loss": lost}
            row |= {f"{name}_loss_low": float(low), f"{name}_loss_high": float(high)}
        rows.append(row)
        own = {name: of_images[name][number] for name in SCORES}
        named = {"name": [*map(cell, names)], "group": [*map(cell, groups)]}
        each.append(pd.DataFrame({**named, "shift": shift, "strength": strength, **own}))
    return {"shift": pd.DataFrame(rows), "shift_per_image": pd.concat(each, ignore_index=True)}
