"""Score predicted masks at the pictures' own size, by numpy and scipy alone: it knows no training library.

    python scripts/contest/score.py TRUTHS PREDICTED --names test.txt --output FILE.json

TRUTHS and PREDICTED hold NAME.png with the class of each pixel; 255 in the truth counts for nothing. With two classes
the scores are class 1's, else the mean over the classes. For each picture and class four counts are written, of the
intersection and the union of the masks, and of their boundary bands (Boundary IoU, Cheng et al. 2021: pixels within 2 %
of the picture's diagonal of the mask's edge), so that any mean can be computed from the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_cdt

IGNORED = 255
BAND = 0.02


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask, HxW bool, within `width` pixels (chessboard) of one that isn't in it."""
    framed = np.pad(mask, 1)  # outside of the picture is not in the mask
    distance = distance_transform_cdt(framed, metric="chessboard")
    return ((distance > 0) & (distance <= width))[1:-1, 1:-1]


def counts(truth: np.ndarray, predicted: np.ndarray, classes: list[int]) -> list[list[int]]:
    """Return intersection, union, and those of the bands, of each class."""
    known = truth != IGNORED
    width = max(1, round(BAND * float(np.hypot(*truth.shape))))
    filled = np.where(known, truth, predicted)  # ignored pixels make no edge between the two
    rows = []
    for label in classes:
        first, second = filled == label, predicted == label
        pairs = [(first, second), (band(first, width), band(second, width))]
        rows.append([int(value) for a, b in pairs for value in ((a & b & known).sum(), ((a | b) & known).sum())])
    return rows


def by_picture(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU and Boundary IoU of each picture, N, of NxCx4 counts; nan where a picture has no class."""
    with np.errstate(invalid="ignore"):  # 0 / 0: the class is in neither mask
        shares = np.ma.masked_invalid(rows[..., ::2] / rows[..., 1::2])
    return dict(zip(("iou", "boundary_iou"), shares.mean(axis=1).filled(np.nan).T, strict=True))


def summary(rows: np.ndarray) -> dict[str, float]:
    """Return the scores of NxCx4 counts: over the set, by picture, and of the boundaries over the set."""
    total = rows.sum(0)
    present = total[:, 1] > 0
    return {
        "iou": float((total[present, 0] / total[present, 1]).mean()),
        "iou_per_image": float(np.nanmean(by_picture(rows)["iou"])),
        "boundary_iou": float((total[present, 2] / total[present, 3]).mean()),
    }


def score(truths: Path, masks: Path, names: list[str], classes: int) -> dict[str, object]:
    """Return the counts and the scores of the named pictures."""
    labels = [1] if classes == 2 else [*range(classes)]
    rows = []
    for name in names:
        truth, predicted = (np.asarray(Image.open(folder / f"{name}.png")) for folder in (truths, masks))
        if truth.shape != predicted.shape:
            raise SystemExit(f"{name}: truth {truth.shape}, predicted {predicted.shape}")
        rows.append(counts(truth, predicted, labels))
    return {**summary(np.array(rows)), "names": names, "counts": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truths", type=Path)
    parser.add_argument("predicted", type=Path)
    parser.add_argument("--names", type=Path, required=True, help="a file of names, a line each")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    result = score(args.truths, args.predicted, args.names.read_text().split(), args.classes)
    args.output.write_text(json.dumps(result))
    print(" ".join(f"{name}={result[name]:.4f}" for name in ("iou", "iou_per_image", "boundary_iou")))


if __name__ == "__main__":
    main()
