"""How far a training step is from what the machine can do: model FLOPs utilisation, of all and block by block.

What the machine can do is measured in the same rounds: the rate of a large matrix product, and of copying. The time at
the roofline (Williams et al. 2009) of a block is the longer one of its arithmetic at that rate and its least memory
traffic at that of copying (`benchmarks.parts.Traffic`); the optimizer reads weights, gradients and two moments, and
writes all but the gradients. Ours is unetseg.train with its defaults, in fresh processes.
"""

from __future__ import annotations

import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import processes
from benchmarks.comparison import interleaved, spread, timed, wait
from benchmarks.parts import BACKWARD, FORWARD, Part, Parts, counted
from benchmarks.pictures import link_pets
from benchmarks.report import Result, Row, listed
from benchmarks.steps import WARM_UP, batch, best_device, stepper
from unetseg.gradients.blocks import blocks_of
from unetseg.model import Segmenter
from unetseg.training.precision import MIXED, best_precision
from unetseg.training.surroundings import freed_memory

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COPY = "copying"
BARE, OURS = "bare step", "ours"
COPIED = 256 * 2**20
"""Bytes of the tensor that is copied: more than a cache holds."""
LARGEST, LONG_ENOUGH = 8192, 0.03
"""The largest side of a matrix, and the seconds of a product from which a larger one isn't tried."""
OPTIMIZER_TRAFFIC = 7
"""Times the weights' bytes that a step of AdamW reads or writes at least."""


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a product of two square matrices."""
    side, seconds = 128, 0.0
    while True:
        left, right = (torch.randn(side, side, device=best_device()).to(dtype) for _ in range(2))
        seconds = min(timed(lambda a=left, b=right: a @ b)() for _ in range(3))
        if seconds > LONG_ENOUGH or side == LARGEST:
            return float(2 * side**3 / seconds)
        side *= 2


def copy_rate() -> float:
    """Return the bytes a second, read and written, of copying a tensor."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=best_device())
    target = torch.empty_like(source)
    return 2 * COPIED / min(timed(lambda: target.copy_(source))() for _ in range(3))


class Watched:
    """A training step that can be taken bare, divided into parts, or counted."""

    def __init__(self, encoder: str, size: int, batch_size: int):
        torch.manual_seed(0)
        self.model = Segmenter(classes=2, encoder=encoder, weights=None).to(best_device())
        images, masks = batch(size, batch_size)
        self.blocks = blocks_of(self.model.net)
        self.bare = stepper(self.model, images, masks)
        self.parts = Parts(self.model, self.blocks, self.clock)
        self.divided = stepper(self.model, images, masks, self.parts.enter)
        self.weight_bytes = sum(weight.nbytes for weight in self.model.parameters())
        for _ in range(WARM_UP):
            self.bare()

    @staticmethod
    def clock() -> Any:
        """Return now: an event of the GPU, where there is one, or seconds."""
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[Part, float]:
        """Return the seconds of each part of a step."""
        with self.parts.watched():
            self.divided()
        wait()
        on_gpu = torch.cuda.is_available()
        return self.parts.differences(lambda a, b: a.elapsed_time(b) / 1000 if on_gpu else b - a)

    def needs(self) -> dict[Part, np.ndarray]:
        """Return the floating-point operations and the least bytes of each part of a step."""
        with counted() as self.parts.read, self.parts.watched():
            self.divided()
        self.parts.read = self.clock
        needs = self.parts.differences(lambda a, b: b - a)
        needs["optimizer", FORWARD] = np.array([0.0, OPTIMIZER_TRAFFIC * self.weight_bytes])
        return needs


@freed_memory()
def measure(
    pets: Path, encoder: str, size: int, batch_size: int, steps: int, workers: int, cache: str, rounds: int
) -> Result:
    """Return what the machine can do, how much of it a bare step and ours use, and each block's share."""
    step = Watched(encoder, size, batch_size)
    needs, divided = step.needs(), []

    def bare_speed() -> float:
        step.bare()  # as ours leaves its first step out
        seconds = timed(lambda: [step.bare() for _ in range(steps - 1)])()
        divided.append(step.seconds())
        return batch_size * (steps - 1) / seconds

    with tempfile.TemporaryDirectory() as name:
        folder, turns = Path(name), count()
        root = link_pets(pets, folder / "pets", train_images=steps * batch_size)
        overrides = [*processes.training(root, encoder, size, batch_size, 1, workers), f"data.cache={cache}"]
        kinds = {
            **{f"{kind}, GFLOP/s": lambda own=dtype: matrix_rate(own) / 1e9 for kind, dtype in FORMATS.items()},
            f"{COPY}, GB/s": lambda: copy_rate() / 1e9,
            f"{BARE}, images/s": bare_speed,
            f"{OURS}, images/s": lambda: processes.ours(overrides, folder / f"run{next(turns)}")["images_per_second"],
        }
        measured = interleaved(kinds, rounds, warm_up=0)
    number_format = "bfloat16" if best_precision(best_device().type) == MIXED else "float32"
    rate = measured[f"{number_format}, GFLOP/s"]
    operations = sum(flops for flops, _ in needs.values())
    whole = utilisation({kind: measured[f"{kind}, images/s"] for kind in (BARE, OURS)}, operations / batch_size, rate)
    machine: list[Row] = [
        {"the machine": kind, "rate": spread(values, whole=True)}
        for kind, values in measured.items()
        if not kind.endswith("images/s")
    ]
    seconds = {part: float(np.median([each[part] for each in divided])) for part in divided[0]}
    limits = float(np.median(rate)) * 1e9, float(np.median(measured[f"{COPY}, GB/s"])) * 1e9
    own = batch_size / float(np.median(measured[f"{BARE}, images/s"]))
    setting = (
        f"{encoder}, {size} px, batch {batch_size}, {number_format}, {workers} workers, {steps} steps of ours, "
        f"data.cache={cache}, {rounds} interleaved rounds, range of all rounds; {operations / batch_size / 1e9:.2f} "
        "GFLOP a picture, forward and backward. The blocks' times are medians; together they are "
        f"{sum(seconds.values()) / own:.2f} times a bare step."
    )
    return Result(setting, [machine, whole, by_block(seconds, needs, *limits)], listed(measured, "as it says"))


def utilisation(speeds: dict[str, np.ndarray], operations: float, rate: np.ndarray) -> list[Row]:
    """Return the rows of model FLOPs utilisation.

    Args:
        speeds: images/s of each kind, one for each round; the first is what the others are held against.
        operations: floating-point operations of a training step for each picture.
        rate: of a matrix product, GFLOP/s, one for each round.
    """
    first = next(iter(speeds.values()))
    return [
        {
            "": kind,
            "images/s": spread(images, whole=True),
            f"times the {next(iter(speeds))}": spread(images / first, whole=True),
            "utilisation, %": spread(100 * images * operations / 1e9 / rate, whole=True),
        }
        for kind, images in speeds.items()
    ]


def by_block(seconds: dict[Part, float], needs: dict[Part, np.ndarray], rate: float, copying: float) -> list[Row]:
    """Return a row for each block, and one for all of them.

    Args:
        seconds: of each part.
        needs: floating-point operations and least bytes of each part; none where a part is absent.
        rate: floating-point operations a second that the machine can do.
        copying: bytes a second, read and written.
    """
    total = sum(seconds.values())
    rows: list[Row] = []
    sums = np.zeros(4)
    for block in dict.fromkeys(block for block, _ in seconds):
        forward, backward = (seconds.get((block, way), 0.0) for way in (FORWARD, BACKWARD))
        flops, traffic = sum((needs.get((block, way), np.zeros(2)) for way in (FORWARD, BACKWARD)), np.zeros(2))
        least = max(flops / rate, traffic / copying)
        sums += flops, traffic, forward + backward, least
        rows.append(
            {
                "block": block,
                "GFLOP": flops / 1e9,
                "least MB": traffic / 1e6,
                "forward, ms": 1000 * forward,
                "backward, ms": 1000 * backward,
                "% of the step": 100 * (forward + backward) / total,
                "utilisation, %": 100 * flops / rate / (forward + backward),
                "ms at the roofline": 1000 * least,
                "bound by": ("arithmetic" if flops / rate >= traffic / copying else "memory") if least else "-",
            }
        )
    flops, traffic, whole, least = sums
    rows.append(
        {
            "block": "step",
            "GFLOP": flops / 1e9,
            "least MB": traffic / 1e6,
            "forward, ms": 1000 * sum(time for (_, way), time in seconds.items() if way == FORWARD),
            "backward, ms": 1000 * sum(time for (_, way), time in seconds.items() if way == BACKWARD),
            "% of the step": 100.0,
            "utilisation, %": 100 * flops / rate / whole,
            "ms at the roofline": 1000 * least,
            "bound by": "",
        }
    )
    return rows
