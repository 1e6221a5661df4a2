"""The output of a command: checked before the work, and a message where writing fails later."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetseg.errors import Halt, UserError
from unetseg.names import shown

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors of a full disk."""


def check_writable(folder: Path) -> None:
    """Raise a UserError unless a folder can be written to, or made where it is absent."""
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        reason = "can't be written to" if present.is_dir() else "is no folder"
        raise UserError(
            f"output={shown(folder)}: {shown(present)} {reason}",
            accepted="a folder that may be written to",
            advice="another output=...",
        )


@contextmanager
def explain_write_errors(output: Path, option: str = "output") -> Iterator[None]:
    """Turn an OSError of the block, which writes an output, into a message.

    Raises:
        Halt: the disk is full; files that were written before are whole.
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
    """Print the last message of a command, whose work is done even where the message can't be printed."""
    try:
        print(shown_lines(text), flush=True)
    except (OSError, ValueError):  # a pipe that was closed, a full disk behind `>`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for what the interpreter flushes at its end)


def shown_lines(text: str) -> str:
    """Return a text of several lines, each escaped as by `shown`."""
    return "\n".join(shown(line) for line in text.split("\n"))
