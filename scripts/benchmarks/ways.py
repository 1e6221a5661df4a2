"""Bare training steps taken in other ways than ours: what might be faster, held against what is set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from benchmarks.steps import WARM_UP, batch, best_device, stepper
from unetseg.model import Segmenter
from unetseg.training.precision import MIXED, best_precision

FINEST = 2
"""Blocks of the decoder that are recomputed: the finest, whose features take the most memory."""


def images_per_second(work: Callable[[], object], images: int, times: int) -> Callable[[], float]:
    """Return a function that measures the images/s of some work, done so many times at once."""
    seconds = timed(lambda: [work() for _ in range(times)])
    return lambda: images * times / seconds()


def side_by_side(kinds: dict[str, Callable[[], float]], rounds: int, setting: str) -> Result:
    """Return the images/s of all kinds, and their ratios to the first."""
    measured = interleaved(kinds, rounds, warm_up=0)
    first = next(iter(measured.values()))
    rows: list[Row] = [
        {
            "": kind,
            "images/s": spread(values, whole=True),
            f"times {next(iter(kinds))}": spread(values / first, whole=True),
        }
        for kind, values in measured.items()
    ]
    setting = f"{setting}, {rounds} interleaved rounds, range of all rounds"
    return Result(setting, [rows], listed(measured, "images/s"))


def recompute(model: Segmenter) -> None:
    """Let the finest blocks of the decoder keep no features for the backward pass, which recomputes them."""
    for block in model.net.decoder.blocks[-FINEST:]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def speed(
    encoder: str,
    size: int,
    batch_size: int,
    times: int,
    *,
    channels_last: bool = True,
    mixed: bool | None = None,
    fused: bool = True,
    change: Callable[[Segmenter], object] = lambda model: None,
) -> Callable[[], float]:
    """Return a function that measures the images/s of bare steps.

    Args:
        encoder: of the network.
        size: side of the pictures in pixels.
        batch_size: pictures of a step.
        times: steps that are timed together.
        channels_last: the memory layout.
        mixed: see `stepper`.
        fused: whether the optimizer has a kernel for all of a step, or one for each of its operations.
        change: is done to the model before its first step.
    """
    torch.manual_seed(0)
    model = Segmenter(classes=2, encoder=encoder, weights=None, channels_last=channels_last).to(best_device())
    change(model)
    step = stepper(model, *batch(size, batch_size), mixed=mixed, fused=fused)
    for _ in range(WARM_UP):
        step()
    return images_per_second(step, batch_size, times)


def measure(encoder: str, size: int, batch_size: int, steps: int, rounds: int) -> Result:
    """Return the images/s of each way, compiled as well; see `compare`."""
    return compare(encoder, size, batch_size, steps, rounds, compiled=True)


def compare(encoder: str, size: int, batch_size: int, steps: int, rounds: int, *, compiled: bool) -> Result:
    """Return the images/s of each way.

    Args:
        encoder: of the network.
        size: side of the pictures in pixels.
        batch_size: pictures of a step.
        steps: that are timed together.
        rounds: in which all ways take turns.
        compiled: whether torch.compile is one of them; on few CPU cores it takes minutes.
    """
    own = partial(speed, encoder, size, batch_size, steps)
    kinds = {
        "as set": own(),
        "channels_last=false": own(channels_last=False),
        "AdamW for each operation": own(fused=False),
        "finest decoder blocks recomputed": own(change=recompute),
    }
    if best_precision(best_device().type) == MIXED:
        kinds["precision=32-true"] = own(mixed=False)
    if compiled:
        kinds["compile=true"] = own(change=Segmenter.compile)
    return side_by_side(kinds, rounds, f"bare steps, {encoder}, {size} px, batch {batch_size}, {steps} steps at once")
