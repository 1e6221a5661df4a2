"""What a training changes in its process, and leaves as it was: the caller may be a notebook with work of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
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
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""glibc's numbers for what `mallopt` sets."""
USUAL_MAPS, LARGE = 65_536, 32 * 2**20
"""How many blocks glibc takes from Linux one by one, and the bytes from which on it does so in the end."""

_lock = threading.Lock()
_holders: set[object] = set()
"""One for each block of code that holds freed memory now."""


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
def freed_memory() -> Iterator[None]:
    """Let freed memory stay with the process during the block: the next tensor of its size has its pages at once.

    glibc gives large blocks back to Linux, which clears each page anew at its next use, and a network on the CPU frees
    and takes gigabytes in each step. At the end of the last such block held memory is given back. The thresholds are
    then those that glibc comes to by itself in a process that has used blocks of 32 MiB; what a program has set with
    `mallopt` is lost. Without effect where there is no glibc, where one of ALLOCATOR is set, and, for blocks above
    32 MiB, outside the main thread.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    is_glibc = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    if not is_glibc or any(name in os.environ for name in ALLOCATOR):
        yield
        return
    own = object()
    try:
        with _lock:
            _holders.add(own)
            _apply(library)
        yield
    finally:
        with _lock:
            _holders.discard(own)
            _apply(library)


def _apply(library: Any) -> None:
    """Hold freed memory where anybody asks for it."""
    library.mallopt(MMAP_MAX, 0 if _holders else USUAL_MAPS)
    library.mallopt(TRIM_THRESHOLD, -1 if _holders else 2 * LARGE)
    # any call of mallopt ends that glibc raises this by itself, and blocks above it would be cleared anew for good
    library.mallopt(MMAP_THRESHOLD, LARGE)
    if not _holders:
        library.malloc_trim(0)
