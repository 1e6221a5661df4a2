"""Much of everything: a data set of a million entries, a sweep of ten thousand runs, a report of two hundred.

Seconds are from the start of a process on, with its imports; the memory is its own, without that of loader processes.

python -m benchmarks.scale FILE.json load FOLDER        in processes of their own, scripts/ importable
python -m benchmarks.scale FILE.json MODULE ARGUMENT ...

The pictures are links to a few files, and the runs copies of one: their number is what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import processes
from benchmarks.report import Result, Row

LINKS = 30_000
"""Hard links to one file; ext4 allows 65,000."""
FOLDER = 1000
"""Pictures in a folder of the data set."""
GIB = 2**30
RUN = (
    *("data=synthetic", "data.size=32", "data.train_images=12", "data.test_images=4", "data.batch_size=4"),
    *("data.workers=0", "model.encoder=resnet18", "model.weights=null", "trainer.max_epochs=1", "logger=csv"),
    *("trainer.accelerator=cpu", "gradients.every_n_steps=1", "model.skip=concat"),
)


def make_pictures(root: Path, count: int) -> None:
    """Write a data set of so many pictures of 8 x 8 pixels with their masks."""
    generator = np.random.default_rng(0)
    first: dict[str, Path] = {}
    for number in range(count):
        for kind in ("images", "masks"):
            path = root / kind / f"{number // FOLDER:04}" / f"{number % FOLDER:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number % LINKS:
                os.link(first[kind], path)
            else:
                shape = (8, 8, 3) if kind == "images" else (8, 8)
                Image.fromarray(generator.integers(0, 2, shape, dtype=np.uint8)).save(path)
                first[kind] = path


def load(root: str, workers: int = 2) -> dict[str, Any]:
    """Return when the first batch of a data set came, and a loader process's memory every 100 batches, up to 1,000."""
    from benchmarks.memory import shared_fairly
    from unetseg.data.sources import make_data
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train

    options = compose(
        "train",
        Train,
        ["data=folder", f"data.root={root}", "data.size=32", f"data.workers={workers}", "data.cache=none"],
    )
    data = make_data(options.data.model_dump(), options.seed)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    done = time.time()
    memory = []
    for number, _ in zip(range(1000), batches, strict=False):
        if number % 100 == 99:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            memory.append(sum(map(shared_fairly, children)) / workers)
    return {"done": done, "memory": memory}


def copy_runs(folder: Path, count: int) -> None:
    """Copy the run of seed 0 for all further seeds, without its checkpoints."""
    one = folder / "concat_seed0"
    shutil.rmtree(one / "checkpoints")
    config = (one / "config.yaml").read_text()
    assert "\nseed: 0\n" in config
    for seed in range(1, count):
        copy = folder / f"concat_seed{seed}"
        shutil.copytree(one, copy, copy_function=os.link)
        (copy / "config.yaml").unlink()  # a link to the first run's
        text = config.replace("\nseed: 0\n", f"\nseed: {seed}\n").replace("concat_seed0", copy.name)
        (copy / "config.yaml").write_text(text)


def measured(file: Path, *arguments: object) -> dict[str, Any]:
    """Return what a process of this module has found, with the seconds from its start until it was done."""
    begun = processes.python("-m", "benchmarks.scale", file, *arguments)
    found = json.loads(file.read_text())
    return found | {"seconds": found["done"] - begun}


def measure(pictures: int, cells: int, runs: int, rounds: int) -> Result:
    """Return the seconds and the memory of each."""
    rounds_of: dict[str, list[float]] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        make_pictures(folder / "set", pictures)
        kept = measured(folder / "first.json", "load", folder / "set")
        rows.append(_row(f"first batch of {pictures:,} pictures, all files checked", [kept]))
        again = [measured(folder / "again.json", "load", folder / "set") for _ in range(rounds)]
        rows.append(_row("the same, checked before", again))
        grown = [each["memory"][-1] / each["memory"][0] - 1 for each in again if each["memory"]]
        rounds_of["growth of a loader process from batch 100 to the last, share"] = grown
        rounds_of["first batch, all files checked, s"] = [kept["seconds"]]
        rounds_of["first batch, checked before, s"] = [each["seconds"] for each in again]
        for count, what in ((cells, "ablate"), (runs, "report")):
            place = folder / what
            sweep = ["unetseg.ablate", *RUN, f"output={place}", "name=sweep"]
            measured(folder / "one.json", *sweep, "seed=0")
            copy_runs(place / "sweep", count)
            commands = {
                "ablate": [*sweep, f"seed=range({count})"],
                "report": ["unetseg.report", f"runs={place / 'sweep'}", f"output={place / 'report'}"],
            }
            for command in dict.fromkeys((what, "report")):
                found = [measured(folder / "run.json", *commands[command]) for _ in range(rounds)]
                rows.append(_row(f"{command} of {count:,} runs that are finished", found))
                rounds_of[f"{command} of {count:,} runs, s"] = [each["seconds"] for each in found]
    return Result("pictures of 8 x 8 pixels; runs of one epoch", [rows], rounds_of)


def _row(what: str, found: list[dict[str, Any]]) -> Row:
    seconds = float(np.median([each["seconds"] for each in found]))
    memory = max(each["peak"] for each in found)
    return {"": what, "seconds": seconds, "GiB of the process at most": memory / GIB}


def main() -> None:
    """Run from the command line."""
    file, what, *arguments = sys.argv[1:]
    if what == "load":
        found = load(*arguments)
    else:
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        found = {"done": time.time()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(file).write_text(json.dumps(found | {"peak": peak}) + "\n")


if __name__ == "__main__":
    main()
