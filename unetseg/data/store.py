"""Keeps what was read of a data set's files, so that a second start opens no file again.

It lies below $XDG_CACHE_HOME, with the size of each file and the time of its last change. Files are read again where
they have changed, and where what is kept is damaged or can't be written.

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

VERSION = 4
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
    path = _path(files, reading)
    kept, places = _load(path, kind, states)
    changed = np.delete(np.arange(len(states)), places).tolist()
    if not changed:
        return kept, {}
    errors: dict[int, Unreadable] = {}

    def readable() -> Iterator[Any]:
        for position, content in zip(changed, _in_threads(read, changed, description), strict=True):
            if isinstance(content, Unreadable):
                errors[position] = content
            else:
                yield content

    found = kept.joined(kind.of(readable()))
    places = np.concatenate([places, [position for position in changed if position not in errors]]).astype(np.int64)
    order = places.argsort()
    found = found.take(order)
    _save(path, places[order], states, found)
    return found, errors


def _path(files: Sequence[Sequence[str]], reading: str) -> Path:
    """Return the file in which the contents of these files are kept."""
    here = os.getcwd()
    names = hashlib.sha256(f"{VERSION}{reading}".encode())
    for column in files:
        names.update(os.fsencode("\0".join(path if path[:1] == "/" else f"{here}/{path}" for path in column)) + b"\0\0")
    return cache_folder("disk") / f"{names.hexdigest()[:16]}.survey.npz"


def _load(path: Path, kind: type[Contents], states: np.ndarray) -> tuple[Contents, np.ndarray]:
    """Return the contents that are kept of unchanged files, and their positions, ascending."""
    with suppress(Exception):  # damaged bytes fail in every way there is
        if is_private(path.parent, 0o022):
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            places, own = columns.pop("places"), columns.pop("states")
            contents = kind(**columns)
            same = (own == states[places]).all(1) & (own[:, 1::2] != 0).all(1)
            return (contents if same.all() else contents.take(np.flatnonzero(same))), places[same]
    return kind.of([]), np.zeros(0, np.int64)


def _save(path: Path, places: np.ndarray, states: np.ndarray, contents: Sizes | Masks) -> None:
    """Keep the contents of the items at these places; without room or permission nothing is written."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(path.parent, 0o022):
            with drafted(path) as draft, draft.open("wb") as file:
                np.savez_compressed(file, places=places, states=states[places], **vars(contents))


def _in_threads(read: Callable[[int], Any], positions: Sequence[int], description: str) -> Iterator[Any]:
    """Yield `read` of each position, from several threads; the first process shows a progress bar."""
    console = Console(stderr=True)
    parts = [positions[first : first + AT_ONCE] for first in range(0, len(positions), AT_ONCE)]
    with ThreadPoolExecutor(8) as pool:
        try:
            results = (one for part in pool.map(lambda part: [*map(read, part)], parts) for one in part)
            yield from track(
                results,
                description,
                total=len(positions),
                console=console,
                transient=True,
                disable=not (console.is_terminal and launch.is_first()),
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
