"""Test images with the prediction of each setting, computed from the checkpoints: run folders hold no predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from unetseg.data.colours import is_background, legend, overlay
from unetseg.data.dataset import Examples
from unetseg.data.sources import make_data
from unetseg.errors import UserError, first_line
from unetseg.evaluation.metrics import erode
from unetseg.evaluation.overlays import Sample
from unetseg.evaluation.record import predict_samples
from unetseg.model import checkpoint
from unetseg.names import IGNORE, cell, class_names
from unetseg.reporting import charts
from unetseg.reporting.document import Figure, Panel
from unetseg.reporting.results import Run, Sweep
from unetseg.reporting.scores import RankedImage
from unetseg.reporting.sentences import number

ROOM, GAP = 960, 14
"""Width of a row of pictures and the gap between two, in pixels of the page."""
THUMBNAIL = 256
"""The longest side of a thumbnail in pixels: some 15 kB as JPEG, and enough to be enlarged."""


class MissingInput(Exception):
    """Data or a checkpoint of the pictures do not exist any more; the message names them."""


def examples(
    sweep: Sweep, ranked: Sequence[RankedImage], gallery: Sequence[RankedImage], *, trust: bool = False
) -> list[Figure]:
    """Return a row for each ranked image, and one figure with the thumbnails of the gallery.

    A row has the picture, its truth, and the prediction of each setting's first run; a thumbnail has the prediction of
    the first setting's first run. The first row and the thumbnails have the legend of the classes. With `trust` the
    classes of somebody's own that the runs name are imported.
    """
    names = [image.name for image in ranked]
    base, *others = sweep.settings
    of_base = _samples(base.runs[0], [*names, *(image.name for image in gallery)], trust)
    samples = [of_base, *(_samples(setting.runs[0], names, trust) for setting in others)]
    classes = class_names(base.runs[0].options["data"])
    background = is_background(classes)
    colours = {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in legend(classes)}
    of_classes = charts.colours_legend("classes_legend", colours)
    cells = len(samples) + 2
    width = max(88, min(170, (ROOM - GAP * (cells - 1)) // cells))
    figures = []
    for row, image in enumerate(ranked):
        first, stem = samples[0][row], f"image_{row + 1}"
        panels = [
            _panel(f"{stem}_picture", first.image, f"{image.rank}: {image.name}, mean IoU {number(image.iou)}"),
            _panel(f"{stem}_truth", overlay(first.image, first.target, background=background), "truth"),
        ]
        for position, (setting, own) in enumerate(zip(sweep.settings, samples, strict=True), start=1):
            sample = own[row]
            iou = setting.runs[0].per_image.iou[image.name]
            picture = _prediction(sample, background)
            panels.append(_panel(f"{stem}_setting_{position}", picture, f"{setting.name} {number(iou)}"))
        figures.append(Figure(panels, width=width, legend=None if row else of_classes))
    thumbnails = [
        _panel(
            f"gallery_{image.rank}",
            _prediction(sample, background),
            f"{image.rank}: {image.name} {number(image.iou)}",
            "jpeg",
        )
        for image, sample in zip(gallery, of_base[len(ranked) :], strict=True)
    ]
    return [*figures, Figure(thumbnails, width=120, legend=of_classes)]


def _prediction(sample: Sample, background: bool) -> np.ndarray:
    """Return the picture, HxWx3 uint8, tinted by the prediction, with the outline of the truth."""
    tinted = overlay(sample.image, sample.predicted, background=background, outlined=False)
    return draw_outline(tinted, sample.target)


def draw_outline(picture: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the picture, HxWx3 uint8, with white edges between the classes of the target, HxW."""
    edge = np.zeros(target.shape, bool)
    for label in np.setdiff1d(target, [0, IGNORE]):
        mask = torch.from_numpy(target == label)
        edge |= (mask & ~erode(mask, 1, outside=True)).numpy()
    return np.where(edge[..., None], np.uint8(255), picture)


def _samples(run: Run, names: Sequence[str], trust: bool) -> list[Sample]:
    """Return the named test images of a run with their masks and the predictions of its tested checkpoint."""
    try:
        model, known = checkpoint.load(run.tested, trust=trust)
        measured = {name: known["data"].get(name) for name in ("mean", "std")}
        options = {**run.options["data"], **measured, "cache": "none", "check": "none"}
        data = make_data(options, run.seed, test_split="test", trust=trust)
        data.setup()
        dataset: Examples = data.loader("test").dataset  # type: ignore[assignment]
        positions = {cell(example.name): position for position, example in enumerate(dataset.examples)}
        # one by one: dozens of large pictures in one batch may need more memory than there is
        return [sample for name in names for sample in predict_samples(model, dataset, [positions[name]])]
    except KeyError as error:
        raise MissingInput(f"the data of {run.place} holds no test image {error}") from None
    # options and weights may come from anybody and be of any kind
    except (UserError, OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError) as error:
        raise MissingInput(f"the data or the checkpoint of {run.place} can't be read ({first_line(error)})") from None


def _panel(name: str, picture: np.ndarray, caption: str, kind: str = "png") -> Panel:
    """Return a picture as a PNG, or as a thumbnail in JPEG."""
    image, content = Image.fromarray(picture), io.BytesIO()
    if kind == "jpeg":
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(content, kind)
    return Panel(name, content.getvalue(), caption, caption)
