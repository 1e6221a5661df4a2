"""The two ways in which a command ends early with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Sequence

REQUEUE = 75
"""Exit status of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, "try again later"."""
INTERRUPTED = 130
"""Status of a Halt after Ctrl-C; the process then dies of SIGINT, which a shell shows as this number."""


class UserError(ValueError):
    """The user's input is wrong (exit status 2).

    The first line of its text is the problem; then follow what is accepted and what to try, a line each. An error of
    a loader's process is built again from its text alone.

    Args:
        problem: the input, and what is wrong with it.
        accepted: what would be accepted.
        advice: what to try; a sequence of several ways, a line each.

    Examples:
        >>> raise UserError("tile=5 is not accepted", accepted="a multiple of 32", advice="tile=512")
        Traceback (most recent call last):
        unetseg.errors.UserError: tile=5 is not accepted
          accepted: a multiple of 32
          try: tile=512
    """

    def __init__(self, problem: str, *, accepted: str = "", advice: str | Sequence[str] = ()):
        ways = [advice] if isinstance(advice, str) else list(advice)
        lines = [problem, f"  accepted: {accepted}" if accepted else ""]
        if len(ways) > 1:
            lines += [f"  try one of: {ways[0]}", *(f"              {way}" for way in ways[1:])]
        else:
            lines += [f"  try: {way}" for way in ways if way]
        super().__init__("\n".join(line for line in lines if line))


class Halt(Exception):
    """A run can't go on now, though its options are right: the text says what happened and what to do.

    Attributes:
        status: the exit status: 1, or one that says how to go on.

    Examples:
        >>> Halt("stopped after step 7", REQUEUE).status
        75
    """

    def __init__(self, text: str, status: int = 1):
        super().__init__(text)
        self.status = status


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
