"""What a training changes in its process, and leaves as it was: the caller may be a notebook with work of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from unetseg.runs.folder import FOLDER_FOR_RANKS
from unetseg.training.precision import FOR_RANKS
from unetseg.training.resume import random_state, restore_random_state

VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_SILENT", FOLDER_FOR_RANKS, FOR_RANKS)
"""Environment variables that Lightning's seed_everything and this package set."""


@contextmanager
def kept() -> Iterator[None]:
    """Give back the random numbers' state, threads of OpenCV, Lightning's log level and the environment at the end."""
    random, threads = random_state(), cv2.getNumThreads()
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    environment = {name: os.environ.get(name) for name in VARIABLES}
    try:
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
