"""A user's own pictures, where and as they lie.

Without patterns:

images/NAME.jpg (or another of IMAGE_SUFFIXES)
masks/NAME.png (or another of MASK_SUFFIXES): the class as the value, or 0/255 for two classes
train.txt, val.txt, test.txt (optional): in each line one NAME, or the path of a picture, or the paths of a picture and
    its mask

With patterns (see layout.py) the files may lie and be called as they like, masks may be JSON files or one file an
object, and the pattern may say the split. NAME may begin with folders. Splits that nothing says are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unetseg.data import joined, layout, published, volumes
from unetseg.data.dataset import Collection, Example, missing_layout, read_list
from unetseg.data.masks import INVALID, MASK_SUFFIXES, MaskValues, stated_values
from unetseg.data.pictures import IMAGE_SUFFIXES, Unreadable
from unetseg.data.splits import FLAG, LISTS, SPLITS, Drawing
from unetseg.data.survey import mask_contents
from unetseg.errors import UserError
from unetseg.names import IGNORE, nearest_first

ENDINGS = ", ".join(IMAGE_SUFFIXES)


def load(
    root: Path,
    *,
    classes: Sequence[str],
    drawing: Drawing,
    images: str | None = None,
    masks: str | None = None,
    values: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    instances: bool = False,
    bands: Sequence[str] | None = None,
    ignore_index: int | None = None,
    stratify: bool = False,
    needed: Sequence[str] = SPLITS,
) -> Collection:
    """Return the examples of a folder.

    Args:
        root: the folder.
        classes: names of the classes 0, 1, ...
        drawing: how splits are drawn that nothing says.
        images: the pattern of the pictures; None: images/NAME.
        masks: the pattern of the masks; None: masks/NAME. One that ends in .json is LabelMe's with {name}, COCO's
            without.
        values: the values or colours of each class, see `masks.stated_values`; None: 0, 1, ...
        threshold: mask values above it are class 1, the others class 0.
        instances: a mask is any number of files, one an object.
        bands: the names of a picture's channels, in their order, where each is a file; None: all, see joined.py.
        ignore_index: the mask value that is left out, if any.
        stratify: draw splits in which each class occurs in its share of the pictures.
        needed: the splits to return; all: every listed picture, or every picture where there are no lists.

    Raises:
        UserError: the layout is another, a split is empty or lists a picture twice, or a name is ambiguous.
    """
    meaning = stated_values(values) if values else value_table(len(classes), ignore_index, threshold)
    missing: dict[Path, Unreadable] = {}
    remarks: list[str] = []
    lists = [file for file in LISTS.values() if (root / file).exists()]
    if images is None and masks is None:
        absent = missing_layout(root, ("images", "masks"))
        if absent:
            raise UserError(
                f"data.root={root} lacks {', '.join(absent)}",
                accepted="a folder with images/ and masks/, or with a data.yaml that says where they lie",
                advice=f"python -m unetseg.data {root}, which looks at the folder and writes one",
            )
        pictures = Files(root / "images", (*MASK_SUFFIXES, *volumes.NIFTI))
        truths = Files(root / "masks", (*MASK_SUFFIXES, *volumes.NIFTI))
        listed = _read_lists(root, pictures, truths, missing)
        complete = len(lists) == len(LISTS)
        examples = {} if complete or "train.txt" in lists else _pair_by_name(pictures, truths, missing, bool(lists))
        examples |= {example.name: example for example, _ in listed.values()}
        given = {name: split for name, (_, split) in listed.items()}
    else:
        patterns = images or "images/{name}.*", masks or "masks/{name}.*"
        found = published.pair(root, *patterns, instances=instances, values=meaning, classes=classes)
        if lists:
            found = published.select_listed(root, found, lists)
        examples, given, missing, remarks = found.examples, found.splits, found.missing, found.notes
        if found.channels:
            order = bands or joined.order_bands(band for files in found.channels.values() for band in files)
            remarks = [*remarks, f"channels of a picture, in this order: {', '.join(order)}"]
            files = joined.join({name: found.channels[name] for name in examples}, order)
            examples = {name: replace(example, image=files[name]) for name, example in examples.items()}
        if patterns[1].endswith(".json") or instances:
            meaning = value_table(len(classes), IGNORE)  # of the masks that have been drawn
    examples, given, drawing, cut = volumes.expand(examples, given, drawing)
    for name in examples:
        if not name.isprintable() or any(0xD800 <= ord(letter) < 0xE000 for letter in name):
            raise UserError(
                f"{name!r} in {root} can't be written into the tables of a run",
                accepted="names of letters in UTF-8",
                advice="another name for it",
            )
    if drawing.folds and given:
        raise UserError(
            f"data.folds={drawing.folds} with splits that {root} states", accepted="folds of pictures without splits"
        )
    present = _classes_in(examples, meaning) if stratify else None
    members = drawing.split(list(examples), given, present)
    notes = (*remarks, *cut, *_notes(given, members, drawing))
    groups = {name: drawing.group_of(name) for name in examples}
    _check_groups(groups, members)
    own = {name: Example(name, e.image, e.mask, groups[name]) for name, e in examples.items()}
    splits = {split: [own[name] for name in names] for split, names in members.items()}
    splits["all"] = list(own.values())
    for split in needed:
        if not splits[split]:
            raise _empty_split(root, split, len(own), drawing)
    return Collection(tuple(classes), meaning, {split: splits[split] for split in needed}, missing, notes)


def _check_groups(groups: Mapping[str, str], members: Mapping[str, Sequence[str]]) -> None:
    """Raise a UserError where pictures of one group are in two splits, which the data set says then."""
    split_of: dict[str, str] = {}
    for split, names in members.items():
        for name in names:
            first = split_of.setdefault(groups[name], split) if groups[name] else split
            if first != split:
                raise UserError(
                    f"the group {groups[name]} has pictures in {first} and in {split}, as the data set says its splits",
                    accepted="splits that share no group",
                    advice="other lists or patterns, or data.group=null",
                )


def _empty_split(root: Path, split: str, count: int, drawing: Drawing) -> UserError:
    """Return the error for a split without pictures; it names the endings of files that are no pictures."""
    if count and (drawing.folds or drawing.group):
        return UserError(
            f"the {split} split has no pictures, of {count} in data.root={root}",
            accepted="more pictures and groups than splits and folds",
            advice="fewer data.folds" if drawing.folds else "a data.group of which there are more",
        )
    others = {"".join(PurePosixPath(file).suffixes[-2:]) for file in layout.files_below(root)} - {".txt", ".yaml"}
    others = {ending for ending in others if not ending.lower().endswith(MASK_SUFFIXES)}
    beside = f", besides files that end in {', '.join(sorted(others))}" if others else ""
    return UserError(
        f"data.root={root} leaves the {split} split empty ({count} pictures{beside})",
        accepted=f"enough pictures that end in {ENDINGS}",
        advice="pictures in one of these formats" if others and not count else "other data.ratios or lists",
    )


def value_table(classes: int, ignore_index: int | None, threshold: float | None = None) -> MaskValues:
    """Return the class of each mask value: with two classes 255 is read as 1 unless it is ignored."""
    table = np.full(256, INVALID, dtype=np.uint8)
    table[:classes] = np.arange(classes)
    either = classes == 2 and threshold is None
    if either:
        table[255] = 1
    if ignore_index is not None:
        table[ignore_index] = IGNORE
    return MaskValues(table, threshold=threshold, either=either and ignore_index not in (1, 255))


def _classes_in(examples: Mapping[str, Example], values: MaskValues) -> dict[str, frozenset[int]]:
    """Return the classes that occur in the mask of each example."""
    contents = mask_contents([example.mask for example in examples.values()], values)
    found = {}
    for name, example in examples.items():
        content = contents[example.mask]
        labels = [] if isinstance(content, Unreadable) else values.table[content["counts"] > 0].tolist()
        found[name] = frozenset(label for label in labels if label < INVALID)
    return found


def _notes(given: Mapping[str, str], members: Mapping[str, Sequence[str]], drawing: Drawing) -> tuple[str, ...]:
    """Return which splits were drawn, where others are given."""
    drawn = [split for split in SPLITS if split not in given.values()]
    if drawing.folds:
        return (f"fold {drawing.fold} of {drawing.folds} is the test split",)
    if not given or not drawn:
        return ()
    pool = "train" if "train" not in drawn else "the pictures in no list"
    counts = ", ".join(f"{split} ({len(members[split])})" for split in drawn)
    return (f"nothing says which pictures are for {counts}: drawn from {pool} with data.split_seed={drawing.seed}",)


class Files:
    """The pictures in a folder and its subfolders, by their paths relative to it."""

    def __init__(self, folder: Path, suffixes: Sequence[str]):
        self.folder = folder
        self.named: dict[str, list[Path]] = {}
        """The files of each relative path without its ending."""
        self.others: list[Path] = []
        """Files that are no pictures by their endings."""
        self.names: set[str] = set()
        """Relative paths with their endings."""
        for file in layout.files_below(folder):
            if (ending := _ending(file)) in suffixes:
                self.named.setdefault(file[: -len(ending)], []).append(folder / file)
                self.names.add(file)
            else:
                self.others.append(folder / file)

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
    return name[: -len(ending)] if (ending := _ending(name)) else name


def _ending(name: str) -> str:
    """Return the ending of a name in small letters; it is of two parts for a compressed volume."""
    last = os.path.splitext(name)[1].lower().removesuffix(".")  # pathlib's suffix takes five times as long
    return next((ending for ending in volumes.NIFTI if last == ".gz" and name.lower().endswith(ending)), last)


def _pair_by_name(
    images: Files, masks: Files, missing: dict[Path, Unreadable], paired_only: bool
) -> dict[str, Example]:
    """Return an example for each picture, by its name; add the masks that don't exist to `missing`.

    Args:
        images: the pictures.
        masks: the masks.
        missing: see Collection.
        paired_only: leave out the pictures without a mask.
    """
    examples = {}
    for name in images.named:
        if paired_only and not masks.named.get(name):
            continue
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


def _read_lists(
    root: Path, images: Files, masks: Files, missing: dict[Path, Unreadable]
) -> dict[str, tuple[Example, str]]:
    """Return the examples of the lists and their splits; add the pictures and masks that don't exist to `missing`."""
    listed: dict[str, tuple[Example, str]] = {}
    for split, file in LISTS.items():
        for line in read_list(root / file) if (root / file).exists() else []:
            example = _read_line(file, line, images, masks, missing)
            if example.name in listed:
                first = LISTS[listed[example.name][1]]
                raise UserError(f"{example.name} stands in {first} and in {file}", accepted="each picture once")
            listed[example.name] = example, split
    return listed


def _read_line(file: str, line: str, images: Files, masks: Files, missing: dict[Path, Unreadable]) -> Example:
    """Return the example of a line that holds a name, a picture, or a picture and its mask."""
    image, mask = _find_image(line, images), None
    columns = line.split()
    if image is None and len(columns) == 2:
        image, mask = _find_image(columns[0], images), _find_file(columns[1], masks)
        if image and mask is None and columns[1] != FLAG:
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
