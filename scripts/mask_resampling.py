"""Which way to resize masks keeps them where their pictures lie, and closest to what they were.

    python scripts/mask_resampling.py PETS [--sizes 64 128 256]

PETS has the official layout; its trimaps are taken at their own size. Three ways are compared: the corner of each cell
(cv2.INTER_NEAREST), its centre (INTER_NEAREST_EXACT, which PIL's NEAREST gives too) and the class of most of its area.
Agreement is that with the area majority, as the mean IoU and Boundary IoU over the masks; back at full size is the IoU
with the mask at its own size, after the resized one was enlarged as predict enlarges probabilities; the shift is that
of discs of 512 px against their resized picture, in pixels of the result, the mean of both axes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from unetseg.data.tiling import enlarge
from unetseg.data.transforms import resize_image, resize_mask
from unetseg.evaluation.metrics import image_counts, scores

Resize = Callable[[np.ndarray, int], np.ndarray]
WAYS: dict[str, Resize] = {
    "corner": lambda mask, size: cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST),
    "centre": lambda mask, size: cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT),
    "centre, by PIL": lambda mask, size: np.asarray(Image.fromarray(mask).resize((size, size), Image.NEAREST)),
    "most of the area": lambda mask, size: resize_mask(mask, size, size),
}


def scores_of(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return the scores of one mask, HxW of 0 and 1, against another."""
    counts = image_counts(torch.from_numpy(predicted[None].copy()), torch.from_numpy(target[None].copy()), 2)
    return {name: value.item() for name, value in scores(counts[0]).items()}


def at_full_size(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return SxS of 0 and 1 as the HxW mask of probabilities that were sure of it."""
    planes = np.stack([1 - mask, mask]).astype(np.float32)
    return (np.concatenate(list(enlarge(planes, height, width)))[..., 1] > 0.5).astype(np.uint8)


def shift(resize: Resize, size: int) -> float:
    """Return how far right of and below their pictures the masks of discs lie."""
    rows, columns = np.mgrid[:512, :512]
    found = []
    for number in range(20):
        rng = np.random.default_rng(number)
        (x, y), radius = rng.uniform(0.35, 0.65, 2) * 512, rng.uniform(0.1, 0.25) * 512
        disc = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)
        picture, mask = resize_image(255 * disc, size, size).astype(float), resize(disc, size).astype(float)
        places = np.arange(size)
        centres = [
            [(weights.sum(axis) * places).sum() / weights.sum() for axis in (0, 1)] for weights in (picture, mask)
        ]
        found.append(np.mean(np.subtract(centres[1], centres[0])))
    return float(np.mean(found))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in the official Oxford-IIIT Pet layout")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--masks", type=int, default=300)
    args = parser.parse_args()
    files = sorted((args.root / "annotations/trimaps").glob("*.png"))[: args.masks]
    masks = [(np.asarray(Image.open(file)) != 2).astype(np.uint8) for file in files]
    print(f"{len(masks)} masks of Oxford-IIIT Pet, pet and boundary against background\n")
    print("| px | way | IoU with the majority | Boundary IoU with it | IoU back at full size | shift | ms a mask |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        best = [resize_mask(mask, size, size) for mask in masks]
        for name, resize in WAYS.items():
            begin = time.perf_counter()
            resized = [resize(mask, size) for mask in masks]
            each = 1000 * (time.perf_counter() - begin) / len(masks)
            near = [scores_of(*pair) for pair in zip(resized, best, strict=True)]
            full = [
                scores_of(at_full_size(small, *mask.shape), mask)["iou"]
                for small, mask in zip(resized, masks, strict=True)
            ]
            numbers = [np.mean([one[key] for one in near]) for key in ("iou", "boundary_iou")]
            print(
                f"| {size} | {name} | {numbers[0]:.4f} | {numbers[1]:.4f} | {np.mean(full):.4f} "
                f"| {shift(resize, size):+.3f} | {each:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
