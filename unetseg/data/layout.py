"""Where a data set's files lie: patterns such as {split}/images/{name}_sat.jpg.

`{name}` stands for the name of a picture, which may contain folders; `{split}` for train, val or test as it is called
there (training, validation, ...); `{channel}` for the name of a channel, where a picture has several files; `*` for
anything within a name. A mask belongs to the picture of its `{name}` and
`{split}`, where the pattern has one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unetseg.errors import UserError
from unetseg.names import nearest_first

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""What the splits are called in data sets."""
FIELDS = {
    "name": ".+",
    "channel": "[^/]+",
    "split": "(?i:" + "|".join(sorted(SPLIT_WORDS, key=len, reverse=True)) + ")",
}
"""The regular expression of what a pattern's fields stand for."""


MOST_STARS = 2
"""More of them in one name would take too long to compare."""


@dataclass(frozen=True)
class Place:
    """What a path says by a pattern."""

    name: str
    split: str
    """train, val or test; empty where the pattern has no {split}."""


class Pattern:
    """Paths relative to a folder, with fields.

    Raises:
        UserError: the pattern has unknown fields, or leads out of the folder.

    Examples:
        >>> Pattern("data.images", "{split}/{name}_sat.jpg").place("valid/a/b_sat.jpg")
        Place(name='a/b', split='val')
    """

    def __init__(self, option: str, text: str):
        self.option, self.text = option, text
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or not text:
            raise UserError(f"{option}={text} is not accepted", accepted="a pattern of paths below data.root")
        parts = re.split(r"(\{\w*\}|\*)", str(path))
        unknown = [part for part in parts if part.startswith("{") and part[1:-1] not in FIELDS]
        if unknown:
            accepted = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise UserError(f"{option}={text} has {', '.join(unknown)}", accepted=f"{accepted} and *")
        if any(part.count("*") > MOST_STARS for part in path.parts):
            raise UserError(f"{option}={text} has too many *", accepted=f"up to {MOST_STARS} in a name")
        self.fields = {part[1:-1] for part in parts if part.startswith("{")}
        expression = ""
        for number, part in enumerate(parts):
            field = part[1:-1] if part.startswith("{") else ""
            if not field:
                expression += "[^/]*" if part == "*" else re.escape(part)
            elif field != "split" and f"?P<{field}>" in expression:
                expression += f"(?P={field})"
            else:  # the word for a split may be another in a file's name: testing/01_test.tif
                expression += f"(?P<{field}{number if field == 'split' else ''}>{FIELDS[field]})"
        self.expression = re.compile(expression)

    def place(self, path: str) -> Place | None:
        """Return what a relative path, with `/`, says; None if it doesn't fit."""
        found = self.expression.fullmatch(path)
        if not found:
            return None
        fields = found.groupdict()
        splits = {SPLIT_WORDS[word.lower()] for field, word in fields.items() if field.startswith("split")}
        return Place(fields.get("name", ""), next(iter(splits), "")) if len(splits) < 2 else None

    def channel(self, path: str) -> str:
        """Return the name of the channel in a path that fits."""
        found = self.expression.fullmatch(path)
        return found["channel"] if found else ""


def beginning(folder: Path) -> str:
    """Return what the paths of a folder's files begin with, as text.

    Examples:
        >>> beginning(Path("sets/pets")), beginning(Path(".")), beginning(Path("/"))
        ('sets/pets/', '', '/')
    """
    return str(folder / "x")[:-1]


def files_below(root: Path) -> list[str]:
    """Return the paths of all files below a folder, relative, sorted by folder; hidden ones are left out.

    macOS leaves ._NAME.jpg beside NAME.jpg on foreign disks.
    """
    found: list[str] = []
    reals: dict[str, str] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        reals[folder] = os.path.realpath(folder)
        below = "" if folder == str(root) else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        parents = [str(parent) for parent in Path(folder).parents]
        if any(reals.get(parent) == reals[folder] for parent in parents):  # a link that leads in a circle
            folders[:] = []
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [below + name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.replace("/", "\0"))  # as lists of parts, which take more time


def find(root: Path, files: list[str], pattern: Pattern) -> dict[Place, list[str]]:
    """Return the files that fit a pattern, by name and split.

    Raises:
        UserError: none does.
    """
    found: dict[Place, list[str]] = {}
    for file in files:
        place = pattern.place(file)
        if place:
            found.setdefault(place, []).append(file)
    if not found:
        near = nearest_first(pattern.text, files[:2000])[:3]
        raise UserError(
            f"no file below {root} fits {pattern.option}={pattern.text}",
            accepted="a pattern that files fit" + (f"; there are {', '.join(near)}, ..." if near else ""),
            advice=f"python -m unetseg.data {root}, which looks at the folder",
        )
    return found
