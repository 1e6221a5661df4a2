"""Train, evaluate and predict on real sets, and compare evaluate's score of each picture with that of predict's mask.

python scripts/real_sets.py SETS PETS [--images 40]

SETS holds camvid/ (street scenes, eleven classes and void) and em/ (electron microscopy, which becomes 16 bits here),
PETS the Oxford-IIIT Pet layout, of which photographs are stored turned, with EXIF tags that turn them back. Each set is
written as a folder of one's own pictures, trained on for two epochs at 64 px, evaluated, and predicted as the squares
that the model is scored on. IoU is computed here from predict's masks by plain loops. The status is 1 if a picture's
two scores differ by more than 1e-6. On two cores this takes 4 minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from unetseg.data.folder import value_table
from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.transforms import Transform
from unetseg.data.view import View

SIZE = 64
TOLERANCE = 1e-6
STREET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
Pair = tuple[Image.Image, Image.Image, dict[str, object]]
"""A picture and its mask, and how the picture is saved."""


def street(sets: Path) -> Iterator[Pair]:
    """Yield CamVid's pictures; mask value 11 is void."""
    for path in sorted((sets / "camvid/train").glob("*.png")):
        yield Image.open(path), Image.open(sets / "camvid/trainannot" / path.name), {}


def microscopy(sets: Path) -> Iterator[Pair]:
    """Yield the slices as grey of 16 bits, whose upper 12 are in use, and membranes as class 1."""
    for path in sorted((sets / "em/image").glob("*.png")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        membrane = np.asarray(Image.open(sets / "em/label" / path.name).convert("L")) < 128
        for top in (0, 256):  # halves: there are only 30 slices
            part = slice(top, top + 256)
            yield Image.fromarray(grey[part] * 257 & 0xFFF0), Image.fromarray(membrane[part].astype(np.uint8)), {}


def photographs(pets: Path) -> Iterator[Pair]:
    """Yield pets in each of EXIF's eight orientations; the masks lie on what a viewer shows."""
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    for number, path in enumerate(sorted((pets / "images").glob("*.jpg"))):
        orientation = number % 8 + 1
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.open(path).convert("RGB")
        if orientation > 1:
            turning = Image.Exif()
            turning[0x0112] = back[orientation]
            picture.info["exif"] = turning.tobytes()
            picture = ImageOps.exif_transpose(picture)
        trimap = np.asarray(Image.open(pets / "annotations/trimaps" / f"{path.stem}.png"))
        yield picture, Image.fromarray((trimap != 2).astype(np.uint8)), {"exif": exif}


def write(root: Path, pairs: Iterator[Pair], count: int, ending: str) -> None:
    """Write pictures and masks as a folder of one's own."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number, (picture, mask, options) in zip(range(count), pairs, strict=False):
        picture.save(root / f"images/p{number:03}{ending}", **options)
        mask.save(root / f"masks/p{number:03}.png")


def command(name: str, *overrides: str) -> None:
    """Run a command of unetseg; end with its output where it fails."""
    done = subprocess.run([sys.executable, "-m", f"unetseg.{name}", *overrides], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"unetseg.{name} {' '.join(overrides)}\n{done.stdout}{done.stderr}")


def iou(predicted: np.ndarray, target: np.ndarray, classes: int) -> float:
    """Return a picture's IoU: of class 1 with two classes, else the mean over those that occur; 255 doesn't count."""
    counts = target != 255
    ratios = []
    for label in [1] if classes == 2 else range(classes):
        ours, truth = (predicted == label) & counts, (target == label) & counts
        if (ours | truth).any():
            ratios.append((ours & truth).sum() / (ours | truth).sum())
    return float(np.mean(ratios)) if ratios else 1.0


def compare(folder: Path, root: Path, classes: tuple[str, ...], ignore: int | None) -> float:
    """Train, evaluate and predict; return the largest difference of a picture's two scores."""
    data = ["data=folder", f"data.root={root}", f"data.classes=[{','.join(classes)}]", f"data.size={SIZE}"]
    data += [f"data.ignore_index={'null' if ignore is None else ignore}", "data.workers=0"]
    model = ["model.encoder=resnet18", "model.weights=null", "optimizer.lr=1e-3", "loss=dice", "trainer.max_epochs=2"]
    run = folder / "run"
    quiet = ["logger=csv", "trainer.enable_progress_bar=false"]
    command("train", *data, *model, *quiet, f"output={folder}", "name=run", "data.batch_size=4")
    command("evaluate", f"checkpoint={run}", "data.batch_size=1", f"output={folder / 'scores'}")
    precision = json.loads((folder / "scores/summary.json").read_text())["precision"]
    scores = pd.read_csv(folder / "scores/per_image.csv", dtype={"name": str}).set_index("name").iou

    resize, values = Transform(View(SIZE), augment=False).resize, value_table(len(classes), ignore)
    (folder / "squares").mkdir()
    targets = {}
    for name in scores.index:
        image = next((root / "images").glob(f"{name}.*"))
        square, targets[name] = resize(read_image(image), read_mask(root / f"masks/{name}.png", values))
        Image.fromarray(square).save(folder / f"squares/{name}.png")
    number_format = "bfloat16" if precision == "bf16-mixed" else "float32"
    images = [f"images={folder / 'squares'}", f"output={folder / 'masks'}", f"precision={number_format}"]
    command("predict", f"checkpoint={run}", *images)
    ours = {n: iou(np.asarray(Image.open(folder / f"masks/{n}.png")), t, len(classes)) for n, t in targets.items()}
    return float((scores - pd.Series(ours)).abs().max())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("pets", type=Path)
    parser.add_argument("--images", type=int, default=40, help="pictures of each set")
    options = parser.parse_args()
    kinds: dict[str, tuple[Callable[[], Iterator[Pair]], str, tuple[str, ...], int | None]] = {
        "street scenes, 11 classes and void": (lambda: street(options.sets), ".png", STREET, 11),
        "microscopy, 16-bit grey": (lambda: microscopy(options.sets), ".png", ("cell", "membrane"), None),
        "photographs with EXIF tags": (lambda: photographs(options.pets), ".jpg", ("background", "pet"), None),
    }
    worst = 0.0
    for name, (pairs, ending, classes, ignore) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            write(root, pairs(), options.images, ending)
            difference = compare(Path(folder), root, classes, ignore)
        print(f"{name}: evaluate and predict differ by at most {difference:.1e} in a picture's IoU")
        worst = max(worst, difference)
    sys.exit(1 if not worst <= TOLERANCE else 0)


if __name__ == "__main__":
    main()
