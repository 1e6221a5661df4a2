"""The tables of the mechanisms that were asked for, of a trained model and a split of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from unetseg.data.datamodule import SegmentationData
from unetseg.data.dataset import Batch, First, first_of
from unetseg.evaluation import hellinger, landscape, mechanisms, oscillation, shattering
from unetseg.model.segmenter import Segmenter
from unetseg.names import AT_FUSIONS


def mechanism_tables(
    model: Segmenter,
    loss: nn.Module,
    chosen: Sequence[str],
    data: SegmentationData,
    split: str,
    *,
    training: SegmentationData | None = None,
    norms: pd.DataFrame | None = None,
    device: torch.device,
    track: Callable[..., Iterable[Any]],
) -> dict[str, pd.DataFrame]:
    """Return the tables of some of names.MECHANISMS by their names; landscape and oscillation have two each.

    Args:
        model: in eval mode, on `device`.
        loss: the run's own, in eval mode, on `device`.
        chosen: which of them.
        data: whose files are found.
        split: the part of the data.
        training: the checkpoint's own training pictures, for hellinger.
        norms: of the features while the checkpoint was trained, for oscillation.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.
    """
    batches: Any = data.loader(split, crops=True)
    groups = [example.group for example in batches.dataset.examples]
    shuffled = data.loader(split, shuffle=True, crops=True)
    tables: dict[str, pd.DataFrame] = {}
    if met := [name for name in chosen if name in AT_FUSIONS]:
        sums = mechanisms.measure(model, batches, groups, device=device, track=track)
        tables |= mechanisms.tables(model, sums, met)
    if {"landscape", "sharpness"} & {*chosen}:
        batch = first_of(shuffled, landscape.PICTURES).to(device)
        of_batch = [groups[index] for index in batch.indices.tolist()]
        if "landscape" in chosen:  # whose table of sharpness has the sharpest direction, too
            tables["landscape"], tables["sharpness"] = landscape.measure(model, batch, loss, of_batch, track=track)
        else:
            tables["sharpness"] = landscape.random_sharpness(model, batch, loss, of_batch, track=track)
    if "shattering" in chosen:
        images = first_of(shuffled, 2 * shattering.LINES).images.to(device)
        tables["shattering"] = shattering.measure(model, images, track=track)
    if "hellinger" in chosen and training is not None:

        def parts(images: Tensor) -> dict[str, Tensor]:
            return shattering.features_by_depth(model, model.normalise(images.to(device)))[0]

        sets = bounded(training, "train", hellinger.MOST), bounded(data, split, hellinger.MOST)
        tables["hellinger"] = hellinger.measure(parts, *sets, groups, track=track)
    if "oscillation" in chosen and norms is not None:
        tables |= {"oscillation": norms, "norm_changes": oscillation.changes(norms)}
    return tables


def bounded(data: SegmentationData, split: str, most: int) -> Iterable[Batch]:
    """Return the batches of a split; of one with more pictures those of so many, drawn by the data's seed."""
    if data.examples_of(split) <= most:
        return data.loader(split, crops=True)
    return First(data.loader(split, shuffle=True, crops=True), most)
