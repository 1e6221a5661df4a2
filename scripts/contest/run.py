"""Our recipe against others at equal encoder, batch, steps and size, on three real sets; scored by score.py.

    python scripts/contest/run.py WORK --pets PETS --sets SETS --weights resnet50_imagenet.safetensors

WORK gets the sets as folders, a run a recipe, set and seed, and results/*.json, with the counts of each picture. The
scores go into docs/contest/scores.jsonl, a line a run with each picture's, so that any machine can go on: what is
there is not run again; page.py draws and tells them.
A recipe is one of rivals.py's, ours, or ours with a change: VARIANTS, OF_BEST, BY_NEAREST. The defaults are
3 sets x 3 recipes x 5 seeds, resnet50 with ImageNet's weights, 128 px, batches of 16, about 230 steps, bfloat16. A run
took five to eleven minutes of one of two busy cores with AMX; where there is a GPU all recipes train on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from PIL import Image
from score import by_picture, score

from unetseg.data.transforms import resize_image
from unetseg.runs.summary import provenance

HERE = Path(__file__).parent
KEPT = HERE.parents[1] / "docs/contest/scores.jsonl"
SCORES = ("iou", "iou_per_image", "boundary_iou")
Cell = tuple[str, str, int, int, int, str]
"""Set, recipe, seed, size, epochs and precision."""
STREET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
Example = tuple[str, str, Image.Image, np.ndarray]
"""Split, name, picture, and truth, HxW uint8."""
ONE_RATE = ("optimizer.lr=2e-4", "optimizer.encoder_lr_factor=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "one_rate": ONE_RATE,
    "one_high_rate": ("optimizer.encoder_lr_factor=1",),
    "no_augmentation": ("data.augment=false",),
    "strong_augmentation": ("data.augment=strong",),
    "poly": ("optimizer.schedule=poly",),
    "warmup": ("optimizer.warmup_epochs=1",),
    "ema": ("optimizer.ema=0.957",),
    "dice_ce": ("loss={dice:1,cross_entropy:1}",),
    "corner_masks": (),
}
"""Options beside our defaults. The average of ema is over a tenth of the steps; corner_masks trains on `shrunk`."""
OF_BEST = {"best": "ours", "before": "one_rate"}
"""Variants that take best.ckpt of another one's training: checkpoint.choose=best. `before`: the rates and the choice
of 0.1."""
BY_NEAREST = {"nearest": "ours"}
"""Variants of another one's training whose masks are predicted at the network's size, and enlarged by their nearest
pixels; ours enlarges probabilities."""
OF_ANOTHER = OF_BEST | BY_NEAREST
LOCKS: defaultdict[Path, Lock] = defaultdict(Lock)
"""Of folders that two cells may need."""


def pets(root: Path) -> Iterator[Example]:
    """Yield Oxford-IIIT Pet's pictures; the boundary is pet, each tenth of the training list validates."""
    for split in ("trainval", "test"):
        lines = (root / f"annotations/{split}.txt").read_text().splitlines()
        for number, name in enumerate(line.split()[0] for line in lines):
            own = "test" if split == "test" else "val" if number % 10 == 0 else "train"
            trimap = np.asarray(Image.open(root / f"annotations/trimaps/{name}.png"))
            yield own, name, Image.open(root / f"images/{name}.jpg").convert("RGB"), (trimap != 2).astype(np.uint8)


def camvid(root: Path) -> Iterator[Example]:
    """Yield CamVid's pictures of eleven classes; void is ignored."""
    for split in ("train", "val", "test"):
        for path in sorted((root / f"camvid/{split}").glob("*.png")):
            truth = np.array(Image.open(root / f"camvid/{split}annot" / path.name))
            yield split, path.stem, Image.open(path).convert("RGB"), np.where(truth == 11, 255, truth).astype(np.uint8)


def nuclei(root: Path) -> Iterator[Example]:
    """Yield the Data Science Bowl's pictures: of four the last is for the test, of the others each sixth validates."""
    for number, folder in enumerate(sorted((root / "nuclei/stage1_train").iterdir())):
        split = "test" if number % 4 == 3 else "val" if number % 8 == 0 else "train"
        objects = [np.asarray(Image.open(path).convert("L")) > 0 for path in sorted((folder / "masks").glob("*.png"))]
        picture = Image.open(next((folder / "images").glob("*.png"))).convert("RGB")
        yield split, folder.name[:12], picture, np.any(objects, axis=0).astype(np.uint8)


SETS: dict[str, tuple[Callable[[Path], Iterator[Example]], int, tuple[str, ...]]] = {
    "pets": (pets, 10, ("background", "pet")),
    "camvid": (camvid, 40, STREET),
    "nuclei": (nuclei, 80, ("background", "nucleus")),
}
"""Each set's pictures, epochs and classes."""


def prepare(folder: Path, examples: Iterator[Example]) -> None:
    """Write a set as images/, masks/, lists of names, and the test pictures once more in test/."""
    if (folder / "test.txt").exists():
        return
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part in ("images", "masks", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, name, picture, truth in examples:
        picture.save(folder / f"images/{name}.png")
        Image.fromarray(truth).save(folder / f"masks/{name}.png")
        names[split].append(name)
        link = folder / f"test/{name}.png"
        if split == "test" and not link.exists():
            link.symlink_to(Path("..") / f"images/{name}.png")
    for split, own in names.items():  # test.txt last: it says that the set is whole
        (folder / f"{split}.txt").write_text("\n".join(own) + "\n")


def shrunk(folder: Path, size: int) -> Path:
    """Return the set with its pictures resized as we do, and its masks by each cell's corner, as version 0.1 did."""
    small = folder.with_name(f"{folder.name}_{size}px")
    with LOCKS[small]:
        if not (small / "test.txt").exists():
            for path in (file for part in ("images", "masks", "test") for file in sorted((folder / part).iterdir())):
                own = np.array(Image.open(path))
                if path.parent.name == "masks":
                    own = cv2.resize(own, (size, size), interpolation=cv2.INTER_NEAREST)
                else:
                    own = resize_image(own, size, size)
                to = small / path.relative_to(folder)
                to.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(own).save(to)
            for name in ("train.txt", "val.txt", "test.txt"):
                (small / name).write_text((folder / name).read_text())
    return small


def kept() -> dict[Cell, dict[str, float]]:
    """Return the scores that are kept, by cell."""
    lines = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    return {tuple(own[key] for key in ("set", "recipe", "seed", "size", "epochs", "precision")): own for own in lines}


def run(work: Path, cell: tuple[str, str, int], args: argparse.Namespace) -> None:
    """Train, predict and score a cell, and keep its scores, unless that was done before."""
    name, recipe, seed = cell
    result = work / "results" / f"{name}_{recipe}_{seed}_{args.size}px_{args.precision}.json"
    epochs, classes = args.epochs or SETS[name][1], SETS[name][2]
    if (*cell, args.size, epochs, args.precision) in kept():
        return
    began = time.monotonic()
    folder, masks = work / "sets" / name, work / "masks" / result.stem
    if recipe in VARIANTS or recipe in OF_ANOTHER:
        own = train(work, (name, OF_ANOTHER.get(recipe, recipe), seed), epochs, args)
        checkpoint = own / "checkpoints" / ("best.ckpt" if recipe in OF_BEST else "last.ckpt")
        pictures = (shrunk(folder, args.size) if recipe in BY_NEAREST else folder) / "test"
        python("-m", "unetseg.predict", f"checkpoint={checkpoint}", f"images={pictures}", f"output={masks}")
        for path in masks.glob("*.png") if recipe in BY_NEAREST else ():
            own_size = Image.open(folder / "test" / path.name).size
            Image.open(path).resize(own_size, Image.Resampling.NEAREST).save(path)
    else:
        given = {"weights": args.weights, "classes": len(classes), "epochs": epochs, "seed": seed, "size": args.size}
        given |= {"precision": args.precision}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        python(str(HERE / "rivals.py"), recipe, str(folder), "--output", str(masks), *words)
    found = score(folder / "masks", masks, (folder / "test.txt").read_text().split(), len(classes))
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found))
    scores = {key: round(found[key], 5) for key in SCORES}
    line = {"set": name, "recipe": recipe, "seed": seed, "size": args.size, "epochs": epochs}
    pictures = {key: own.round(4).tolist() for key, own in by_picture(np.array(found["counts"])).items()}
    line |= {"precision": args.precision, **scores, "pictures": pictures}
    line |= {"minutes": round((time.monotonic() - began) / 60, 2), "machine": provenance()["machine"]}
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(result.stem, " ".join(f"{key} {value:.4f}" for key, value in scores.items()), flush=True)


def train(work: Path, cell: tuple[str, str, int], epochs: int, args: argparse.Namespace) -> Path:
    """Train one of VARIANTS, go on with it or leave it as it is, and return its run folder."""
    name, recipe, seed = cell
    run = work / "runs" / f"{name}_{recipe}_{seed}_{args.size}px_{args.precision}"
    root = work / "sets" / name
    root = shrunk(root, args.size) if recipe == "corner_masks" else root
    data = [f"data.root={root}", f"data.classes=[{','.join(SETS[name][2])}]", f"data.size={args.size}"]
    data += ["data=folder", "data.ignore_index=255", "data.batch_size=16", "data.workers=0"]
    options = [*data, "model.encoder=resnet50", f"model.weights={args.weights}", f"trainer.max_epochs={epochs}"]
    options += [f"trainer.precision={args.precision}", "trainer.enable_progress_bar=false", f"seed={seed}"]
    options += ["logger=csv", "gradients.every_n_steps=0", f"output={run.parent}", f"name={run.name}"]
    with LOCKS[run]:
        if not (run / "summary.json").exists():
            is_begun = (run / "config.yaml").exists()
            python("-m", "unetseg.train", *([f"resume={run}"] if is_begun else [*options, *VARIANTS[recipe]]))
    return run


def python(*words: str) -> None:
    """Run a Python command with one thread; raise a RuntimeError with its output where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=HERE.parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the trainings")
    parser.add_argument("--pets", type=Path, help="folder in the layout of Oxford-IIIT Pet")
    parser.add_argument("--sets", type=Path, help="folder with camvid/ and nuclei/")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet's resnet50 as .safetensors")
    parser.add_argument("--names", nargs="+", default=[*SETS], choices=[*SETS], help="sets")
    parser.add_argument("--recipes", nargs="+", default=["ours", "example", "tuned"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, help="of every set; default 10, 40 and 80, about 230 steps")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    args = parser.parse_args()
    args.weights = args.weights.resolve()
    for name in args.names:
        prepare(args.work / "sets" / name, SETS[name][0](args.pets if name == "pets" else args.sets))
    cells = [(name, recipe, seed) for seed, name, recipe in product(args.seeds, args.names, args.recipes)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for cell, done in [(cell, pool.submit(run, args.work.resolve(), cell, args)) for cell in cells]:
            if done.exception():
                print(f"{'_'.join(map(str, cell))} failed: {done.exception()}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
