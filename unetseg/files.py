"""Files that appear whole or not at all, tables that grow by rows, and no way out of a folder through a link.

A run folder may be a stranger's: a link in it, followed while writing, would lead to any file of ours.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unetseg.errors import UserError, first_line

LONGEST = 255
"""Bytes of a file's name on the usual file systems."""

LARGEST_JSON = 16_000_000
"""Bytes of a JSON file that is read."""


def user_cache() -> Path:
    """Return the folder below which this user's files are kept that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unetseg"


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Yield the path of a draft beside `path`; the draft replaces `path` at the end of the block.

    Other programs never see a half-written file. Where the block raises, the file at `path` stays as it was. A link at
    `path` is replaced, and its target stays as it was.
    """
    draft = path.with_name(_shorten(f".{path.name}.tmp"))
    draft.unlink(missing_ok=True)  # a killed process has left it, or it is a link
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _shorten(name: str) -> str:
    """Return a file's name, or its beginning and a checksum where it is longer than file systems allow."""
    content = os.fsencode(name)
    if len(content) <= LONGEST:
        return name
    return os.fsdecode(content[: LONGEST - 41]) + "." + hashlib.sha1(content).hexdigest()


def free_path(path: Path) -> Path:
    """Return this path or, where something is there, the first free one of NAME_2, NAME_3, ... with its ending."""
    further = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(own for own in itertools.chain([path], further) if not os.path.lexists(own))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, which may be a stranger's.

    Raises:
        ValueError: it is no file, too large, or holds no object; the message has no path.
    """
    try:
        if not path.is_file():
            raise ValueError("is no file")
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"has more than {LARGEST_JSON:,} bytes")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"can't be read: {first_line(error)}") from None
    except OSError as error:
        raise ValueError(f"can't be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError("can't be read: it holds no object")
    return content


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV table, which begins with the names of its columns."""
    with open(path, "a", newline="", encoding="utf-8", opener=no_link) as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(columns)
        writer.writerows(rows)


def no_link(path: str, flags: int) -> int:
    """Open a file that is neither a link nor a pipe nor a device: the `opener` of `open`.

    Raises:
        UserError: it is one of them.
    """
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _no_plain_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise _no_plain_file(path)
    return number


def refuse_links(folder: Path, but_for: Sequence[str] = ()) -> None:
    """Raise a UserError where something in a folder leads out of it, or is neither a file nor a folder.

    Args:
        folder: all that lies in it, at any depth, is looked at.
        but_for: names of folders in it whose content is left alone; they may be no links themselves.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            target = None
            with suppress(OSError, RuntimeError):  # links that lead in a circle
                target = path.resolve()
            leads_out = stat.S_ISLNK(mode) and (target is None or not target.is_relative_to(inside))
            if leads_out or not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _no_plain_file(str(path))
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in but_for]


def _no_plain_file(path: str) -> UserError:
    return UserError(
        f"{path} is a link, a pipe or a device",
        accepted="a folder whose files lie in it",
        advice="a copy that holds the files themselves: cp -rL FOLDER COPY",
    )
