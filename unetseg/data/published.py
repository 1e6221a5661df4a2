"""Pictures and their masks where a data set's authors have put them, by the patterns of layout.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unetseg.data import drawn_masks
from unetseg.data.dataset import Pair, read_list
from unetseg.data.joined import order_bands
from unetseg.data.layout import Pattern, Place, beginning, files_below, find
from unetseg.data.masks import MASK_SUFFIXES, MaskValues
from unetseg.data.pictures import IMAGE_SUFFIXES, Unreadable
from unetseg.data.splits import FLAG, LISTS
from unetseg.data.volumes import NIFTI
from unetseg.errors import UserError
from unetseg.names import counted, nearest_first

SUFFIXES = (*IMAGE_SUFFIXES, ".npy", *NIFTI)
"""The endings of pictures that a pattern may name."""


@dataclass
class Found:
    """What the patterns find.

    Examples:
        >>> Found().notes
        []
    """

    examples: dict[str, Pair] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    """train, val or test of the names whose split the patterns say."""
    missing: dict[Path, Unreadable] = field(default_factory=dict)
    """The error to raise for each mask that does not exist."""
    channels: dict[str, dict[str, Path]] = field(default_factory=dict)
    """The file of each channel of the names whose pictures are in several files."""
    notes: list[str] = field(default_factory=list)
    """What the user is told."""


def pair(root: Path, images: str, masks: str, *, instances: bool, values: MaskValues, classes: Sequence[str]) -> Found:
    """Return the pictures with their masks.

    Args:
        root: the folder.
        images: the pattern of the pictures.
        masks: the pattern of the masks.
        instances: a mask is any number of files, one an object.
        values: of mask files.
        classes: names of the classes.

    Raises:
        UserError: a pattern fits no file, two pictures have one name, or a mask would be that of two pictures.
    """
    image_pattern, mask_pattern = Pattern("data.images", images), Pattern("data.masks", masks)
    if "name" not in image_pattern.fields:
        raise UserError(f"data.images={images} has no {{name}}", accepted="a pattern such as {split}/{name}.jpg")
    if "channel" in mask_pattern.fields:
        raise UserError(f"data.masks={masks} has a {{channel}}", accepted="{channel} in data.images alone")
    files = files_below(root)
    json = mask_pattern.text.endswith(".json")
    endings = (".json",) if json else (*MASK_SUFFIXES, *NIFTI)
    truths = find(root, [file for file in files if file.lower().endswith(endings)], mask_pattern)
    mask_files = {file for paths in truths.values() for file in paths}
    joinable = SUFFIXES if "channel" not in image_pattern.fields else SUFFIXES[: -len(NIFTI)]  # volumes aren't joined
    candidates = [file for file in files if file.lower().endswith(joinable) and file not in mask_files]
    fitting = find(root, candidates, image_pattern)
    found = Found()
    _tell("data.images", set(candidates) - {file for paths in fitting.values() for file in paths}, found)
    if "channel" in image_pattern.fields:
        by_channel = {place: channels_of(image_pattern, paths) for place, paths in fitting.items()}
        fitting = {place: paths[:1] for place, paths in fitting.items()}
        found.channels = {
            name: {channel: root / path for channel, path in by_channel[place].items()}
            for name, (_, place) in _by_name(fitting).items()
        }
    pictures = _by_name(fitting)
    if "split" in mask_pattern.fields and "split" not in image_pattern.fields:
        truths, said = _without_splits(truths, masks)
    else:
        said = {}
    own = _masks(root, pictures, truths, mask_pattern, instances, values, classes, said, found)
    owners: dict[str, str] = {}
    below = beginning(root)
    for name, (file, place) in pictures.items():
        mask = own.get(name)
        if mask is None:
            mask = str(root / f"no mask of {name}")
            found.missing[Path(mask)] = Unreadable(
                f"{root / file} has no mask by data.masks={masks}",
                accepted="a mask of each picture, or train.txt, val.txt, test.txt that list those which have one",
            )
        elif mask in owners:
            raise UserError(
                f"{mask} would be the mask of {root / owners[mask]} and of {root / file}",
                accepted="a mask of its own for each picture",
                advice="{split} in data.masks where it is in data.images",
            )
        owners[mask] = file
        found.examples[name] = Pair(f"{below}{file}", mask)
        if place.split or name in said:
            found.splits[name] = place.split or said[name]
    return found


def bands_of(root: Path, images: str) -> list[str] | None:
    """Return the names of the channels of the pictures below a folder; None where a pattern has no {channel}."""
    pattern = Pattern("data.images", images)
    if "channel" not in pattern.fields:
        return None
    files = [file for file in files_below(root) if file.lower().endswith(SUFFIXES) and pattern.place(file)]
    return order_bands(map(pattern.channel, files))


def channels_of(pattern: Pattern, paths: Sequence[str]) -> dict[str, str]:
    """Return the file of each channel of a picture; raise a UserError where a channel has two."""
    files: dict[str, str] = {}
    for path in paths:
        first = files.setdefault(pattern.channel(path), path)
        if first != path:
            raise UserError(f"{first} and {path} are one channel of one picture", accepted="a file for each channel")
    return files


def _by_name(places: Mapping[Place, list[str]]) -> dict[str, tuple[str, Place]]:
    """Return the pictures by name; the name begins with the split where it is used in several."""
    several = len({place.name for place in places}) < len(places)
    pictures: dict[str, tuple[str, Place]] = {}
    for place, paths in places.items():
        name = f"{place.split}/{place.name}" if several else place.name
        if len(paths) > 1:
            raise UserError(
                f"{paths[0]} and {paths[1]} have the same name, {name}",
                accepted="one picture of each name",
                advice="a pattern in data.images that tells them apart",
            )
        pictures[name] = paths[0], place
    return pictures


def _without_splits(truths: Mapping[Place, list[str]], masks: str) -> tuple[dict[Place, list[str]], dict[str, str]]:
    """Return the masks by name alone, and the split that their pattern says of each name."""
    plain: dict[Place, list[str]] = {}
    said: dict[str, str] = {}
    for place, paths in truths.items():
        if place.name and place.name in said:
            raise UserError(
                f"data.masks={masks} finds {place.name} in {said[place.name]} and in {place.split}",
                accepted="{split} in data.images as well",
            )
        plain.setdefault(Place(place.name, "" if place.name else place.split), []).extend(paths)
        if place.name:
            said[place.name] = place.split
    return plain, said


def _masks(
    root: Path,
    pictures: Mapping[str, tuple[str, Place]],
    truths: Mapping[Place, list[str]],
    pattern: Pattern,
    instances: bool,
    values: MaskValues,
    classes: Sequence[str],
    said: dict[str, str],
    found: Found,
) -> dict[str, str]:
    """Return the mask of each picture that has one; of COCO's files also, in `said`, the splits of their pictures."""
    if pattern.text.endswith(".json") and "name" not in pattern.fields:
        jobs: dict[str, drawn_masks.Drawn] = {}
        for place, paths in truths.items():
            for file in paths:
                own = {name: path for name, (path, at) in pictures.items() if at.split in ("", place.split or at.split)}
                described, absent = drawn_masks.of_coco(root / file, own, classes)
                if absent:
                    found.notes.append(f"{file} describes {counted(absent, 'picture')} that data.images doesn't find")
                for job in described:
                    if job.name in jobs:
                        raise UserError(
                            f"{job.name} is described by {jobs[job.name].sources[0]} and by {root / file}",
                            accepted="one JSON file that describes a picture",
                        )
                    jobs[job.name] = job
                    if place.split:
                        said[job.name] = place.split
        return _texts(drawn_masks.draw_all([*jobs.values()]))
    files = {
        name: truths.get(place if place in truths else Place(place.name, ""), [])
        for name, (_, place) in pictures.items()
    }
    _tell(
        "the pictures' names, of masks",
        {file for paths in truths.values() for file in paths} - {file for paths in files.values() for file in paths},
        found,
    )
    if pattern.text.endswith(".json"):
        labelled = [
            drawn_masks.of_labelme(name, root / paths[0], classes) for name, paths in files.items() if len(paths) == 1
        ]
        return _texts(drawn_masks.draw_all(labelled))
    if instances:
        objects = {name: [root / path for path in paths] for name, paths in files.items() if paths}
        drawn = [drawn_masks.of_objects(name, own, values) for name, own in objects.items()]
        return _texts(drawn_masks.draw_all(drawn))
    for name, paths in files.items():
        if len(paths) > 1:
            raise UserError(
                f"{name} has the masks {paths[0]} and {paths[1]}",
                accepted="one mask of a picture",
                advice="data.instances=true, where each is an object; otherwise another pattern in data.masks",
            )
    below = beginning(root)
    return {name: f"{below}{paths[0]}" for name, paths in files.items() if paths}


def _texts(paths: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in paths.items()}


def _tell(what: str, files: set[str], found: Found) -> None:
    """Note files that are left over."""
    if files:
        first = ", ".join(sorted(files)[:3]) + (", ..." if len(files) > 3 else "")
        found.notes.append(f"not used, as they don't fit {what}: {counted(len(files), 'file')} ({first})")


def select_listed(root: Path, found: Found, lists: Sequence[str]) -> Found:
    """Return the pictures that train.txt, val.txt, test.txt name, and those that may be drawn, with the lists' splits.

    Raises:
        UserError: a line names no picture, or another mask than the patterns.
    """
    if found.splits:
        notes = [*found.notes, f"{', '.join(lists)} not read: the patterns say the splits"]
        return replace(found, notes=notes)
    below = beginning(root)
    files = {pair.image.removeprefix(below): name for name, pair in found.examples.items()}
    given: dict[str, str] = {}
    for split, file in LISTS.items():
        for line in read_list(root / file) if file in lists else []:
            name = _listed(line, root, found.examples, files)
            if name is None:
                near = ", ".join(nearest_first(line, list(found.examples)[:2000])[:3])
                raise UserError(
                    f"{root / file} has the line '{line}', which is no picture by data.images",
                    accepted=f"a NAME, or the paths of a picture and its mask; names are {near}, ...",
                )
            if name in given:
                raise UserError(f"{name} stands in {LISTS[given[name]]} and in {file}", accepted="each picture once")
            given[name] = split
    all_listed = len(lists) == len(LISTS) or "train.txt" in lists
    examples = {name: found.examples[name] for name in given} if all_listed else found.examples
    return replace(found, examples=examples, splits=given)


def _listed(line: str, root: Path, examples: Mapping[str, Pair], files: Mapping[str, str]) -> str | None:
    """Return the name that a line means: itself, or its first column beside a flag or the picture's own mask."""
    name = line if line in examples else files.get(line)
    if name is None and len(columns := line.split()) == 2:
        name = columns[0] if columns[0] in examples else files.get(columns[0])
        if name is not None and columns[1] != FLAG and str(root / columns[1]) != examples[name].mask:
            return None
    return name
