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

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unetseg.data import joined, layout, published, volumes
from unetseg.data.dataset import Collection, Listing, Pair, missing_layout, read_list
from unetseg.data.masks import INVALID, MASK_SUFFIXES, MaskValues, stated_values
from unetseg.data.pictures import IMAGE_SUFFIXES, Unreadable
from unetseg.data.splits import FLAG, LISTS, SPLITS, Drawing
from unetseg.data.survey import read_masks
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
        examples |= {name: pair for name, (pair, _) in listed.items()}
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
            examples = {name: Pair(str(files[name]), pair.mask) for name, pair in examples.items()}
        if patterns[1].endswith(".json") or instances:
            meaning = value_table(len(classes), IGNORE)  # of the masks that have been drawn
    examples, given, drawing, cut = volumes.expand(examples, given, drawing)
    for name in examples:
        if not name.isprintable():
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
    groups = {name: drawing.group_of(name) for name in examples} if drawing.group is not None else {}
    _check_groups(groups, members)
    splits = {}
    for split in needed:
        names = members[split] if split != "all" else [*examples]
        if not names:
            raise _empty_split(root, split, len(examples), drawing)
        pairs = [examples[name] for name in names]
        columns = ([pair.image for pair in pairs], [pair.mask for pair in pairs])
        splits[split] = Listing(names, *columns, [groups.get(name, "") for name in names])
    return Collection(tuple(classes), meaning, splits, missing, notes)


def _check_groups(groups: Mapping[str, str], members: Mapping[str, Sequence[str]]) -> None:
    """Raise a UserError where pictures of one group are in two splits, which the data set says then."""
    split_of: dict[str, str] = {}
    for split, names in members.items() if groups else ():
        for name in names:
            first = split_of.setdefault(groups[name], split)
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


def _classes_in(examples: Mapping[str, Pair], values: MaskValues) -> dict[str, frozenset[int]]:
    """Return the classes that occur in the mask of each example."""
    masks, errors = read_masks([pair.mask for pair in examples.values()], values)
    readable = [name for number, name in enumerate(examples) if number not in errors]
    labels, found = values.table[masks.values], dict.fromkeys(examples, frozenset[int]())
    for name, present in zip(readable, masks.pixels > 0, strict=True):
        found[name] = frozenset(label for label in labels[present].tolist() if label < INVALID)
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
        self.below = layout.beginning(folder)
        self.named: dict[str, str] = {}
        """The first file of each relative path without its ending."""
        self.alike: dict[str, list[str]] = {}
        """All files of those of which there are several."""
        self.others: list[str] = []
        """Files that are no pictures by their endings."""
        for file in layout.files_below(folder):
            if (ending := _ending(file)) in suffixes:
                first = self.named.setdefault(name := file[: -len(ending)], file)
                if first != file:
                    self.alike.setdefault(name, [first]).append(file)
            else:
                self.others.append(file)

    def one(self, name: str) -> str | None:
        """Return the only file of this name without its ending, or None; raise a UserError if there are two."""
        if name in self.alike:
            first, second = self.alike[name][:2]
            raise UserError(
                f"{self.folder / first} and {self.folder / second} have the same name without their endings: "
                "which one is meant?",
                accepted="one picture and one mask of each name",
                advice="another name for one of them, or lists (train.txt, ...) that name pictures with their endings",
            )
        return self.named.get(name)

    def exactly(self, name: str) -> str | None:
        """Return the file of this name with its ending, or None; the ending may be in small letters or capitals."""
        files = self._of_name(_stem(name))
        if name in files:
            return name
        candidates = [file for file in files if _ending(file) == _ending(name)]
        return candidates[0] if len(candidates) == 1 else None

    def nearest(self, name: str) -> str:
        """Return a clause that names the files whose names are most like this one."""
        files = [*(file for own in self.named for file in self._of_name(own)), *self.others]
        if not files:
            return f"{self.folder} is empty"
        candidates = sorted(files, key=lambda file: (abs(len(file) - len(name)), file))[:200]  # to compare all is slow
        more = ", ..." if len(files) > 3 else ""
        return f"{self.folder} holds {', '.join(nearest_first(name, candidates)[:3])}{more}"

    def _of_name(self, name: str) -> list[str]:
        """Return all files of this name without their endings."""
        return self.alike.get(name) or [file for file in [self.named.get(name)] if file is not None]


def _stem(name: str) -> str:
    return name[: -len(ending)] if (ending := _ending(name)) else name


def _ending(name: str) -> str:
    """Return the ending of a name in small letters; it is of two parts for a compressed volume."""
    before, _, last = name.rpartition(".")  # pathlib's suffix takes ten times as long
    if not last or "/" in last or not before.rpartition("/")[2].strip("."):
        return ""
    if last.lower() != "gz":
        return f".{last.lower()}"
    return next((ending for ending in volumes.NIFTI if name.lower().endswith(ending)), ".gz")


def _pair_by_name(images: Files, masks: Files, missing: dict[Path, Unreadable], paired_only: bool) -> dict[str, Pair]:
    """Return the files of each picture and its mask, by its name; add the masks that don't exist to `missing`.

    Args:
        images: the pictures.
        masks: the masks.
        missing: see Collection.
        paired_only: leave out the pictures without a mask.
    """
    pairs, unpaired = {}, []
    for name, image in images.named.items():
        mask = masks.named.get(name)
        if mask is None:
            if paired_only:
                continue
            unpaired.append(name)
            mask = f"{name}.png"
        pairs[name] = Pair(images.below + image, masks.below + mask)
    for name in pairs if images.alike or masks.alike else ():
        images.one(name), masks.one(name)  # which raise where there are two
    if unpaired:
        first = ", ".join(unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
        error = Unreadable(
            f"{len(unpaired)} of {len(pairs)} pictures have no mask of their name in {masks.folder}: {first}; "
            f"{masks.nearest(f'{unpaired[0]}.png')}",
            accepted=f"masks/NAME with the picture's NAME, that end in {ENDINGS}",
            advice="the same names, or train.txt, val.txt, test.txt that list those pictures which have one",
        )
        missing.update((Path(pairs[name].mask), error) for name in unpaired)
    return pairs


def _read_lists(
    root: Path, images: Files, masks: Files, missing: dict[Path, Unreadable]
) -> dict[str, tuple[Pair, str]]:
    """Return by name the files of the lists and their splits; add the files that don't exist to `missing`."""
    listed: dict[str, tuple[Pair, str]] = {}
    for split, file in LISTS.items():
        for line in read_list(root / file) if (root / file).exists() else []:
            name, pair = _read_line(file, line, images, masks, missing)
            if name in listed:
                first = LISTS[listed[name][1]]
                raise UserError(f"{name} stands in {first} and in {file}", accepted="each picture once")
            listed[name] = pair, split
    return listed


def _read_line(file: str, line: str, images: Files, masks: Files, missing: dict[Path, Unreadable]) -> tuple[str, Pair]:
    """Return name and files of a line that holds a name, a picture, or a picture and its mask."""
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
    if image is not None:
        picture, name = f"{images.below}{image}", _stem(image)
    else:
        absent = images.folder / line.lstrip("/")  # an absolute path would leave the folder
        missing[absent] = Unreadable(
            f"{absent} does not exist, but {file} lists it; {images.nearest(line)}",
            accepted=f"the NAME of a picture that ends in {ENDINGS}, with or without its ending",
        )
        picture, name = str(absent), line
        if _ending(absent.name) in IMAGE_SUFFIXES:
            name = _stem(absent.relative_to(images.folder).as_posix())
    mask = mask or masks.one(name)
    if mask is not None:
        return name, Pair(picture, f"{masks.below}{mask}")
    absent = masks.folder / f"{name}.png"
    missing[absent] = Unreadable(
        f"{absent} does not exist, nor {name} with another ending, but {file} lists {line}; "
        f"{masks.nearest(absent.name)}",
        accepted=f"masks/NAME with the picture's NAME, that end in {ENDINGS}",
    )
    return name, Pair(picture, str(absent))


def _find_image(line: str, images: Files) -> str | None:
    """Return the picture that a line names, with or without its ending."""
    exact = _find_file(line, images)
    return exact or (images.one(line) if _ending(line) not in IMAGE_SUFFIXES else None)


def _find_file(line: str, files: Files) -> str | None:
    """Return the file that a line names by its path relative to the folder or to the folder's parent."""
    name = line.replace("\\", "/").removeprefix("./")
    return files.exactly(name.removeprefix(f"{files.folder.name}/")) or files.exactly(name)
