"""A user's own pictures:

images/NAME.jpg (or another of IMAGE_SUFFIXES)
masks/NAME.png (or another, lossless): the class as the value, or 0/255 for two classes
train.txt, val.txt, test.txt (optional): in each line one NAME, or the path of a picture, or the paths of a picture and
    its mask; without these files the pictures are split by ratios with a seed

NAME may begin with folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from unetseg.data.dataset import Collection, Example, missing_layout, read_list
from unetseg.data.pictures import IMAGE_SUFFIXES, INVALID, Unreadable
from unetseg.errors import UserError
from unetseg.names import IGNORE, nearest_first

SPLITS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
ENDINGS = ", ".join(IMAGE_SUFFIXES)


def load(
    root: Path,
    *,
    classes: Sequence[str],
    ignore_index: int | None,
    ratios: Sequence[float],
    split_seed: int,
    needed: Sequence[str] = tuple(SPLITS),
) -> Collection:
    """Return the examples of a folder.

    Args:
        root: holds images/ and masks/.
        classes: names of the mask values 0, 1, ...
        ignore_index: the mask value that is left out, if any.
        ratios: shares of train, validation and test where there are no split files.
        split_seed: of the split by ratios.
        needed: the splits to return; all: every listed picture, or every picture where there are no split files.

    Raises:
        UserError: the layout is another, a split is empty or lists a picture twice, or a name is ambiguous.
    """
    absent = missing_layout(root, ("images", "masks"))
    if absent:
        raise UserError(f"data.root={root} lacks {', '.join(absent)}", accepted="a folder with images/ and masks/")
    images = Files(root / "images")
    lists = [name for name in SPLITS.values() if (root / name).exists()]
    if lists and any(split != "all" and SPLITS[split] not in lists for split in needed):
        raise UserError(f"{root} has {', '.join(lists)} only", accepted=f"all of {', '.join(SPLITS.values())}, or none")
    masks = Files(root / "masks")
    missing: dict[Path, Unreadable] = {}
    if lists:
        members = _read_lists(root, images, masks, missing)
        members["all"] = [example for part in members.values() for example in part]
    else:
        examples = _pair_by_name(images, masks, missing)
        split_names = _split_names(list(examples), ratios, split_seed)
        members = {split: [examples[name] for name in names] for split, names in split_names.items()}
        members["all"] = list(examples.values())
    for split in needed:
        if not members[split]:
            raise _empty_split(root, split, images)
    for example in members["all"]:
        if not example.name.isprintable() or any(0xD800 <= ord(letter) < 0xE000 for letter in example.name):
            raise UserError(
                f"{example.name!r} in {images.folder} can't be written into the tables of a run",
                accepted="names of letters in UTF-8",
                advice="another name for it",
            )
    splits = {split: members[split] for split in needed}
    return Collection(tuple(classes), value_table(len(classes), ignore_index), splits, missing)


class Files:
    """The pictures in a folder and its subfolders, by their paths relative to it.

    Hidden files are left out: macOS leaves ._NAME.jpg beside NAME.jpg on foreign disks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.named: dict[str, list[Path]] = {}
        """The files of each relative path without its ending."""
        self.others: list[Path] = []
        """Files that are no pictures by their endings."""
        self.names: set[str] = set()
        """Relative paths with their endings."""
        for path in sorted(folder.rglob("*")):
            below = path.relative_to(folder)
            if any(part.startswith(".") for part in below.parts) or path.is_dir():
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self.named.setdefault(below.with_suffix("").as_posix(), []).append(path)
                self.names.add(below.as_posix())
            else:
                self.others.append(path)

    def one(self, name: str) -> Path | None:
        """Return the only file of this name without its ending, or None; raise a UserError if there are two."""
        paths = self.named.get(name, [])
        if len(paths) > 1:
            raise UserError(
                f"{paths[0]} and {paths[1]} have the same name without their endings: which one is meant?",
                accepted="one picture and one mask of each name",
                advice="another name for one of them, or lists (train.txt, ...) that name pictures with their endings",
            )
        return paths[0] if paths else None

    def exactly(self, name: str) -> Path | None:
        """Return the file of this name with its ending, or None; the ending may be in small letters or capitals."""
        if name in self.names:
            return self.folder / name
        candidates = [path for path in self.named.get(_stem(name), []) if path.suffix.lower() == _ending(name)]
        return candidates[0] if len(candidates) == 1 else None

    def nearest(self, name: str) -> str:
        """Return a clause that names the files whose names are most like this one."""
        files = [*self.names, *(path.relative_to(self.folder).as_posix() for path in self.others)]
        if not files:
            return f"{self.folder} is empty"
        candidates = sorted(files, key=lambda file: (abs(len(file) - len(name)), file))[:200]  # to compare all is slow
        more = ", ..." if len(files) > 3 else ""
        return f"{self.folder} holds {', '.join(nearest_first(name, candidates)[:3])}{more}"


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.name else name  # such as "."


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _empty_split(root: Path, split: str, images: Files) -> UserError:
    """Return the error for a split without pictures."""
    count = sum(map(len, images.named.values()))
    others = {path.suffix for path in images.others}
    beside = f", besides files that end in {', '.join(sorted(others))}" if others else ""
    return UserError(
        f"data.root={root} leaves the {split} split empty ({count} pictures in images/{beside})",
        accepted=f"pictures that end in {ENDINGS}",
    )


def _pair_by_name(images: Files, masks: Files, missing: dict[Path, Unreadable]) -> dict[str, Example]:
    """Return an example for each picture, by its name; add the masks that don't exist to `missing`."""
    examples = {}
    for name in images.named:
        image, mask = images.one(name), masks.one(name)
        assert image is not None
        examples[name] = Example(name, image, mask or masks.folder / f"{name}.png", "")
    unpaired = [name for name in examples if not masks.named.get(name)]
    if unpaired:
        first = ", ".join(unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
        error = Unreadable(
            f"{len(unpaired)} of {len(examples)} pictures have no mask of their name in {masks.folder}: {first}; "
            f"{masks.nearest(f'{unpaired[0]}.png')}",
            accepted=f"masks/NAME with the picture's NAME, that end in {ENDINGS}",
            advice="the same names, or train.txt, val.txt, test.txt that list those pictures which have one",
        )
        missing.update((examples[name].mask, error) for name in unpaired)
    return examples


def value_table(classes: int, ignore_index: int | None) -> np.ndarray:
    """Return the class of each mask value, 256 uint8; with two classes 255 is read as 1 unless it is ignored."""
    values = np.full(256, INVALID, dtype=np.uint8)
    values[:classes] = np.arange(classes)
    if classes == 2:
        values[255] = 1
    if ignore_index is not None:
        values[ignore_index] = IGNORE
    return values


def _read_lists(root: Path, images: Files, masks: Files, missing: dict[Path, Unreadable]) -> dict[str, list[Example]]:
    """Return the examples of each split file; add the pictures and masks that don't exist to `missing`."""
    members: dict[str, list[Example]] = {split: [] for split in SPLITS}
    file_of: dict[str, str] = {}
    for split, file in SPLITS.items():
        for line in read_list(root / file) if (root / file).exists() else []:
            example = _read_line(file, line, images, masks, missing)
            if example.name in file_of:
                raise UserError(
                    f"{example.name} stands in {file_of[example.name]} and in {file}", accepted="each picture once"
                )
            file_of[example.name] = file
            members[split].append(example)
    return members


def _read_line(file: str, line: str, images: Files, masks: Files, missing: dict[Path, Unreadable]) -> Example:
    """Return the example of a line that holds a name, a picture, or a picture and its mask."""
    image, mask = _find_image(line, images), None
    columns = line.split()
    if image is None and len(columns) == 2:
        image, mask = _find_image(columns[0], images), _find_file(columns[1], masks)
        if image and mask is None:
            raise UserError(
                f"{file} has the line '{line}', whose second column is no mask",
                accepted="a NAME, or the paths of a picture and its mask, a line",
                advice="the first column alone",
            )
    if image is None:
        image = images.folder / line.lstrip("/")  # an absolute path would leave the folder
        missing[image] = Unreadable(
            f"{image} does not exist, but {file} lists it; {images.nearest(line)}",
            accepted=f"the NAME of a picture that ends in {ENDINGS}, with or without its ending",
        )
    name = _stem(image.relative_to(images.folder).as_posix()) if _ending(image.name) in IMAGE_SUFFIXES else line
    mask = mask or masks.one(name)
    if mask is None:
        mask = masks.folder / f"{name}.png"
        missing[mask] = Unreadable(
            f"{mask} does not exist, nor {name} with another ending, but {file} lists {line}; "
            f"{masks.nearest(mask.name)}",
            accepted=f"masks/NAME with the picture's NAME, that end in {ENDINGS}",
        )
    return Example(name, image, mask, "")


def _find_image(line: str, images: Files) -> Path | None:
    """Return the picture that a line names, with or without its ending."""
    exact = _find_file(line, images)
    return exact or (images.one(line) if _ending(line) not in IMAGE_SUFFIXES else None)


def _find_file(line: str, files: Files) -> Path | None:
    """Return the file that a line names by its path relative to the folder or to the folder's parent."""
    name = line.replace("\\", "/").removeprefix("./")
    return files.exactly(name.removeprefix(f"{files.folder.name}/")) or files.exactly(name)


def _split_names(names: list[str], ratios: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split the names by the ratios, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(names))
    first = round(len(names) * ratios[0])
    second = first + round(len(names) * ratios[1])
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {split: sorted(names[i] for i in part) for split, part in parts.items()}
