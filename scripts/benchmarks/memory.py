"""Whether the memory of a long training grows: unetseg.train's own loop, and the memory in use at the end of each step.

python -m benchmarks.memory FILE.json OVERRIDE ...     in a process of its own, scripts/ importable

Counted is what the training process and its loader's processes have written to; pages that they share count once
(Pss_Anon and Pss_Shmem of Linux). Pages of libraries are left out: their share depends on who else has them mapped.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks import processes
from benchmarks.pictures import link_pets
from benchmarks.report import Result, Row
from unetseg.options.compose import compose
from unetseg.options.schema import Train

MIB = 2**20
EPOCHS = 40
"""Over which the steps are spread, so that what an epoch's end leaves behind counts, too."""


class Memory(L.Callback):
    """Keeps (step, bytes) of every n-th step, as `look` finds them."""

    def __init__(self, every: int, look: Callable[[], int]):
        self.every, self.look = every, look
        self.found: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Look."""
        if trainer.global_step % self.every == 0:
            self.found.append((trainer.global_step, self.look()))


def in_use() -> int:
    """Return the bytes that this process and its children hold for themselves."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(shared_fairly(process) for process in ("self", *children))


def shared_fairly(process: str) -> int:
    """Return the bytes that a process has written to; of those that several share, its part."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def in_tensors() -> int:
    """Return the bytes of all tensors that Python reaches: without what an allocator keeps for later."""
    gc.collect()
    own = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    # Without those that torch.compile and torch.export trace with: they have no bytes.
    tensors = [each for each in own if each.layout is torch.strided and not torch._is_functional_tensor(each)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def growth(found: list[tuple[int, int]]) -> float:
    """Return the bytes a step by which the memory grows in the second half of the steps: a least-squares slope."""
    steps, memory = np.array(found[len(found) // 2 :], dtype=float).T
    return float(np.polyfit(steps, memory, 1)[0])


def trained(overrides: list[str], every: int, look: Callable[[], int] = in_use) -> list[tuple[int, int]]:
    """Train in this process with unetseg.train; return (step, bytes) of every n-th step."""
    from unetseg.train import train

    memory = Memory(every, look)
    train(compose("train", Train, overrides), callbacks=[memory])
    return memory.found


def measure(pets: Path, encoder: str, size: int, batch_size: int, steps: int, workers: int, rounds: int) -> Result:
    """Return the memory at some steps of each run, and how it grows in the second half."""
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = link_pets(pets, folder / "pets", train_images=max(1, steps // EPOCHS) * batch_size)
        overrides = processes.training(root, encoder, size, batch_size, EPOCHS, workers)
        for number in range(rounds):
            file = folder / f"{number}.json"
            processes.python("-m", "benchmarks.memory", file, *overrides, f"output={folder}", f"name=run{number}")
            runs.append(json.loads(file.read_text()))
    setting = (
        f"{encoder}, {size} px, batch {batch_size}, {workers} workers, {steps} steps in {EPOCHS} epochs with "
        f"validation; the growth is that of the second half"
    )
    shown = [round(len(runs[0]) * share) - 1 for share in (0.1, 0.25, 0.5, 0.75, 1)]
    rows: list[Row] = [
        {"run": str(number + 1)}
        | {f"MiB at step {found[row][0]:,}": found[row][1] / MIB for row in shown}
        | {"growth, MiB in 1,000 steps": 1000 * growth(found) / MIB}
        for number, found in enumerate(runs)
    ]
    return Result(setting, [rows], {f"run {i + 1}, bytes": [b for _, b in found] for i, found in enumerate(runs)})


def main() -> None:
    """Run from the command line."""
    file, *overrides = sys.argv[1:]
    Path(file).write_text(json.dumps(trained(overrides, every=20)) + "\n")


if __name__ == "__main__":
    main()
