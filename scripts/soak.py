"""Kill a training with kill -9 at random moments, resume it each time, and compare it with an undisturbed one.

python scripts/soak.py [--kills 20] [--seed 0] [--folder FOLDER] [OPTION=VALUE ...]

The moments are drawn with the seed. Every third waits for a checkpoint that is being written, and every third after
that for a validation; the others come any time. In the end weights, optimizer and tables must be the same to the last
bit, and metrics.csv must have each step once. Options are those of unetseg.train, e.g. trainer.devices=2.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import track

TRAIN = (sys.executable, "-m", "unetseg.train")
SMALL = (
    "data=synthetic", "data.size=64", "data.train_images=60", "data.test_images=7", "data.batch_size=4",
    "trainer.accelerator=cpu", "trainer.max_epochs=6", "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false", "logger=csv", "checkpoint.every_n_steps=2", "gradients.every_n_steps=3",
)  # fmt: skip
"""A run of 6 epochs and 84 steps, with a checkpoint every other step."""
SAME = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers")
"""What of a checkpoint must be equal."""
TABLES = ("metrics.csv", "gradient_flow.csv", "per_image.csv")


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Begin a training in a process group of its own."""
    return subprocess.Popen([*TRAIN, *arguments], start_new_session=True, stdout=subprocess.DEVNULL)


def train(arguments: Sequence[str], until: Callable[[], bool] | None = None) -> bool:
    """Train until the end, or until `until` returns true: then the training is killed; return whether it ended."""
    process = start(arguments)
    try:
        while process.poll() is None:
            if until is not None and until():
                return False
            time.sleep(0.001)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise SystemExit(f"unetseg.train ended with status {process.returncode}")
    return True


def moment(run: Path, kind: int, draw: random.Random, longest: float) -> Callable[[], bool]:
    """Return a condition that comes true while a checkpoint is written, in a validation, or some time into the run."""
    begun: list[float] = []
    rows = length(run)
    if kind == 1:
        return lambda: any(run.glob("checkpoints/*.tmp"))
    wait = draw.uniform(0.0, longest)

    def passed() -> bool:
        if not begun and (length(run) > rows if kind == 2 else run.exists()):
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > wait

    return passed


def length(run: Path) -> int:
    """Return the bytes of metrics.csv."""
    table = run / "metrics.csv"
    return table.stat().st_size if table.exists() else 0


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two run folders differ, and the scalars that the second one has more than once."""
    contents = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other)]
    found = [f"last.ckpt: {part}" for part in SAME if not equal(contents[0][part], contents[1][part])]
    found += [name for name in TABLES if (one / name).read_bytes() != (other / name).read_bytes()]
    with (other / "metrics.csv").open() as file:
        rows = Counter((row["step"], row["name"]) for row in csv.DictReader(file))
    return found + [f"{name} of step {step} stands {count} times" for (step, name), count in rows.items() if count > 1]


def equal(one: object, other: object) -> bool:
    """Return whether two trees of dicts, lists, tensors and plain values are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(equal, one, other))
    return one == other


def soak(folder: Path, kills: int, seed: int, overrides: Sequence[str], longest: float = 1.5) -> list[str]:
    """Train twice, once killed and resumed `kills` times, at most `longest` seconds in; return what differs."""
    options = [*SMALL, f"data.root={folder}/data", f"output={folder}", *overrides]
    draw = random.Random(seed)
    train([*options, "name=undisturbed"])
    run = folder / "killed"
    done = 0
    for number in track(range(kills), "killing"):
        begun = (run / "config.yaml").exists()
        if not train([f"resume={run}"] if begun else [*options, "name=killed"], moment(run, number % 3, draw, longest)):
            done += 1
        elif done < kills:
            raise SystemExit(f"the run was over after {done} kills: more epochs, e.g. trainer.max_epochs=20")
    train([f"resume={run}"])
    return differences(folder / "undisturbed", run)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(arguments.folder or Path(scratch), arguments.kills, arguments.seed, arguments.overrides)
    print("\n".join(found) or f"{arguments.kills} kills: the run is the undisturbed one to the last bit")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
