"""The limit of any training here: forward, backward and optimizer on one resident batch; no loader, no logging.

python -m benchmarks.limit ENCODER SIZE BATCH_SIZE STEPS FILE.json     in a process of its own, scripts/ importable
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks.comparison import wait
from benchmarks.steps import WARM_UP, batch, best_device, stepper
from unetseg.model import Segmenter
from unetseg.training.surroundings import freed_memory


@freed_memory()
def images_per_second(encoder: str, size: int, batch_size: int, steps: int) -> float:
    """Return the images/s of bare steps: channels last, the device's best number format, AdamW, Dice, held memory."""
    torch.manual_seed(0)
    model = Segmenter(classes=2, encoder=encoder, weights=None).to(best_device())
    step = stepper(model, *batch(size, batch_size))
    for _ in range(WARM_UP):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return batch_size * steps / (time.perf_counter() - start)


def main() -> None:
    """Run from the command line."""
    encoder, size, batch_size, steps, file = sys.argv[1:]
    speed = images_per_second(encoder, int(size), int(batch_size), int(steps))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux, in KiB
    Path(file).write_text(json.dumps({"images_per_second": speed, "peak_memory": peak}) + "\n")


if __name__ == "__main__":
    main()
