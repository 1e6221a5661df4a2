"""What the command lines of the measuring commands share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from unetseg.errors import UserError


def whole(least: int, multiple: int = 1) -> Callable[[str], int]:
    """Return a type of argparse: whole numbers from `least` on that are multiples of `multiple`.

    Examples:
        >>> whole(1, 32)("64")
        64
    """

    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least or int(text) % multiple:
            raise ValueError  # argparse says what was given, and names the type
        return int(text)

    number.__name__ = f"a whole number from {least} on" + (f", a multiple of {multiple}" if multiple > 1 else "")
    return number


def may_write(path: Path) -> None:
    """Make the folder of a file; raise a UserError where the file can't be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}", advice="another file") from None


def without(given: Sequence[str], *options: str) -> list[str]:
    """Return the command line without these options and their values."""
    kept = list(given)
    for position in reversed(range(len(kept))):
        if kept[position] in options:
            del kept[position : position + 2]
        elif kept[position].partition("=")[0] in options:
            del kept[position]
    return kept
