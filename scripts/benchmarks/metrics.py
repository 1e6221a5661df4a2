"""A training step alone, and what counting its pixels for all metrics takes."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from benchmarks.steps import batch, best_device, stepper
from unetseg.evaluation.metrics import SegmentationScores, image_counts
from unetseg.model import Segmenter
from unetseg.model.segmenter import class_map
from unetseg.training.surroundings import freed_memory


@freed_memory()
def measure(encoder: str, size: int, batch_size: int, rounds: int) -> Result:
    """Return the metrics' share of a bare step."""
    images, masks = batch(size, batch_size)
    step = stepper(Segmenter(classes=2, encoder=encoder, weights=None).to(best_device()), images, masks)
    logits, scores = torch.randn(batch_size, 1, size, size, device=best_device()), SegmentationScores(2)

    def count() -> None:
        scores.update(image_counts(class_map(logits), masks, 2))

    seconds = interleaved({"step": timed(step), "metrics": timed(count)}, rounds)
    share = spread(100 * seconds["metrics"] / seconds["step"])
    setting = (
        f"{encoder}, {size} px, batch {batch_size}, concat, {rounds} interleaved rounds, range of the middle half; "
        f"a bare step takes {np.median(seconds['step']):.2f} s"
    )
    rows: list[Row] = [{"": "metrics of a training batch", "% of a bare step": share}]
    return Result(setting, [rows], listed(seconds, "s"))
