"""Reads the files of a data set before the first step: every mask once, every picture's header.

What was read is kept below $XDG_CACHE_HOME with the size of each file and the time of its last change, so that a second
start opens no file again. Files are read again where this store is damaged or can't be written.

Legend: N pictures or masks, K files of each.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from unetseg import launch
from unetseg.data.cache import cache_folder, is_private
from unetseg.data.dataset import Collection, Example
from unetseg.data.masks import MaskValues, ambiguous_foreground, check_values, mask_size, read_raw_mask
from unetseg.data.pictures import WHOLE_RANGE, Unreadable, image_size
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.files import drafted
from unetseg.names import IGNORE, shown

VERSION = 3
"""Of the store's format."""
SIZE = np.dtype([("size", np.int64, 2)])
"""Height and width of a picture."""
MASK = np.dtype(
    [("counts", np.int64, 256), ("palette", np.uint8, (256, 3)), ("coloured", np.bool_), ("bilevel", np.bool_)]
)
"""The content of a mask: pixels of each value, the values' colours by its palette if any, and whether it has one bit a
pixel."""

T = TypeVar("T")


@dataclass(frozen=True)
class Survey:
    """The contents of a data set's files."""

    unreadable: Mapping[str, Mapping[int, Unreadable]]
    """By split and position: why an example can't be read."""
    sizes: Mapping[str, np.ndarray]
    """Nx2 by split: height and width of the pictures that can be read."""
    masks: Mapping[str, np.ndarray]
    """N by split: the contents of these pictures' masks, of type MASK; empty where only headers were read."""


def survey(collection: Collection, check: str, view: View = WHOLE_RANGE) -> Survey:
    """Read the files of a data set.

    Args:
        collection: the data set.
        check: full | headers (sizes only) | none.
        view: by which pictures will be read.

    Raises:
        UserError: a mask hasn't its picture's size or has a value without a meaning, or masks contradict each other.
    """
    positions = [(split, i) for split, examples in collection.splits.items() for i in range(len(examples))]
    examples = [collection.splits[split][i] for split, i in positions]
    missing = collection.missing
    sizes: list[Any] = [missing.get(example.image) or missing.get(example.mask) for example in examples]
    masks: list[Any] = []
    if check != "none":
        present = [index for index, error in enumerate(sizes) if error is None]
        found = example_sizes([examples[index] for index in present], view)
        for index, size in zip(present, found, strict=True):
            sizes[index] = size
    if check == "full":
        sized = [(example, size) for example, size in zip(examples, sizes, strict=True)]
        readable = [example.mask for example, size in sized if not isinstance(size, Unreadable)]
        contents = mask_contents(readable, collection.values)
        masks = [contents.get(example.mask, size) for example, size in sized]
        check_masks(_readable(contents), collection)
    errors: dict[str, dict[int, Unreadable]] = {split: {} for split in collection.splits}
    for (split, i), content in zip(positions, masks or sizes, strict=True):
        if isinstance(content, Unreadable):
            errors[split][i] = content

    def readable_of(split: str, contents: Sequence[Any]) -> list[Any]:
        pairs = zip(positions, contents, strict=True)
        return [content for (own, i), content in pairs if own == split and i not in errors[split]]

    return Survey(
        unreadable=errors,
        sizes={
            split: np.array(readable_of(split, sizes) if check != "none" else [], int).reshape(-1, 2)
            for split in errors
        },
        masks={split: np.array(readable_of(split, masks) if masks else [], MASK) for split in errors},
    )


def example_size(example: Example, view: View = WHOLE_RANGE) -> tuple[int, int] | Unreadable:
    """Return height and width of an example, or why it can't be read; a UserError if its mask has another size."""
    try:
        height, width = image_size(example.image, view)
        mask_height, mask_width = mask_size(example.mask)
    except Unreadable as error:
        return error
    if (height, width) != (mask_height, mask_width):
        raise UserError(
            f"{example.mask} is {mask_width}x{mask_height}, its picture {example.image} {width}x{height}",
            accepted="a mask of the picture's size",
        )
    return height, width


def mask_content(path: Path, values: MaskValues) -> np.ndarray | Unreadable:
    """Return the content of a mask, of type MASK, or why it can't be read."""
    try:
        raw = read_raw_mask(path, values)
    except Unreadable as error:
        return error
    colours = np.zeros((256, 3), np.uint8)
    colours.reshape(-1)[: len(raw.palette)] = np.frombuffer(raw.palette[:768], np.uint8)
    counts = np.bincount(raw.values.ravel(), minlength=256)
    return np.array((counts, colours, bool(raw.palette), raw.bilevel), MASK)


def example_sizes(examples: Sequence[Example], view: View = WHOLE_RANGE) -> list[tuple[int, int] | Unreadable]:
    """Return `example_size` of each example; those of unchanged files come from the store."""
    pairs = [(example.image, example.mask) for example in examples]
    of_pair = dict(zip(pairs, examples, strict=True))

    def read(pair: tuple[Path, ...]) -> np.ndarray | Unreadable:
        size = example_size(of_pair[pair[0], pair[1]], view)
        return size if isinstance(size, Unreadable) else np.array((size,), SIZE)

    reading = f"sizes {view.channels} {view.value_range}"
    found = _kept_or_read(pairs, reading, SIZE, read, "looking at the pictures")
    return [each if isinstance(each, Unreadable) else tuple(each["size"].tolist()) for each in found]


def mask_contents(paths: Sequence[Path], values: MaskValues) -> dict[Path, Any]:
    """Return the content of each mask, of type MASK, or why it can't be read; unchanged masks come from the store."""
    each = [(path,) for path in dict.fromkeys(paths)]

    def read(files: tuple[Path, ...]) -> np.ndarray | Unreadable:
        return mask_content(files[0], values)

    found = _kept_or_read(each, f"masks {values.reading}", MASK, read, "reading the masks")
    return {files[0]: content for files, content in zip(each, found, strict=True)}


def _kept_or_read(
    items: Sequence[tuple[Path, ...]],
    reading: str,
    kind: np.dtype,
    read: Callable[[tuple[Path, ...]], np.ndarray | Unreadable],
    description: str,
) -> list[Any]:
    """Return what `read` says of each item, of type `kind` or Unreadable; of unchanged files, as an earlier start did.

    Args:
        items: the K files of each.
        reading: how they are read; another way has a store of its own.
        kind: the type of what is kept.
        read: reads an item; called from several threads.
        description: of the work, shown beside its progress.
    """
    width = 2 * len(items[0]) if items else 2
    states = np.array([state for item in items for path in item for state in file_state(path)], np.int64)
    states = states.reshape(-1, width)
    store = Store(items, reading, kind, width)
    same = (store.states == states).all(1) & (states[:, 1::2] != 0).all(1)
    results: list[Any] = [row if known else None for row, known in zip(store.rows, same.tolist(), strict=True)]
    changed = np.flatnonzero(~same).tolist()
    found = _map_in_threads(read, [items[position] for position in changed], description)
    for position, content in zip(changed, found, strict=True):
        results[position] = content
        if not isinstance(content, Unreadable):
            store.rows[position] = content
    if changed:
        readable = [position for position, content in enumerate(results) if not isinstance(content, Unreadable)]
        store.save(readable, states)
    return results


class Store:
    """What an earlier start has kept of N items.

    Args:
        items: the K files of each; their names determine the file of the store.
        reading: how they are read.
        kind: the type of what is kept.
        width: 2K.

    Attributes:
        states: NxW int64, of each file its size and the time of its last change; -1 where nothing is kept.
        rows: N of the kind.
    """

    def __init__(self, items: Sequence[tuple[Path, ...]], reading: str, kind: np.dtype, width: int):
        names = hashlib.sha256(f"{VERSION}{reading}".encode())
        for path in itertools.chain.from_iterable(items):
            names.update(os.fsencode(path.absolute()) + b"\0")
        self.path = cache_folder("disk") / f"{names.hexdigest()[:16]}.survey.npz"
        self.states = np.full((len(items), width), -1, np.int64)
        self.rows = np.zeros(len(items), kind)
        with suppress(Exception):  # damaged bytes fail in every way there is; then the files are read again
            if not is_private(self.path.parent, 0o022):
                return
            with np.load(self.path, allow_pickle=False) as file:
                columns = {name: file[name] for name in ("places", "states", *(kind.names or ()))}
            places, rows = columns["places"], self.rows.copy()
            for name in kind.names or ():
                rows[name][places] = columns[name]
            self.states[places] = columns["states"]
            self.rows = rows

    def save(self, places: Sequence[int], states: np.ndarray) -> None:
        """Write the rows at these places and their states; without room or permission nothing is written."""
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_private(self.path.parent, 0o022):
                with drafted(self.path) as draft, draft.open("wb") as file:
                    at = np.array(places, np.int64)
                    columns: dict[str, Any] = {name: self.rows[name][at] for name in self.rows.dtype.names or ()}
                    np.savez_compressed(file, places=at, states=states[at], **columns)


def file_state(path: Path) -> tuple[int, int]:
    """Return size and time of the last change (st_ctime, which no program can set); zeros if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_ctime_ns


def _readable(contents: Mapping[Path, Any]) -> dict[Path, Any]:
    return {path: content for path, content in contents.items() if not isinstance(content, Unreadable)}


def check_masks(contents: Mapping[Path, np.ndarray], collection: Collection) -> None:
    """Raise a UserError if a mask has a value without a meaning, or a value has different meanings in two masks."""
    for path, content in contents.items():
        check_values(path, content["counts"] > 0, collection.values)
    full = {path: content for path, content in contents.items() if not content["bilevel"]}
    white = next((path for path, content in full.items() if content["counts"][255]), None)
    if white and collection.values.either:
        one = next((path for path, content in full.items() if content["counts"][1]), None)
        if one:
            raise ambiguous_foreground(one, white)
    if white and collection.values.table[255] == IGNORE:
        bits = next((path for path, content in contents.items() if content["bilevel"] and content["counts"][1]), None)
        if bits:
            raise UserError(
                f"{bits} has one bit a pixel, {white} eight, and 255 is ignored: what is white in the former?",
                accepted="masks of eight bits a pixel",
            )
    check_palettes({path: content for path, content in contents.items() if content["coloured"]})


def check_palettes(contents: Mapping[Path, np.ndarray]) -> None:
    """Raise a UserError if the order of the colours differs between palettes, so that a value has two meanings."""
    if len({content["palette"].tobytes() for content in contents.values()}) < 2:
        return
    colour_of: dict[int, tuple[tuple[int, ...], Path]] = {}
    value_of: dict[tuple[int, ...], tuple[int, Path]] = {}
    for path, content in contents.items():
        for value in np.flatnonzero(content["counts"]).tolist():
            colour = tuple(content["palette"][value].tolist())
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
            counts = {
                split: class_counts(masks, collection.values.table, label) for split, masks in results.masks.items()
            }
            if label != IGNORE or any(pixels.any() for pixels in counts.values()):
                cells = [
                    f"{pixels.sum() / max(results.masks[split]['counts'].sum(), 1):.2%} in {(pixels > 0).sum()}"
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
            if not class_counts(masks, collection.values.table, label).any()
        ]
        if absent and len(masks):
            lines.append(f"no mask of the {split} split has {', '.join(absent)}")
    return lines


def class_counts(masks: np.ndarray, table: np.ndarray, label: int) -> np.ndarray:
    """Return the pixels of a class, or of IGNORE, in each of N masks: N int64."""
    return masks["counts"][:, table == label].sum(1)


def _range_text(lengths: np.ndarray) -> str:
    least, most = lengths.min(initial=2**62), lengths.max(initial=0)
    return "" if not len(lengths) else f"{least}" if least == most else f"{least} to {most}"


def _map_in_threads(read: Callable[[Any], T], items: Sequence[Any], description: str) -> list[T]:
    """Return `read` of each item, from several threads; the first process shows a progress bar."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(8) as pool:
        try:
            results = track(
                pool.map(read, items),
                description,
                total=len(items),
                console=console,
                transient=True,
                disable=not (console.is_terminal and launch.is_first()),
            )
            return list(results)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
