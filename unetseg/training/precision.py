"""The number format that a training computes in where trainer.precision is null, and that a checkpoint is scored in."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn

from unetseg import launch
from unetseg.model import archive
from unetseg.names import PRECISIONS

FULL, MIXED, HALF, DOUBLE = PRECISIONS
LEAST_GAIN = 1.25
"""Times as fast as float32, from which the CPU's bfloat16 is taken: so far from 1 that chance doesn't decide."""
ROUNDS = 4
FOR_RANKS = "UNETSEG_PRECISION"
"""Environment variable that hands the choice to the processes that Lightning launches for further devices."""


def best_precision(accelerator: str) -> str:
    """Return bf16-mixed where the device computes faster in bfloat16, otherwise 32-true.

    A GPU is asked whether it has bfloat16. A CPU that has it is timed, once in a process: some compute slower in it
    than in float32. Where torchrun or srun has started several processes, which can't agree on a measurement yet, the
    CPU's own word counts.

    Args:
        accelerator: Lightning's name: auto, cpu, gpu, cuda, ...
    """
    if _is_cuda(accelerator):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif is_cpu(accelerator) and has_bfloat16():
        if "LOCAL_RANK" in os.environ and FOR_RANKS in os.environ:  # Lightning started this process
            return os.environ[FOR_RANKS]
        fast = launch.has_peers() or bfloat16_gain() >= LEAST_GAIN
        os.environ[FOR_RANKS] = MIXED if fast else FULL
    else:
        fast = False
    return MIXED if fast else FULL


def scoring_precision(trained_in: str | None, accelerator: str) -> str:
    """Return the number format that a checkpoint is scored in: its training's where the device has that, or the best.

    So the scores are those of the run's own test. bfloat16 is kept at whatever speed, but for a CPU without it.
    """
    if _is_cuda(accelerator):
        has = {FULL, DOUBLE, HALF} | ({MIXED} if torch.cuda.is_bf16_supported() else set())
    elif is_cpu(accelerator):
        has = {FULL, DOUBLE} | ({MIXED} if has_bfloat16() else set())
    else:
        has = {FULL}
    return trained_in if trained_in in has else best_precision(accelerator)


def describe(scored_in: str, trained_in: str | None) -> str:
    """Return the number format that a checkpoint is scored in as a line, with that of its training where it differs."""
    if trained_in is None:
        return f"scored in {scored_in}; the checkpoint doesn't say what it was trained in"
    return f"scored in {scored_in}" + (f"; trained in {trained_in}" if trained_in != scored_in else "")


def is_cpu(accelerator: str) -> bool:
    """Return whether this accelerator of Lightning's is the CPU on this machine."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def _is_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def has_bfloat16() -> bool:
    """Return whether the CPU says that it has bfloat16 instructions; without them torch is a hundred times slower."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


@cache
def bfloat16_gain() -> float:
    """Return how many times as fast as float32 the CPU is in bfloat16, forward and backward through a convolution.

    Both take turns, and the fastest turn of each counts. It takes a few hundredths of a second and no random numbers.
    """
    images = torch.ones(2, 64, 32, 32).to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(64, 64, kernel_size=3, padding=1).to(memory_format=torch.channels_last)
    turns = [(_seconds(convolution, images, False), _seconds(convolution, images, True)) for _ in range(ROUNDS)]
    full, mixed = map(min, zip(*turns, strict=True))
    return full / mixed


def _seconds(convolution: nn.Module, images: torch.Tensor, mixed: bool) -> float:
    start = time.perf_counter()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        convolution(images.requires_grad_()).sum().backward()
    return time.perf_counter() - start


def recorded_precision(checkpoint: Path) -> str | None:
    """Return the number format that a checkpoint's run has computed in; None where it isn't known."""
    try:
        precision = archive.load(checkpoint)["precision"]
    except Exception:  # absent, older or damaged, of which `rewind` says more
        return None
    return precision if precision in (MIXED, FULL) else None
