"""Test images with the prediction of each setting, computed from the checkpoints: run folders hold no predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from unetseg.data.dataset import Examples
from unetseg.data.sources import make_data
from unetseg.errors import UserError, first_line
from unetseg.evaluation.metrics import erode
from unetseg.evaluation.overlays import Sample, overlay
from unetseg.evaluation.record import predict_samples
from unetseg.model import checkpoint
from unetseg.names import IGNORE, cell
from unetseg.reporting.document import Figure, Panel
from unetseg.reporting.findings import RankedImage
from unetseg.reporting.results import Run, Sweep
from unetseg.reporting.sentences import number

ROOM, GAP = 960, 14
"""Width of a row of pictures and the gap between two, in pixels of the page."""


class MissingInput(Exception):
    """Data or a checkpoint of the pictures do not exist any more; the message names them."""


def examples(sweep: Sweep, ranked: Sequence[RankedImage]) -> list[Figure]:
    """Return a row for each image: the picture, its truth, and the prediction of each setting's first run."""
    names = [image.name for image in ranked]
    samples = [_samples(setting.runs[0], names) for setting in sweep.settings]
    cells = len(samples) + 2
    width = max(88, min(170, (ROOM - GAP * (cells - 1)) // cells))
    figures = []
    for row, image in enumerate(ranked):
        first, stem = samples[0][row], f"image_{row + 1}"
        panels = [
            _panel(f"{stem}_picture", first.image, f"{image.rank}: {image.name}, mean IoU {number(image.iou)}"),
            _panel(f"{stem}_truth", overlay(first.image, first.target), "truth"),
        ]
        for position, (setting, own) in enumerate(zip(sweep.settings, samples, strict=True), start=1):
            sample = own[row]
            picture = draw_outline(overlay(sample.image, sample.predicted), sample.target)
            iou = setting.runs[0].per_image.iou[image.name]
            panels.append(_panel(f"{stem}_setting_{position}", picture, f"{setting.name} {number(iou)}"))
        figures.append(Figure(panels, width=width))
    return figures


def draw_outline(picture: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the picture, HxWx3 uint8, with white edges between the classes of the target, HxW."""
    edge = np.zeros(target.shape, bool)
    for label in np.setdiff1d(target, [0, IGNORE]):
        mask = torch.from_numpy(target == label)
        edge |= (mask & ~erode(mask, 1, outside=True)).numpy()
    return np.where(edge[..., None], np.uint8(255), picture)


def _samples(run: Run, names: Sequence[str]) -> list[Sample]:
    """Return the named test images of a run with their masks and the predictions of its best checkpoint."""
    try:
        data = make_data({**run.options["data"], "cache": "none", "check": "none"}, run.seed, test_split="test")
        data.setup()
        dataset: Examples = data.loader("test").dataset  # type: ignore[assignment]
        model, _ = checkpoint.load(run.folder.best)
        positions = {cell(example.name): position for position, example in enumerate(dataset.examples)}
        return predict_samples(model, dataset, [positions[name] for name in names])
    except KeyError as error:
        raise MissingInput(f"the data of {run.place} holds no test image {error}") from None
    # options and weights may come from anybody and be of any kind
    except (UserError, OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError) as error:
        raise MissingInput(f"the data or the checkpoint of {run.place} can't be read ({first_line(error)})") from None


def _panel(name: str, picture: np.ndarray, caption: str) -> Panel:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="png")
    return Panel(name, content.getvalue(), caption, caption)
