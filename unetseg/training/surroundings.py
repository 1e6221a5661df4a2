"""What a training changes in its process, and leaves as it was: the caller may be a notebook with work of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2

from unetseg.runs.folder import FOLDER_FOR_RANKS
from unetseg.training.precision import FOR_RANKS
from unetseg.training.resume import random_state, restore_random_state

VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_SILENT", FOLDER_FOR_RANKS, FOR_RANKS)
"""Environment variables that Lightning's seed_everything and this package set."""
ALLOCATOR = ("GLIBC_TUNABLES", *(f"MALLOC_{n}_" for n in ("MMAP_MAX", "MMAP_THRESHOLD", "TOP_PAD", "TRIM_THRESHOLD")))
"""Environment variables of glibc's: whoever has set one of them has chosen how memory is kept."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""glibc's numbers for what `mallopt` sets."""
USUAL_MAPS, USUAL_THRESHOLD = 65_536, 64 * 2**20
"""glibc's own: blocks that it takes from Linux one by one, and free bytes that it holds once blocks are large."""

_held = False
"""Whether this process keeps its freed memory now."""


@contextmanager
def kept() -> Iterator[None]:
    """Give back the random numbers' state, threads of OpenCV, Lightning's log level and the environment at the end.

    Memory that is freed within the block is given back at the end, too.
    """
    random, threads = random_state(), cv2.getNumThreads()
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    environment = {name: os.environ.get(name) for name in VARIABLES}
    try:
        with freed_memory():
            yield
    finally:
        restore_random_state(random)
        cv2.setNumThreads(threads)
        log.setLevel(level)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def freed_memory(*, held: bool = True) -> Iterator[None]:
    """Let freed memory stay with the process during the block: the next tensor of its size has its pages at once.

    glibc gives large blocks back to Linux, which clears each page anew at its next use, and a network on the CPU frees
    and takes gigabytes in each step. At the end held memory is given back. Without effect where there is no glibc, and
    where one of ALLOCATOR is set.

    Args:
        held: False: as glibc does it, within a block where memory is held.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    before = _held
    if hasattr(library, "mallopt") and not any(name in os.environ for name in ALLOCATOR):
        _hold(library, held)
    try:
        yield
    finally:
        if _held != before:
            _hold(library, before)


def _hold(library: Any, held: bool) -> None:
    global _held
    library.mallopt(MMAP_MAX, 0 if held else USUAL_MAPS)
    library.mallopt(TRIM_THRESHOLD, -1 if held else USUAL_THRESHOLD)
    if not held:
        library.malloc_trim(0)
    _held = held
