"""Measure what this package costs, side by side with its alternatives, interleaved in one run.

python scripts/benchmark.py gradients [--encoder resnet34 --size 256 --batch-size 16 --rounds 8 --output FILE.md]
python scripts/benchmark.py metrics [the same]

gradients: a training step alone, with our gradient flow read in it, and with wandb.watch(log="gradients"), in turns.
Machines are shared and noisy, so every round has each of them once, and what counts is the ratio within a round:
the median over the rounds, with the range of their middle half. The reading's cost at an interval of n steps is that
of one step with a reading and n - 1 without, of which wandb.watch's still carry its hooks.
metrics: a training step alone, and what counting its pixels for all metrics takes.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import wandb

from unetseg.build import best_precision
from unetseg.gradients import GradientFlow
from unetseg.losses import make_loss
from unetseg.metrics import SegmentationScores, image_counts
from unetseg.model import Segmenter
from unetseg.model.segmenter import class_map

DEFAULT_INTERVAL = 25
"""gradients.every_n_steps in conf/train.yaml."""


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


def table(seconds: dict[str, np.ndarray], arguments: argparse.Namespace) -> str:
    """Return the Markdown report."""
    head = [
        f"{arguments.encoder}, {arguments.size} px, batch {arguments.batch_size}, concat, "
        f"{arguments.rounds} interleaved rounds; {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; a bare step takes {np.median(seconds['step']):.2f} s",
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
    parser.add_argument("what", choices=["gradients", "metrics"])
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    measure = {"gradients": gradients, "metrics": metrics}[arguments.what]
    report = table(measure(arguments.encoder, arguments.size, arguments.batch_size, arguments.rounds), arguments)
    print(report)
    if arguments.output:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
