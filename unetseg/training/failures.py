"""What ends a training from outside its code, turned into messages: a damaged checkpoint, the system, Lightning."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unetseg.errors import Halt, UserError, first_line
from unetseg.options.output import FULL
from unetseg.runs.folder import RunFolder
from unetseg.training.resume import command_to_resume, damaged_checkpoint

SHARED_MEMORY = ("Bus error", "shared memory", "unable to write to file </torch", "unable to open file </torch")
"""Words of torch's errors where there is too little of it."""
LOADER_KILLED = r"DataLoader worker \(pid.*\) (is killed by signal: .*?|exited unexpectedly)(\.|$)"
HANDED_OVER = "resource_sharer.py"
"""Where multiprocessing fetches a batch's memory from a loader process: it finds nobody there after a kill."""


@contextmanager
def explain_damaged_checkpoint(run: RunFolder) -> Iterator[None]:
    """Turn an error of Lightning while it restores a checkpoint into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        passed = _passed(error)
        if isinstance(error, UserError) or "checkpoint_connector.py" not in passed or "dump_checkpoint" in passed:
            raise
        raise damaged_checkpoint(run.checkpoints, error) from error


@contextmanager
def explain_system_errors(run: RunFolder) -> Iterator[None]:
    """Turn errors of the system, which no option causes, into a Halt that says how to go on."""
    try:
        yield
    except (OSError, EOFError) as error:
        if HANDED_OVER in _passed(error):
            raise _loader_is_gone(run, "exited unexpectedly") from None
        if isinstance(error, OSError) and error.errno in FULL:
            raise Halt(
                f"no room to write {error.filename or 'a file'}: {error.strerror}\n"
                "  what was written before is whole\n"
                f"  try: make room, then {command_to_resume(run)}"
            ) from None
        raise
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in SHARED_MEMORY):
            raise Halt(
                "the loader's processes ran out of shared memory (/dev/shm)\n"
                "  try: more of it (docker run --shm-size=2g ...), data.workers=0 or a smaller data.batch_size\n"
                f"       {command_to_resume(run)} data.workers=0"
            ) from None
        if killed := re.search(LOADER_KILLED, text):
            raise _loader_is_gone(run, killed[1]) from None
        raise
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses these options: {first_line(error)}", accepted=str(error)) from None


def _passed(error: Exception) -> set[str]:
    """Return the names of the files and functions whose code the error came through."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return {name for code in codes for name in (Path(code.co_filename).name, code.co_name)}


def _loader_is_gone(run: RunFolder, how: str) -> Halt:
    return Halt(
        f"a loader process {how}: the machine may have run out of memory\n"
        f"  try: {command_to_resume(run)} data.workers=0"
    )
