"""Files that appear whole or not at all, and tables that grow by rows."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 255
"""Bytes of a file's name on the usual file systems."""


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Give the path of a draft beside `path`, which takes its place at the end of the block.

    Other programs never see a half-written file; where the block raises, what lay at `path` stays as it was.
    """
    draft = path.with_name(_fitting(f".{path.name}.tmp"))
    draft.unlink(missing_ok=True)  # what was left by a killed process, or lies there to be written through
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _fitting(name: str) -> str:
    """Return a file's name, or its beginning and a checksum where it is longer than file systems allow."""
    content = os.fsencode(name)
    if len(content) <= LONGEST:
        return name
    return os.fsdecode(content[: LONGEST - 41]) + "." + hashlib.sha1(content).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV table, which begins with the names of its columns."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(columns)
        writer.writerows(rows)
