"""What the files of a data set hold, read before the first step: every mask once, every picture's head.

What was found in a mask is kept below $XDG_CACHE_HOME by the size of its file and the time of its last change, so that
a second start reads none. It is a help only: what is damaged, or can't be written, is found anew.

Legend: N masks.
"""

from __future__ import annotations

import hashlib
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

from unetseg import launch
from unetseg.data.cache import folder_of, private
from unetseg.data.dataset import Collection, Example
from unetseg.data.pictures import (
    Range,
    Unreadable,
    check_values,
    mask_size_of,
    no_one_foreground,
    read_raw_mask,
    size_of,
)
from unetseg.errors import UserError
from unetseg.files import drafted
from unetseg.names import IGNORE

VERSION = 1
"""Of what is kept of a mask."""
MASK = np.dtype(
    [("counts", np.int64, 256), ("palette", np.uint8, (256, 3)), ("coloured", np.bool_), ("bilevel", np.bool_)]
)
"""The pixels of each value, the colours of the values where it has a palette, and whether it has one bit a pixel."""

T = TypeVar("T")


@dataclass(frozen=True)
class Survey:
    """What was found in a data set."""

    unreadable: Mapping[str, Mapping[int, Unreadable]]
    """By split and position: why an example can't be read."""
    sizes: Mapping[str, np.ndarray]
    """Nx2 by split: height and width of the pictures that can be."""
    masks: Mapping[str, np.ndarray]
    """N by split: what was found in the masks of these, of type MASK; empty where only heads were read."""


def survey(found: Collection, how: str, value_range: Range = None) -> Survey:
    """Read the files of a data set.

    Args:
        found: the data set.
        how: full | headers (sizes only) | none.
        value_range: by which pictures of more than 8 bits will be read.

    Raises:
        UserError: a mask hasn't its picture's size or has a value without a meaning, or masks contradict each other.
    """
    places = [(split, place) for split, examples in found.splits.items() for place in range(len(examples))]
    examples = [found.splits[split][place] for split, place in places]
    masks: list[Any] = []
    sizes: list[Any] = [found.missing.get(example.image) or found.missing.get(example.mask) for example in examples]
    if how != "none":

        def head(place: int) -> tuple[int, int] | Unreadable:
            return sizes[place] or head_of(examples[place], value_range)

        sizes = _each(head, range(len(examples)), "looking at the pictures")
    if how == "full":
        good = [example.mask for example, size in zip(examples, sizes, strict=True) if not isinstance(size, Unreadable)]
        contents = contents_of(good)
        masks = [contents.get(example.mask, size) for example, size in zip(examples, sizes, strict=True)]
        check_masks({path: content for path, content in contents.items() if not isinstance(content, Unreadable)}, found)
    errors: dict[str, dict[int, Unreadable]] = {split: {} for split in found.splits}
    for (split, place), content in zip(places, masks or sizes, strict=True):
        if isinstance(content, Unreadable):
            errors[split][place] = content

    def of(split: str, contents: Sequence[Any]) -> list[Any]:
        pairs = zip(places, contents, strict=True)
        return [content for place, content in pairs if place[0] == split and place[1] not in errors[split]]

    return Survey(
        unreadable=errors,
        sizes={split: np.array(of(split, sizes) if how != "none" else [], int).reshape(-1, 2) for split in errors},
        masks={split: np.array(of(split, masks) if masks else [], MASK) for split in errors},
    )


def head_of(example: Example, value_range: Range = None) -> tuple[int, int] | Unreadable:
    """Return height and width of an example, or why it can't be read; a UserError if its mask has another size."""
    try:
        (height, width), (mask_height, mask_width) = size_of(example.image, value_range), mask_size_of(example.mask)
    except Unreadable as error:
        return error
    if (height, width) != (mask_height, mask_width):
        raise UserError(
            f"{example.mask} is {mask_width}x{mask_height}, its picture {example.image} {width}x{height}",
            accepted="a mask of the picture's size",
        )
    return height, width


def content_of(path: Path) -> np.ndarray | Unreadable:
    """Return what a mask holds, of type MASK, or why it can't be read."""
    try:
        raw = read_raw_mask(path)
    except Unreadable as error:
        return error
    colours = np.zeros((256, 3), np.uint8)
    colours.reshape(-1)[: len(raw.palette)] = np.frombuffer(raw.palette[:768], np.uint8)
    counts = np.bincount(raw.values.ravel(), minlength=256)
    return np.array((counts, colours, bool(raw.palette), raw.bilevel), MASK)


def contents_of(paths: Sequence[Path]) -> dict[Path, Any]:
    """Return what each mask holds, of type MASK, or why it can't be read; from what is kept where that is as it was."""
    states = {path: _state(path) for path in paths}
    kept = Kept(paths)
    contents: dict[Path, Any] = {
        path: kept.contents[path] for path in states if kept.states.get(path) == states[path] != (0, 0)
    }
    due = [path for path in states if path not in contents]
    read: list[Any] = _each(content_of, due, "reading the masks")
    contents |= dict(zip(due, read, strict=True))
    if due:
        kept.keep({path: (states[path], content) for path, content in contents.items() if not _bad(content)})
    return contents


class Kept:
    """What an earlier start found in these masks.

    Args:
        paths: their files, whose names choose the one in which it is kept.
    """

    def __init__(self, paths: Sequence[Path]):
        names = hashlib.sha256(b"%d" % VERSION)
        for path in paths:
            names.update(os.fsencode(path.absolute()) + b"\0")
        self.path = folder_of("disk") / f"{names.hexdigest()[:16]}.masks.npz"
        self.states: dict[Path, tuple[int, int]] = {}
        self.contents: dict[Path, np.ndarray] = {}
        self.place = {path: place for place, path in enumerate(paths)}
        with suppress(Exception):  # damaged bytes fail in every way there is: the masks are read again
            if not private(self.path.parent, 0o022):
                return
            with np.load(self.path, allow_pickle=False) as file:
                rows = {name: file[name] for name in ("places", "states", *(MASK.names or ()))}
            contents = np.zeros(len(rows["places"]), MASK)
            for name in MASK.names or ():
                contents[name] = rows[name]
            chosen = [paths[place] for place in rows["places"].tolist()]
            self.contents = dict(zip(chosen, contents, strict=True))
            self.states = dict(zip(chosen, map(tuple, rows["states"].tolist()), strict=True))

    def keep(self, found: Mapping[Path, tuple[tuple[int, int], Any]]) -> None:
        """Keep states and contents for the next start, where there is room and leave for it."""
        contents = np.array([content for _, content in found.values()], MASK)
        states = np.array([state for state, _ in found.values()], np.int64).reshape(-1, 2)
        places = np.array([self.place[path] for path in found], np.int64)
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if private(self.path.parent, 0o022):
                with drafted(self.path) as draft, draft.open("wb") as file:
                    columns: dict[str, Any] = {name: contents[name] for name in MASK.names or ()}
                    np.savez_compressed(file, places=places, states=states, **columns)


def _state(path: Path) -> tuple[int, int]:
    """Return size and time of the last change, which no program can set; zeros of a file that isn't there."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_ctime_ns


def _bad(content: Any) -> bool:
    return isinstance(content, Unreadable)


def check_masks(contents: Mapping[Path, np.ndarray], found: Collection) -> None:
    """Raise a UserError if a mask has a value without a meaning, or two masks mean different things by one value."""
    for path, content in contents.items():
        check_values(path, content["counts"] > 0, found.values)
    full = {path: content for path, content in contents.items() if not content["bilevel"]}
    white = next((path for path, content in full.items() if content["counts"][255]), None)
    if white and found.values[1] == found.values[255]:
        one = next((path for path, content in full.items() if content["counts"][1]), None)
        if one:
            raise no_one_foreground(one, white)
    if white and found.values[255] == IGNORE:
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
            seen, first = colour_of.setdefault(value, (colour, path))
            number, same = value_of.setdefault(colour, (value, path))
            if (seen, number) != (colour, value):
                other, told = (first, f"{value} is {seen}") if seen != colour else (same, f"{colour} is {number}")
                here = f"{value} is {colour}" if seen != colour else f"{colour} is {value}"
                raise UserError(
                    f"the palettes of the masks differ: in {other} {told}, in {path} {here}",
                    accepted="masks with one palette, or grey ones with the class as the value",
                )


def table(found: Collection, results: Survey) -> Table:
    """Return how many pictures there are in each split, of which sizes, and what share each class has."""
    shown = Table(title=None)
    shown.add_column("")
    for split in found.splits:
        shown.add_column(split, justify="right")
    shown.add_row("pictures", *(str(len(examples)) for examples in found.splits.values()))
    if any(len(sizes) for sizes in results.sizes.values()):
        shown.add_row("width", *(_span(sizes[:, 1]) for sizes in results.sizes.values()))
        shown.add_row("height", *(_span(sizes[:, 0]) for sizes in results.sizes.values()))
    for label, name in [*enumerate(found.classes), (IGNORE, "ignored")]:
        counts = {split: class_counts(masks, found.values, label) for split, masks in results.masks.items()}
        known = any(map(len, counts.values()))
        if known and (label != IGNORE or any(each.any() for each in counts.values())):
            cells = [
                f"{each.sum() / max(results.masks[split]['counts'].sum(), 1):.2%} in {(each > 0).sum()}"
                for split, each in counts.items()
            ]
            shown.add_row(name, *cells)
    return shown


def remarks(found: Collection, results: Survey) -> list[str]:
    """Return what should be known before the start: classes that never occur, and splits of one picture."""
    lines = [
        f"the {split} split has one picture only: its scores say little"
        for split, examples in found.splits.items()
        if len(examples) == 1
    ]
    for split, masks in results.masks.items():
        absent = [
            name for label, name in enumerate(found.classes) if not class_counts(masks, found.values, label).any()
        ]
        if absent and len(masks):
            lines.append(f"no mask of the {split} split has {', '.join(absent)}")
    return lines


def class_counts(masks: np.ndarray, values: np.ndarray, label: int) -> np.ndarray:
    """Return the pixels of a class, or of IGNORE, in each of N masks: N int64."""
    return masks["counts"][:, values == label].sum(1)


def _span(lengths: np.ndarray) -> str:
    least, most = lengths.min(initial=2**62), lengths.max(initial=0)
    return "" if not len(lengths) else f"{least}" if least == most else f"{least} to {most}"


def _each(read: Callable[[Any], T], items: Sequence[Any], doing: str) -> list[T]:
    """Return what `read` makes of each item, in several threads, with a progress bar of the first process."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(8) as pool:
        try:
            shown = track(
                pool.map(read, items),
                doing,
                total=len(items),
                console=console,
                transient=True,
                disable=not (console.is_terminal and launch.is_first()),
            )
            return list(shown)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
