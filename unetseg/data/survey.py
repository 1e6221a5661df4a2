"""Reads the files of a data set before the first step: every mask once, every picture's header.

Legend: N pictures or masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from unetseg.data.contents import MaskContent, Masks, Sizes
from unetseg.data.dataset import Collection, files_of
from unetseg.data.masks import INVALID, MaskValues, ambiguous_foreground, check_values, mask_size, read_raw_mask
from unetseg.data.pictures import WHOLE_RANGE, Unreadable, image_size
from unetseg.data.store import file_states, kept_or_read
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.names import IGNORE, shown


@dataclass(frozen=True)
class Survey:
    """The contents of a data set's files."""

    unreadable: Mapping[str, Mapping[int, Unreadable]]
    """By split and position: why an example can't be read."""
    sizes: Mapping[str, np.ndarray]
    """Nx2 by split: height and width of the pictures that can be read."""
    masks: Mapping[str, Masks]
    """By split: the contents of these pictures' masks; of none where only headers were read."""


def survey(collection: Collection, check: str, view: View = WHOLE_RANGE) -> Survey:
    """Read the files of a data set.

    Args:
        collection: the data set.
        check: full | headers (sizes only) | none.
        view: by which pictures will be read.

    Raises:
        UserError: a mask hasn't its picture's size or has a value without a meaning, or masks contradict each other.
    """
    parts = [files_of(examples) for examples in collection.splits.values()]
    images, masks = ([path for part in parts for path in part[column]] for column in (0, 1))
    errors = _missing(collection, images, masks)
    readable = _others(len(images), errors)
    sizes, contents = Sizes.of([]), Masks.of([])
    if check != "none":
        states = np.concatenate([file_states(images), file_states(masks)], axis=1)
        own = readable.tolist()
        files = [images[i] for i in own], [masks[i] for i in own]
        sizes, more = _read_sizes(*files, states[readable], view)
        errors |= {own[i]: error for i, error in more.items()}
        readable = readable[_others(len(own), more)]
    if check == "full":
        own = readable.tolist()
        contents, more = read_masks([masks[i] for i in own], collection.values, states[readable, 2:])
        errors |= {own[i]: error for i, error in more.items()}
        left = _others(len(own), more)
        sizes, readable = sizes.take(left), readable[left]
        check_masks(contents, [masks[i] for i in readable.tolist()], collection)
    unreadable: dict[str, dict[int, Unreadable]] = {}
    sizes_of, masks_of = {}, {}
    first, in_order = 0, sorted(errors.items(), key=itemgetter(0))
    for split, examples in collection.splits.items():
        end = first + len(examples)
        unreadable[split] = {i - first: error for i, error in in_order if first <= i < end}
        of_split = np.flatnonzero((first <= readable) & (readable < end))
        sizes_of[split] = sizes.take(of_split if check != "none" else []).sizes
        masks_of[split] = contents.take(of_split if check == "full" else [])
        first = end
    return Survey(unreadable, sizes_of, masks_of)


def _missing(collection: Collection, images: Sequence[str], masks: Sequence[str]) -> dict[int, Unreadable]:
    """Return by position why examples can't be read whose picture or mask isn't there."""
    known = {str(path): error for path, error in collection.missing.items()}
    found = {}
    for position, pair in enumerate(zip(images, masks, strict=True)) if known else ():
        for path in pair[::-1]:  # the picture's error counts
            if path in known:
                found[position] = known[path]
    return found


def _others(count: int, positions: Iterable[int]) -> np.ndarray:
    """Return the positions from 0 to count - 1 that aren't given."""
    return np.delete(np.arange(count), [*positions])


def example_size(image: Path, mask: Path, view: View = WHOLE_RANGE) -> tuple[int, int] | Unreadable:
    """Return height and width of an example, or why it can't be read; a UserError if its mask has another size."""
    try:
        height, width = image_size(image, view)
        mask_height, mask_width = mask_size(mask)
    except Unreadable as error:
        return error
    if (height, width) != (mask_height, mask_width):
        raise UserError(
            f"{mask} is {mask_width}x{mask_height}, its picture {image} {width}x{height}",
            accepted="a mask of the picture's size",
        )
    return height, width


def _read_sizes(
    images: Sequence[str], masks: Sequence[str], states: np.ndarray, view: View
) -> tuple[Sizes, dict[int, Unreadable]]:
    """Return the sizes of examples, and by position why others can't be read."""
    return kept_or_read(
        Sizes,
        (images, masks),
        states,
        f"sizes {view.channels} {view.value_range}",
        lambda i: example_size(Path(images[i]), Path(masks[i]), view),
        "looking at the pictures",
    )


def read_masks(
    paths: Sequence[str], values: MaskValues, states: np.ndarray | None = None
) -> tuple[Masks, dict[int, Unreadable]]:
    """Return the contents of masks, and by position why others can't be read.

    Args:
        paths: of the N masks.
        values: by which they are read.
        states: `file_states` of these files, where they are known.

    Raises:
        UserError: a file is no mask of one channel.
    """
    return kept_or_read(
        Masks,
        (paths,),
        file_states(paths) if states is None else states,
        f"masks {values.reading}",
        lambda i: mask_content(Path(paths[i]), values),
        "reading the masks",
    )


def mask_content(path: Path, values: MaskValues) -> MaskContent | Unreadable:
    """Return the content of a mask, or why it can't be read."""
    try:
        raw = read_raw_mask(path, values)
    except Unreadable as error:
        return error
    pixels = np.bincount(raw.values.ravel(), minlength=256)
    present = np.flatnonzero(pixels)
    palette = raw.palette[:768].ljust(768, b"\0") if raw.palette else b""
    return MaskContent(present.astype(np.uint8), pixels[present], palette, raw.bilevel)


def check_masks(masks: Masks, paths: Sequence[str], collection: Collection) -> None:
    """Raise a UserError if a mask has a value without a meaning, or a value has different meanings in two masks."""
    values = collection.values
    doubtful = masks.pixels_of(values.table, INVALID) > 0
    if values.either:
        doubtful |= masks.has(1) & masks.has(255)
    for row in np.flatnonzero(doubtful).tolist():
        present = np.zeros(256, bool)
        present[masks.values] = masks.pixels[row] > 0
        check_values(Path(paths[row]), present, values)

    def first(rows: np.ndarray) -> Path | None:
        return Path(paths[int(rows.argmax())]) if rows.any() else None

    white = first(masks.has(255) & ~masks.bilevel)
    one = first(masks.has(1) & ~masks.bilevel)
    if white and one and values.either:
        raise ambiguous_foreground(one, white)
    if white and values.table[255] == IGNORE:
        bits = first(masks.has(1) & masks.bilevel)
        if bits:
            raise UserError(
                f"{bits} has one bit a pixel, {white} eight, and 255 is ignored: what is white in the former?",
                accepted="masks of eight bits a pixel",
            )
    check_palettes(masks, paths)


def check_palettes(masks: Masks, paths: Sequence[str]) -> None:
    """Raise a UserError if the order of the colours differs between palettes, so that a value has two meanings."""
    used = np.unique(masks.palette[masks.palette >= 0]).tolist()
    if len(used) < 2:
        return
    first_uses = []  # of each palette and value: the first mask in which it occurs
    for palette in used:
        rows = np.flatnonzero(masks.palette == palette)
        present = masks.pixels[rows] > 0
        for column in np.flatnonzero(present.any(0)).tolist():
            first_uses.append((int(rows[present[:, column].argmax()]), int(masks.values[column]), palette))
    colour_of: dict[int, tuple[tuple[int, ...], str]] = {}
    value_of: dict[tuple[int, ...], tuple[int, str]] = {}
    for row, value, palette in sorted(first_uses):
        colour, path = tuple(masks.palettes[palette, value].tolist()), paths[row]
        first_colour, colour_path = colour_of.setdefault(value, (colour, path))
        first_value, value_path = value_of.setdefault(colour, (value, path))
        if (first_colour, first_value) != (colour, value):
            if first_colour != colour:
                other, there, here = colour_path, f"{value} is {first_colour}", f"{value} is {colour}"
            else:
                other, there, here = value_path, f"{colour} is {first_value}", f"{colour} is {value}"
            raise UserError(
                f"the palettes of the masks differ: in {other} {there}, in {path} {here}",
                accepted="masks with one palette, or grey ones with the class as the value",
            )


def table(collection: Collection, results: Survey) -> Table:
    """Return the number of pictures in each split, the range of their sizes, and the share of each class."""
    rows = Table(title=None)
    rows.add_column("")
    for split in collection.splits:
        rows.add_column(split, justify="right")
    rows.add_row("pictures", *(str(len(examples)) for examples in collection.splits.values()))
    if any(len(sizes) for sizes in results.sizes.values()):
        rows.add_row("width", *(_range_text(sizes[:, 1]) for sizes in results.sizes.values()))
        rows.add_row("height", *(_range_text(sizes[:, 0]) for sizes in results.sizes.values()))
    if any(map(len, results.masks.values())):
        for label, name in [*enumerate(collection.classes), (IGNORE, "ignored")]:
            counts = {split: masks.pixels_of(collection.values.table, label) for split, masks in results.masks.items()}
            if label != IGNORE or any(pixels.any() for pixels in counts.values()):
                cells = [
                    f"{pixels.sum() / max(results.masks[split].pixels.sum(), 1):.2%} in {(pixels > 0).sum()}"
                    for split, pixels in counts.items()
                ]
                rows.add_row(Text(shown(name)), *cells)
    return rows


def remarks(collection: Collection, results: Survey) -> list[str]:
    """Return warnings for the user: classes that never occur, and splits of one picture."""
    lines = [
        f"the {split} split has one picture only: its scores say little"
        for split, examples in collection.splits.items()
        if len(examples) == 1
    ]
    for split, masks in results.masks.items():
        absent = [
            name
            for label, name in enumerate(collection.classes)
            if not masks.pixels_of(collection.values.table, label).any()
        ]
        if absent and len(masks):
            lines.append(f"no mask of the {split} split has {', '.join(absent)}")
    return lines


def _range_text(lengths: np.ndarray) -> str:
    least, most = lengths.min(initial=2**62), lengths.max(initial=0)
    return "" if not len(lengths) else f"{least}" if least == most else f"{least} to {most}"
