"""Where a command writes to: refused at once where it can't be written, and a message where that fails later."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetseg.errors import Halt, UserError
from unetseg.names import shown

FULL = (errno.ENOSPC, errno.EDQUOT)


def check_writable(folder: Path, option: str = "output") -> None:
    """Raise a UserError unless a folder can be written to, or made where it isn't there."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "can't be written to" if above.is_dir() else "is no folder"
        raise UserError(
            f"{option}={shown(folder)}: {shown(above)} {what}",
            accepted="a folder that may be written to",
            advice=f"another {option}=...",
        )


@contextmanager
def writing(output: Path, option: str = "output") -> Iterator[None]:
    """Turn what the system says of an output that can't be written into a message.

    Raises:
        Halt: the disk is full; what was written before is whole.
        UserError: anything else: a read-only disk, a file where a folder should be, a name that is too long.
    """
    try:
        yield
    except OSError as error:
        place = shown(error.filename or output)
        reason = f"{option}={shown(output)}: {place} can't be written: {error.strerror or error}"
        if error.errno in FULL:
            raise Halt(f"{reason}\n  make room; the same command goes on") from None
        raise UserError(reason, accepted="a folder that may be written to", advice=f"another {option}=...") from None


def say(text: str) -> None:
    """Print what a finished command has to say; work that is done stays done where nobody can hear it."""
    try:
        print(shown_lines(text), flush=True)
    except (OSError, ValueError):  # a pipe that was closed, a full disk behind `>`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for what the interpreter flushes at its end)


def shown_lines(text: str) -> str:
    """Return a text whose lines hold nothing that a terminal would obey, see `shown`."""
    return "\n".join(shown(line) for line in text.split("\n"))
