"""Keeps what was read of a data set's files, so that a second start opens no file again.

It lies below $XDG_CACHE_HOME, with the size of each file and the time of its last change. Files are read again where
they have changed, and where what is kept is damaged or can't be written. A data set may grow and shrink: what is kept
is found by each item's names. What a program writes through a memory map that it holds open is no change by the clock
of the file, and isn't seen.

Legend: N items, K files of each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from unetseg import launch
from unetseg.data.cache import cache_folder, is_private
from unetseg.data.contents import Masks, Sizes
from unetseg.data.pictures import Unreadable
from unetseg.files import drafted

VERSION = 5
"""Of the format."""
AT_ONCE = 32
"""Items that a thread reads before it takes others."""

Contents = TypeVar("Contents", Sizes, Masks)


def file_state(path: Path | str) -> tuple[int, int]:
    """Return size and time of the last change (st_ctime, which no program can set); zeros if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_ctime_ns


def file_states(paths: Sequence[str]) -> np.ndarray:
    """Return `file_state` of each file: Nx2 int64."""
    return np.array([*map(file_state, paths)], np.int64).reshape(-1, 2)


def kept_or_read(
    kind: type[Contents],
    files: Sequence[Sequence[str]],
    states: np.ndarray,
    reading: str,
    read: Callable[[int], Any],
    description: str,
) -> tuple[Contents, dict[int, Unreadable]]:
    """Return the contents of N items' files, those of unchanged files as an earlier start has read them.

    Args:
        kind: of the contents.
        files: K columns of N paths.
        states: Nx2K int64: `file_states` of each column.
        reading: how they are read; another way is kept apart.
        read: returns an item of `kind.of` for a position, or Unreadable; called from several threads.
        description: of the work, shown beside its progress.

    Returns:
        The contents of the items that can be read, in their order, and by position why others can't.
    """
    path, names = _path(files, reading), _names(files)
    known, places, before = _load(path, kind, names, states)
    changed = np.flatnonzero(places < 0).tolist()
    if not changed:
        return known.take(places), {}
    errors: dict[int, Unreadable] = {}
    own: list[int] = []
    stopped: list[BaseException] = []

    def readable() -> Iterator[Any]:
        try:
            for position, content in zip(changed, _in_threads(read, changed, description), strict=True):
                if isinstance(content, Unreadable):
                    errors[position] = content
                else:
                    own.append(position)
                    yield content
        except BaseException as error:  # a wrong mask, Ctrl-C: what has been read until then is kept as well
            stopped.append(error)

    found = known.joined(kind.of(readable()))
    places[own] = len(known) + np.arange(len(own))
    unknown = ~np.isin(before[:, 0], names)  # items that are kept of other starts
    rows = np.concatenate([np.flatnonzero(unknown), places[places >= 0]])
    entries = np.concatenate([before[unknown], np.column_stack([names, states])[places >= 0]])
    _save(path, entries, found.take(rows))
    if stopped:
        raise stopped[0]
    return found.take(places[places >= 0]), errors


def _whole(path: str) -> str:
    return path if path[:1] == "/" else f"{os.getcwd()}/{path}"


def _path(files: Sequence[Sequence[str]], reading: str) -> Path:
    """Return the file in which the contents of such files are kept: one for the folders and the way of reading."""
    # that of the first and of the last in their order is that of all
    folders = [os.path.commonpath([_whole(end(column, default="")) for end in (min, max)]) for column in files]
    name = hashlib.sha256(os.fsencode("\0".join([str(VERSION), reading, *folders])))
    return cache_folder("disk") / f"{name.hexdigest()[:16]}.survey.npz"


def _names(files: Sequence[Sequence[str]]) -> np.ndarray:
    """Return a number for each item that stands for its files' names: N int64."""

    def number(paths: Sequence[str]) -> int:
        text = os.fsencode("\0".join(map(_whole, paths)))
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)

    return np.fromiter(map(number, zip(*files, strict=True)), np.int64, len(files[0]))


def _load(
    path: Path, kind: type[Contents], names: np.ndarray, states: np.ndarray
) -> tuple[Contents, np.ndarray, np.ndarray]:
    """Return all that is kept, the row of each item in it, and its entries; -1 for what is unknown or has changed.

    Args:
        path: of what is kept.
        kind: of the contents.
        names: N int64.
        states: Nx2K int64.

    Returns:
        M contents, N rows, and Mx(1+2K): the name and the states of each.
    """
    nothing = kind.of([]), np.full(len(names), -1), np.zeros((0, 1 + states.shape[1]), np.int64)
    with suppress(Exception):  # damaged bytes fail in every way there is
        if is_private(path.parent, 0o022):
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            entries = columns.pop("entries")
            contents = kind(**columns)
            order = entries[:, 0].argsort()
            rows = order[np.searchsorted(entries[order, 0], names).clip(max=len(order) - 1)]
            same = (entries[rows] == np.column_stack([names, states])).all(1) & (states[:, 1::2] != 0).all(1)
            contents.take(rows[same])  # fails here where an array is too short
            return contents, np.where(same, rows, -1), entries
    return nothing


def _save(path: Path, entries: np.ndarray, contents: Sizes | Masks) -> None:
    """Keep contents; without room or permission nothing is written."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(path.parent, 0o022):
            with drafted(path) as draft, draft.open("wb") as file:
                np.savez_compressed(file, entries=entries, **vars(contents))


def _in_threads(read: Callable[[int], Any], positions: Sequence[int], description: str) -> Iterator[Any]:
    """Yield `read` of each position, from several threads; the first process shows a progress bar."""
    console = Console(stderr=True)
    parts = [positions[first : first + AT_ONCE] for first in range(0, len(positions), AT_ONCE)]

    def attempt(position: int) -> tuple[Any, Exception | None]:
        try:
            return read(position), None
        except Exception as error:  # raised in its turn, after what was read before it
            return None, error

    with ThreadPoolExecutor(8) as pool:
        try:
            results = (one for part in pool.map(lambda part: [*map(attempt, part)], parts) for one in part)
            for content, error in track(
                results,
                description,
                total=len(positions),
                console=console,
                transient=True,
                disable=not (console.is_terminal and launch.is_first()),
            ):
                if error:
                    raise error
                yield content
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
