"""Measure what this package costs, side by side with its alternatives, interleaved in one run.

python scripts/benchmark.py gradients [--encoder resnet34 --size 256 --batch-size 16 --rounds 8 --output FILE.md]
python scripts/benchmark.py metrics [the same]
python scripts/benchmark.py predict [--encoder, --size, --rounds, --output, --large HEIGHT WIDTH]

gradients: a training step alone, with our gradient flow read in it, and with wandb.watch(log="gradients"), in turns.
Machines are shared and noisy, so every round has each of them once, and what counts is the ratio within a round:
the median over the rounds, with the range of their middle half. The reading's cost at an interval of n steps is that
of one step with a reading and n - 1 without, of which wandb.watch's still carry its hooks.
metrics: a training step alone, and what counting its pixels for all metrics takes.
predict: a picture's classes by smp.Unet, by our predictor, and by our predictor on the model's ONNX file, in turns: a
small picture, and a large one at its own resolution, which smp takes whole and we in tiles. The memory is the peak of a
process of its own, less what it had after the imports.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import wandb

from unetseg.build import best_precision
from unetseg.engines import TorchEngine
from unetseg.exported import load_exported
from unetseg.exporting import write
from unetseg.gradients import GradientFlow
from unetseg.losses import make_loss
from unetseg.metrics import SegmentationScores, image_counts
from unetseg.model import Segmenter
from unetseg.model.segmenter import MEAN, STD, class_map
from unetseg.predictor import TILE, Predictor

DEFAULT_INTERVAL = 25
"""gradients.every_n_steps in conf/train.yaml."""

PREDICTORS = ("smp.Unet", "unetseg", "unetseg, ONNX")
"""Who predicts; the first is what the others are held against."""


def batch(size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images, Bx3xSxS uint8, and masks, BxSxS uint8, as the loader would."""
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return images, torch.randint(0, 2, (batch_size, size, size), dtype=torch.uint8)


def stepper(model: Segmenter, images: torch.Tensor, masks: torch.Tensor) -> Callable[[], None]:
    """Return a function that takes one training step in our default number format."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = make_loss("dice", 2)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=best_precision("cpu") == "bf16-mixed"):
            logits = model(images)
        optimizer.zero_grad()
        criterion(logits.float(), masks).backward()
        optimizer.step()

    return step


def interleaved(kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each kind of work, one for each round; a further first round warms up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 1):
        for kind, work in kinds.items():
            start = time.perf_counter()
            work()
            seconds[kind].append(time.perf_counter() - start)
    return {kind: np.array(values[1:]) for kind, values in seconds.items()}


def metrics(encoder: str, size: int, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of a bare step and of its metrics, one for each round."""
    images, masks = batch(size, batch_size)
    step = stepper(Segmenter(classes=2, encoder=encoder, weights=None), images, masks)
    logits, scores = torch.randn(batch_size, 1, size, size), SegmentationScores(2)

    def count() -> None:
        scores.update(image_counts(class_map(logits), masks, 2))

    return interleaved({"step": step, "metrics": count}, rounds)


def gradients(encoder: str, size: int, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each kind of step, one for each round."""
    torch.manual_seed(0)
    bare, watched = (Segmenter(classes=2, encoder=encoder, weights=None) for _ in range(2))
    images, masks = batch(size, batch_size)
    plain, under_watch = stepper(bare, images, masks), stepper(watched, images, masks)

    def read() -> None:
        with GradientFlow(bare) as flow:
            plain()
        flow.read()

    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(silent=True))
    log_frequency = 2  # every other step: one that only carries the hooks, one that logs
    run.watch(watched, log="gradients", log_freq=log_frequency)
    position = 0

    def watch(logs: bool) -> None:
        """Take a step under wandb.watch that logs or doesn't, as asked."""
        nonlocal position
        position += 1
        assert logs == (position % log_frequency == 0)
        under_watch()
        run.log({"step": position})

    kinds: dict[str, Callable[[], None]] = {
        "step": plain,
        "read": read,
        "watch, hooks only": lambda: watch(False),
        "watch, logging": lambda: watch(True),
    }
    seconds = interleaved(kinds, rounds)
    run.finish()
    return seconds


def segmenter(encoder: str) -> Segmenter:
    """Return the model that all predictors share, in eval mode."""
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder=encoder, weights=None).eval()


def predictor(kind: str, encoder: str, size: int, tile: int, exported: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from HxWx3 uint8 to the classes, HxW uint8.

    Args:
        kind: one of PREDICTORS.
        encoder: of the model.
        size: side to which our predictors squash a picture where they don't take it in tiles.
        tile: side of the tiles, 0 for none; smp takes a picture whole.
        exported: the model's ONNX file.
    """
    if kind == "unetseg, ONNX":
        return Predictor(load_exported(exported), tile=tile)
    model = segmenter(encoder)
    if kind == "unetseg":
        return Predictor(TorchEngine(model, classes=("background", "pet"), size=size, device="cpu"), tile=tile)
    net = smp.Unet(encoder, encoder_weights=None).eval()
    net.load_state_dict(model.net.state_dict())
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    @torch.inference_mode()
    def work(image: np.ndarray) -> np.ndarray:
        images = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
        return class_map(net(images))[0].numpy()

    return work


def memory(kind: str, encoder: str, size: int, tile: int, exported: Path, shape: tuple[int, int]) -> int:
    """Return the bytes that a predictor adds to this process at its peak, with a picture HxW."""
    before = status("VmRSS")
    work = predictor(kind, encoder, size, tile, exported)
    work(np.zeros((*shape, 3), np.uint8))
    return status("VmHWM") - before


def status(field: str) -> int:
    """Return a memory figure of this process in bytes (Linux)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def predict(encoder: str, size: int, large: tuple[int, int], rounds: int) -> str:
    """Return the Markdown table of what each predictor takes for a small and for a large picture."""
    rows = [
        "| picture | | images/s | times as fast as smp.Unet | peak memory | share of smp.Unet's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        write(segmenter(encoder), {"classes": ["background", "pet"], "size": size}, exported)
        for shape, tile in (((size, size), 0), (large, TILE)):
            image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            common = (encoder, size, tile, exported)
            peaks = []
            for kind in PREDICTORS:
                with fresh.Pool(1) as pool:
                    peaks.append(pool.apply(memory, (kind, *common, shape)))
            kinds = {kind: partial(predictor(kind, *common), image) for kind in PREDICTORS}
            seconds = interleaved(kinds, rounds)
            smps = seconds[PREDICTORS[0]]
            for kind, peak in zip(PREDICTORS, peaks, strict=True):
                low, middle, high = np.percentile(smps / seconds[kind], (25, 50, 75))
                rows.append(
                    f"| {shape[1]} x {shape[0]} | {kind} | {1 / np.median(seconds[kind]):.3g} | {middle:.2f} "
                    f"({low:.2f} to {high:.2f}) | {peak / 2**20:,.0f} MiB | {peak / peaks[0]:.2f} |"
                )
    return "\n".join(rows)


def extra_cost(seconds: dict[str, np.ndarray], interval: int) -> dict[str, np.ndarray]:
    """Return what reading every `interval` steps adds to a bare step, as a share of it, for each round."""
    step = seconds["step"]
    ours = (seconds["read"] - step) / step / interval
    hooks = (seconds["watch, hooks only"] - step) / step
    theirs = ((seconds["watch, logging"] - step) / step + (interval - 1) * hooks) / interval
    return {"GradientFlow": ours, "wandb.watch": theirs}


def spread(share: np.ndarray) -> str:
    """Return a share as per cent: the median and the range of the middle half."""
    low, middle, high = np.percentile(100 * share, (25, 50, 75))
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def machine() -> str:
    """Return what the numbers were measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(seconds: dict[str, np.ndarray], arguments: argparse.Namespace) -> str:
    """Return the Markdown report."""
    head = [
        f"{arguments.encoder}, {arguments.size} px, batch {arguments.batch_size}, concat, "
        f"{arguments.rounds} interleaved rounds; {machine()}; a bare step takes {np.median(seconds['step']):.2f} s",
        "",
    ]
    if arguments.what == "metrics":
        return "\n".join(
            [*head, f"metrics of a training batch: {spread(seconds['metrics'] / seconds['step'])} of a step"]
        )
    rows = ["| extra time of training | GradientFlow | wandb.watch |", "| --- | --- | --- |"]
    for interval in (1, DEFAULT_INTERVAL):
        cells = " | ".join(spread(share) for share in extra_cost(seconds, interval).values())
        rows.append(f"| read every {interval} step{'s' if interval > 1 else ''} | {cells} |")
    return "\n".join([*head, *rows])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gradients", "metrics", "predict"])
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--large", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    if arguments.what == "predict":
        report = "\n\n".join(
            [
                f"{arguments.encoder}, batch 1, concat, {arguments.rounds} interleaved rounds; {machine()}",
                predict(arguments.encoder, arguments.size, tuple(arguments.large), arguments.rounds),
            ]
        )
    else:
        measure = {"gradients": gradients, "metrics": metrics}[arguments.what]
        report = table(measure(arguments.encoder, arguments.size, arguments.batch_size, arguments.rounds), arguments)
    print(report)
    if arguments.output:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
