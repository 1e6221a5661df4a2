"""The embedded data set: drawn cats and dogs, written in the layout of Oxford-IIIT Pet and read by the same loader."""

import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from numpy.random import default_rng
from PIL import Image

from unetseg.data.drawing import BREEDS, draw_animal

Progress = Callable[[Iterable[int]], Iterable[int]]


def draw_pictures(
    root: Path, train: int, test: int, size: int, similarity: float, seed: int, progress: Progress
) -> None:
    """Fill the new folder `root` with pictures, trimaps and lists."""
    images, annotations = root / "images", root / "annotations"
    images.mkdir(parents=True)
    (annotations / "trimaps").mkdir(parents=True)
    species = [breed.species for breed in BREEDS.values()]
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for i in progress(range(train + test)):
        split, index = ("trainval", i) if i < train else ("test", i - train)
        number = 2 * index + (1 if split == "trainval" else 2)  # odd and even: a count shifts no other picture's number
        kind = index % len(BREEDS)
        breed = list(BREEDS)[kind]
        rng = default_rng([seed, number])
        picture, trimap = draw_animal(rng, size=size, breed=breed, similarity=similarity)
        Image.fromarray(picture).save(images / f"{breed}_{number}.jpg", quality=92)
        Image.fromarray(trimap).save(annotations / "trimaps" / f"{breed}_{number}.png")
        breed_id = species[: kind + 1].count(species[kind])
        lines[split].append(f"{breed}_{number} {kind + 1} {species[kind]} {breed_id}\n")
    cats, dogs = species.count(1), species.count(2)
    header = f"#Image CLASS-ID SPECIES BREED ID\n#ID: 1:{len(species)} class ids\n#SPECIES: 1:Cat 2:Dog\n"
    header += f"#BREED ID: 1-{cats}:Cat 1:{dogs}:Dog\n"
    header += f"#Drawn with train={train} test={test} size={size} similarity={similarity} seed={seed}\n"
    for split, split_lines in lines.items():
        (annotations / f"{split}.txt").write_text("".join(sorted(split_lines)))
    (annotations / "list.txt").write_text(header + "".join(sorted(lines["trainval"] + lines["test"])))


def write_set(
    root: Path,
    *,
    train: int,
    test: int,
    size: int,
    similarity: float,
    seed: int,
    progress: Progress = iter,
) -> Path:
    """Write `train` and `test` pictures of size x size in the Pets layout, and return `root`.

    A complete set at `root` is left as it is, whatever its settings were: other settings need another root.
    A process that is killed leaves nothing at `root`, and several processes may write the same root at once.
    """
    if not (0 <= similarity <= 1 and size >= 32 and min(train, test, seed) >= 0):
        settings = f"{train=}, {test=}, {size=}, {similarity=}, {seed=}"
        raise ValueError(f"{settings}: similarity is 0 to 1, size at least 32, the others at least 0")
    list_file = root / "annotations" / "list.txt"  # the set appears by one rename: with its list all of it is there
    if list_file.is_file():
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists but holds no complete set: delete it, or name another folder")
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    try:
        draw_pictures(partial, train, test, size, similarity, seed, progress)
        partial.rename(root)  # at once, or not at all
    except OSError:
        if not list_file.is_file():  # if it is there, another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
