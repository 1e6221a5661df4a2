"""The whole table of speed on a GPU, within a time limit; scripts/gpu.sh brings a bare machine to it.

python scripts/gpu.py --pets PETS --output FOLDER         gpu.json and gpu.md into FOLDER, and a short table
python scripts/gpu.py --seconds 200 --parts train         a part alone, with drawn pictures

roofline    the GPU's matrix and memory rates, and what of them a step uses, block by block
train       images/s of bare steps, of ours with data.cache=device and of smp's recipe, by encoder and size
ways        bare steps in other ways: memory layout, optimizer, recomputing, float32, compiled
gradients   what reading the gradient flow and the routes adds to a step
inference   images/s of smp.Unet and of ours, without gradients
ddp         ours on two GPUs, where there are two

What was measured is written after each part, beside what gpu.json has of other parts, or of other encoders, sizes and
so on. A part that may not fit into the time left is left out, and where one fails the others go on; both are told at
the end. With time left, train has another round. Without --pets the pictures are drawn.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from benchmarks import comparison, gradients, limit, pictures, processes, report, roofline, ways
from benchmarks.commandline import may_write, whole, without
from benchmarks.report import Result, Row
from benchmarks.steps import batch, best_device
from benchmarks.ways import images_per_second, side_by_side

from unetseg.data.synthetic import write_set
from unetseg.errors import first_line
from unetseg.model import Segmenter
from unetseg.model.encoders import make_encoder
from unetseg.options.command import exit_on_error
from unetseg.training.precision import MIXED, best_precision

PARTS = ("roofline", "train", "ways", "gradients", "inference", "ddp")
ROUNDS = 3
"""Of train at most, and of the ways and of inference."""
DRAWN, DRAWN_SIDE = 320, 400
"""Pictures that are drawn, which are linked to as often as needed, and their side: near that of Pets."""
FIRST_GUESS = {"roofline": 75, "train": 60, "ways": 60, "gradients": 45, "inference": 30, "ddp": 45}
"""Seconds that a part may take at its first time, on a machine that has just started."""
EPOCHS, TRAIN_PICTURES, VAL_PICTURES, TEST_PICTURES = 20, 3312, 368, 3669
"""Of a training on all of Oxford-IIIT Pet with the defaults."""
SWEEP = 3 * 5
"""Trainings of three skips with five seeds."""


@dataclass
class Settings:
    """What is measured, and what has been so far."""

    root: Path
    folder: Path
    encoders: Sequence[str]
    sizes: Sequence[int]
    batch_size: int
    steps: int
    workers: int
    speeds: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)
    """images/s of each kind by encoder and size, one for each round."""
    outside: list[float] = field(default_factory=list)
    """Seconds that ours took beside its training steps: start, decoding, validation, test."""

    def overrides(self, encoder: str, size: int) -> list[str]:
        """Return the options of a training of ours."""
        own = processes.training(self.root, encoder, size, self.batch_size, 1, self.workers)
        return [*own, "data.cache=device"]

    def new_run(self) -> Path:
        """Return the path of a run folder."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "run"


def train_round(settings: Settings, encoder: str, size: int) -> None:
    """Measure the bare step, ours and smp's recipe once."""
    bare = limit.images_per_second(encoder, size, settings.batch_size, settings.steps - 1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes that follow
    start = time.monotonic()
    own = processes.ours(settings.overrides(encoder, size), settings.new_run())["images_per_second"]
    outside = time.monotonic() - start - settings.batch_size * (settings.steps - 1) / own
    file = settings.folder / "smp.json"
    peer = processes.peer(settings.root, encoder, size, settings.batch_size, 1, settings.workers, file)
    settings.outside.append(outside)
    speeds = settings.speeds.setdefault((encoder, size), {"bare": [], "ours": [], "smp": []})
    for kind, speed in (("bare", bare), ("ours", own), ("smp", peer["images_per_second"])):
        speeds[kind].append(speed)


def train_result(settings: Settings) -> Result:
    """Return the table of all trainings so far."""
    rows: list[Row] = []
    listed = {}
    for (encoder, size), speeds in settings.speeds.items():
        bare, ours, peer = map(np.array, speeds.values())
        listed |= {f"{encoder}, {size} px, {kind}, images/s": values for kind, values in speeds.items()}
        spread = partial(comparison.spread, whole=True)
        rows.append(
            {
                "": f"{encoder}, {size} px",
                "bare, images/s": spread(bare),
                "ours, images/s": spread(ours),
                "ours / bare (target 0.9)": spread(ours / bare),
                "times smp's recipe (target 5)": spread(ours / peer),
                "3 skips x 5 seeds on Pets, projected minutes": projected_minutes(
                    float(np.median(ours)), float(np.median(settings.outside))
                ),
            }
        )
    setting = (
        f"batch {settings.batch_size}, {settings.steps} steps, {settings.workers} workers, data.cache=device; range of "
        f"all rounds. Projected: {SWEEP} times the start of ours and {EPOCHS} epochs, with validation and test at "
        "training's speed; the target is 30."
    )
    return Result(setting, [rows], listed)


def projected_minutes(speed: float, outside: float) -> float:
    """Return the minutes that a sweep on Pets would take.

    Args:
        speed: images/s of a training.
        outside: seconds of a run beside its steps.
    """
    images = EPOCHS * (TRAIN_PICTURES + VAL_PICTURES) + TEST_PICTURES
    return SWEEP * (images / speed + outside) / 60


def inference(settings: Settings) -> Result:
    """Measure forward passes without gradients, one picture at once and a batch."""
    encoder, size = settings.encoders[0], settings.sizes[0]
    device = best_device()
    ours = Segmenter(classes=2, encoder=encoder, weights=None).to(device).eval()
    theirs = smp.Unet(encoder, encoder_weights=None).to(device).eval()

    def passes(net: torch.nn.Module, images: torch.Tensor, mixed: bool) -> Callable[[], float]:
        @torch.inference_mode()
        def work() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                net(images)

        work()
        return images_per_second(work, len(images), settings.steps)

    kinds = {}
    mixed = best_precision(device.type) == MIXED
    for number in (1, settings.batch_size):
        images, _ = batch(size, number)
        kinds |= {
            f"smp.Unet, batch {number}": passes(theirs, images.float(), False),
            f"ours, float32, batch {number}": passes(ours, images, False),
            f"ours, best format, batch {number}": passes(ours, images, mixed),
        }
    return side_by_side(kinds, ROUNDS, f"forward passes, {encoder}, {size} px")


def ddp(settings: Settings) -> Result:
    """Measure ours on one and on two GPUs."""
    overrides = settings.overrides(settings.encoders[0], settings.sizes[0])
    both = ["trainer.devices=2", "trainer.strategy=ddp"]
    kinds = {
        f"{number} GPU": lambda own=own: processes.ours([*overrides, *own], settings.new_run())["images_per_second"]
        for number, own in ((1, []), (2, both))
    }
    rates = {kind: measure() for kind, measure in kinds.items()}
    rows: list[Row] = [
        {"": kind, "images/s": rate, "times 1 GPU": rate / rates["1 GPU"]} for kind, rate in rates.items()
    ]
    return Result("one round", [rows], {f"{kind}, images/s": [rate] for kind, rate in rates.items()})


def plan(settings: Settings, parts: Iterable[str]) -> list[tuple[str, str, Callable[[], Result]]]:
    """Return the turns in their order: part, name and work; turns of one name take about as long."""
    first = (settings.encoders[0], settings.sizes[0], settings.batch_size)

    def trained(encoder: str, size: int) -> Result:
        train_round(settings, encoder, size)
        return train_result(settings)

    cases = list(product(settings.encoders, settings.sizes))
    rounds = [("train", f"train {encoder} {size}", partial(trained, encoder, size)) for encoder, size in cases]
    of_ours = (settings.steps, settings.workers, "device", 1)
    whole = [
        ("roofline", "roofline", partial(roofline.measure, settings.root, *first, *of_ours)),
        *rounds,
        ("ways", "ways", partial(ways.compare, *first, settings.steps, ROUNDS, compiled=torch.cuda.is_available())),
        ("gradients", "gradients", partial(gradients.measure, *first, ROUNDS)),
        ("inference", "inference", partial(inference, settings)),
        ("ddp", "ddp", partial(ddp, settings)),
        *rounds * (ROUNDS - 1),
    ]
    return [(part, turn, work) for part, turn, work in whole if part in parts]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    begun = time.monotonic()
    given = list(sys.argv[1:] if argv is None else argv)
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about, allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")), help="default $OUT or runs/gpu"
    )
    parser.add_argument("--pets", type=Path, help="Oxford-IIIT Pet in its own layout; without it pictures are drawn")
    parser.add_argument("--seconds", type=whole(1), default=520, help="time limit of all, default 520")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="some of the above alone"
    )
    parser.add_argument("--encoders", nargs="+", default=["resnet34", "resnet50", "densenet121"], metavar="ENCODER")
    parser.add_argument("--sizes", nargs="+", type=whole(32, 32), default=[256, 512], metavar="PIXELS")
    parser.add_argument("--batch-size", type=whole(1), default=64, help="pictures of a step, default 64")
    parser.add_argument(
        "--steps", type=whole(2), default=51, help="training steps, with two readings of the gradient flow; default 51"
    )
    parser.add_argument("--workers", type=whole(0), default=min(16, os.cpu_count() or 1), help="loader processes")
    arguments = vars(parser.parse_args(given))
    others = [
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in arguments.items()
        if name in ("encoders", "sizes", "batch_size", "steps", "workers") and value != parser.get_default(name)
    ]
    output, pets, seconds, parts = (arguments.pop(name) for name in ("output", "pets", "seconds", "parts"))
    if torch.cuda.device_count() < 2:
        parts = [part for part in parts if part != "ddp"]
    file, text = output / "gpu.json", output / "gpu.md"
    with exit_on_error("gpu.py"), tempfile.TemporaryDirectory() as name:
        for path in (file, text):
            may_write(path)
        entries = report.kept(file)
        report.check_drawn(text, entries)
        for encoder in arguments["encoders"]:
            make_encoder(encoder, in_channels=3, weights=None)
        if pets:
            pictures.official_layout(pets)
        folder = Path(name)
        pets = pets or drawn(folder / "drawn", arguments["steps"] * arguments["batch_size"])
        root = pictures.link_pets(pets, folder / "pets", train_images=arguments["steps"] * arguments["batch_size"])
        settings = Settings(root, folder, **arguments)
        command = shlex.join(["python", "scripts/gpu.py", *without(given, "--pets", "--output")])
        names = {part: " ".join([part, *others]) for part in parts}
        left_out, failed = run(plan(settings, parts), begun + seconds, entries, output, command, names)
    print(report.markdown(entries) if entries else "")
    for turn in left_out:
        print(f"left out, as the time was up: {turn}")
    for reason in failed:
        print(f"failed: {reason}")
    print(f"{f'{file}, ' if entries else ''}{time.monotonic() - begun:.0f} s")
    if failed:
        raise SystemExit(1)


def run(
    turns: list[tuple[str, str, Callable[[], Result]]],
    end: float,
    entries: dict[str, Any],
    output: Path,
    text: str,
    names: dict[str, str],
) -> tuple[list[str], list[str]]:
    """Take all turns for which the time is enough, and write the entries after each, by the names of their parts.

    Returns:
        The turns that were left out, and those that failed with the reason.
    """
    took: dict[str, float] = {}
    left_out, failed = [], []
    for part, turn, work in turns:
        start = time.monotonic()
        if start + took.get(turn, FIRST_GUESS[part]) > end:
            left_out.append(turn)
            continue
        print(f"{turn} ...", flush=True)
        try:
            entries[names[part]] = report.entry(work(), text)
        except Exception as error:  # such as out of memory: the other turns are worth having
            traceback.print_exc()
            failed.append(f"{turn}: {first_line(error)}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        took[turn] = time.monotonic() - start
        report.write(entries, output / "gpu.json")
        (output / "gpu.md").write_text(report.markdown(entries))
    return left_out, failed


def drawn(root: Path, most: int) -> Path:
    """Draw pictures in the layout of Pets."""
    return write_set(root, train=min(DRAWN, most), test=4, size=DRAWN_SIDE, similarity=0.5, seed=0)


if __name__ == "__main__":
    main()
