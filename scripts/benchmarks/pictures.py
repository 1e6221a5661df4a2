"""The files that a measurement trains on: as many as it needs, in the official Pets layout, by links."""

from __future__ import annotations

from itertools import count, cycle, islice
from pathlib import Path

from unetseg.errors import UserError

LISTS = ("trainval", "test")


def official_layout(folder: Path) -> Path:
    """Return the folder if it has the official Pets layout; raise a UserError otherwise."""
    if not all((folder / f"annotations/{name}.txt").is_file() for name in LISTS):
        raise UserError(
            f"--pets {folder} has no annotations/trainval.txt and test.txt",
            accepted="the folder above images/ and annotations/ of Oxford-IIIT Pet, or of a set in its layout",
            advice="python -m unetseg.train data=synthetic once, then --pets data/synthetic/NAME",
        )
    return folder


def link_pets(source: Path, target: Path, *, train_images: int, test_images: int = 4) -> Path:
    """Fill the new folder `target` with links to pictures of `source`, and return it.

    Every 10th line of trainval.txt validates, so there are as many lines more. Where `source` has too few pictures,
    some are linked again under other names.
    """
    lines = [line for name in LISTS for line in (source / f"annotations/{name}.txt").read_text().splitlines()]
    pictures = cycle([line.split() for line in lines if line.strip() and not line.startswith("#")])
    trainval = next(n for n in count(train_images) if n - len(range(0, n, 10)) == train_images)
    (target / "images").mkdir(parents=True)
    (target / "annotations/trimaps").mkdir(parents=True)
    for part, number in zip(LISTS, (trainval, test_images), strict=True):
        listed = []
        for position, (name, *classes) in enumerate(islice(pictures, number)):
            link = f"{name.rpartition('_')[0]}_{part}{position}"
            for path in ("images/{}.jpg", "annotations/trimaps/{}.png"):
                (target / path.format(link)).symlink_to((source / path.format(name)).resolve())
            listed.append(" ".join([link, *classes]) + "\n")
        (target / f"annotations/{part}.txt").write_text("".join(listed))
    return target
