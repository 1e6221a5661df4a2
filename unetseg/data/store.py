"""Keeps what was read of a data set's files, so that a second start opens no file again.

It lies below $XDG_CACHE_HOME, with the size of each file and the time of its last change. Files are read again where
they have changed, and where what is kept is damaged or can't be written. Each list of files has a file of its own; a
new list takes over what the others of the same folders have, so that a data set may grow and shrink. What a program
writes through a memory map that it holds open is no change by the clock of the file, and isn't seen.

Legend: N items, K files of each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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

VERSION = 6
"""Of the format."""
AT_ONCE = 32
"""Items that a thread reads before it takes others."""
LISTS = 4
"""Lists of the same folders that are kept, the newest ones."""

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
    names = _names(files)
    folders = _digest([reading, *map(_folder, files)])
    path = cache_folder("disk") / f"{folders}-{_digest([names.tobytes().hex()])}.survey.npz"
    known, places = kind.of([]), np.zeros(0, np.int64)
    for file in [path] if path.exists() else _newest_first(path.parent, folders):
        left = np.delete(np.arange(len(names)), places)
        more, own_places = _load(file, kind, names[left], states[left])
        known, places = known.joined(more), np.concatenate([places, left[own_places]])
    changed = np.delete(np.arange(len(names)), places).tolist()
    if not changed and path.exists():
        return known.take(places.argsort()), {}
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

    new = kind.of(readable())
    places = np.concatenate([places, np.array(own[: len(new)], np.int64)])
    order = places.argsort()
    found = known.joined(new).take(order)
    _save(path, np.column_stack([names, states])[places[order]], found)
    for old in _newest_first(path.parent, folders)[LISTS:]:
        with suppress(OSError):
            old.unlink()
    if stopped:
        raise stopped[0]
    return found, errors


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256(os.fsencode("\0".join([str(VERSION), *texts]))).hexdigest()[:16]


def _whole(path: str) -> str:
    return path if path[:1] == "/" else f"{os.getcwd()}/{path}"


def _folder(paths: Sequence[str]) -> str:
    """Return the folder that holds all of these files."""
    # that of the first and of the last in their order is that of all
    return os.path.commonpath([os.path.dirname(_whole(end(paths, default="/"))) for end in (min, max)])


def _names(files: Sequence[Sequence[str]]) -> np.ndarray:
    """Return a number for each item that stands for its files' names: N int64."""

    def number(paths: Sequence[str]) -> int:
        text = os.fsencode("\0".join(map(_whole, paths)))
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)

    return np.fromiter(map(number, zip(*files, strict=True)), np.int64, len(files[0]))


def _time(path: Path) -> int:
    return file_state(path)[1]


def _newest_first(folder: Path, folders: str) -> list[Path]:
    """Return what is kept of lists of these folders."""
    return sorted(folder.glob(f"{folders}-*.survey.npz"), key=_time, reverse=True)


def _load(path: Path, kind: type[Contents], names: np.ndarray, states: np.ndarray) -> tuple[Contents, np.ndarray]:
    """Return the contents that are kept of unchanged files, and these items' positions, ascending.

    Args:
        path: of what is kept.
        kind: of the contents.
        names: N int64.
        states: Nx2K int64.
    """
    with suppress(Exception):  # damaged bytes fail in every way there is
        if is_private(path.parent, 0o022):
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            entries = columns.pop("entries")
            contents = kind(**columns)
            if len(entries) == len(contents):
                order = entries[:, 0].argsort()
                rows = order[np.searchsorted(entries[order, 0], names).clip(max=len(order) - 1)]
                same = (entries[rows] == np.column_stack([names, states])).all(1) & (states[:, 1::2] != 0).all(1)
                return contents.take(rows[same]), np.flatnonzero(same)
    return kind.of([]), np.zeros(0, np.int64)


def _save(path: Path, entries: np.ndarray, contents: Sizes | Masks) -> None:
    """Keep contents with the name and the states of each, Nx(1+2K); without room or permission nothing is written."""
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
