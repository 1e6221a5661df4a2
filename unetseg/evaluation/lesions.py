"""Lesions: what a trained model loses when its long skips are cut at test time, and what each level contributes.

The encoder's features of a batch are computed once and decoded for every subset of levels and every way to cut. What a
lesion shows is what this trained model relies on; what a network could learn without a skip takes a training without.

Legend: N images, L levels that carry features, C classes; a subset of levels is a bit mask of those kept, bit 0 the
finest, so that 0 is all cut and 2^L - 1 the intact model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unetseg.data.dataset import Batch
from unetseg.evaluation.metrics import (
    COUNTS,
    EDGE_DISTANCES,
    edge_bands,
    edge_table,
    errors_by_band,
    image_counts,
    scores,
)
from unetseg.evaluation.statistics import interval, resampled_sums, units_of
from unetseg.model.segmenter import Segmenter, class_map

CUTS = ("zero", "mean", "shuffle")
"""What stands in for a cut level's features: zeros; the channels' means over all images and positions; the features of
other images, of each of the DERANGEMENTS images before it in the loader's order, the first ones' those of the last."""
DERANGEMENTS = 4
"""Of shuffle, whose counts are the mean over them: one alone is as uncertain as its interval is wide."""

SCORES = ("iou", "boundary_iou")


@dataclass(frozen=True)
class Lesions:
    """What was counted.

    Attributes:
        levels: the L levels that carry features, finest first.
        counts: 3 x 2^L x N x C x 6 float64 pixels of metrics.COUNTS for each of CUTS and each subset of kept levels.
        edges: 3 x 2^L x N x 7 x 2 float64 pixels and errors by distance to the edge.
        indices: of the N images in their data set.
    """

    levels: list[int]
    counts: Tensor
    edges: Tensor
    indices: list[int]


def levels_to_cut(model: Segmenter) -> list[int]:
    """Return the levels whose long skip carries features, finest first."""
    return [level for level, fusion in enumerate(model.net.fusions, start=1) if fusion.carries_features]


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    classes: int,
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> Lesions:
    """Run the encoder twice over the data, for the means and for the lesions, and count every subset's pixels.

    Args:
        model: in eval mode, on `device`, with at least one level to cut.
        batches: at least two images, in the same order each time.
        classes: C.
        device: where the model is.
        track: wraps an iterable, with a description, to show how far it is.
    """
    levels = levels_to_cut(model)
    full = 2 ** len(levels) - 1
    means, before = _means(model, track(batches, "means of the features"), levels, device)
    shifts = range(1, len(before[levels[0]]) + 1)
    counts, edges, indices = [], [], []
    for batch in track(batches, f"lesions of {len(levels)} levels"):
        target = batch.masks.to(device)
        bands = edge_bands(target, classes)
        features = _features(model, batch, device)
        size = (len(CUTS), full + 1, len(target))
        of_batch = torch.zeros(*size, classes, len(COUNTS), dtype=torch.float64)
        of_edges = torch.zeros(*size, len(EDGE_DISTANCES) + 1, 2, dtype=torch.float64)
        for kept in range(full + 1):
            gone = [level for bit, level in enumerate(levels) if not kept >> bit & 1]
            for cut, kind in enumerate(CUTS):
                if gone or cut == 0:  # intact is intact, whatever the cut
                    of_shifts = []
                    for shift in shifts if kind == "shuffle" else shifts[:1]:
                        stand_in = {
                            level: _stand_in(kind, features[level], means[level], before[level], shift)
                            for level in gone
                        }
                        predicted = class_map(model.net.decode([stand_in.get(i, f) for i, f in enumerate(features)]))
                        pixels = image_counts(predicted, target, classes).double().cpu()
                        of_shifts.append((pixels, errors_by_band(predicted, target, bands).double().cpu()))
                    pixels, errors = (torch.stack(found).mean(0) for found in zip(*of_shifts, strict=True))
                of_batch[cut, kept] = pixels
                of_edges[cut, kept] = errors
        counts.append(of_batch)
        edges.append(of_edges)
        indices += batch.indices.tolist()
        before = {level: torch.cat([before[level], features[level]])[-len(shifts) :] for level in levels}
    return Lesions(levels, torch.cat(counts, dim=2), torch.cat(edges, dim=2), indices)


def shapley(values: np.ndarray) -> np.ndarray:
    """Return each level's Shapley value, ...x2^L -> ...xL, of a score of every subset of kept levels.

    The mean, over all orders in which the levels can be put back, of what a level adds to the score when its turn comes
    (Shapley 1953). The L values sum to values[..., -1] - values[..., 0]: intact minus all cut.
    """
    levels = values.shape[-1].bit_length() - 1
    contributions = np.zeros((*values.shape[:-1], levels))
    for level in range(levels):
        for others in range(values.shape[-1]):
            if not others >> level & 1:
                before = others.bit_count()
                share = math.factorial(before) * math.factorial(levels - before - 1) / math.factorial(levels)
                contributions[..., level] += share * (values[..., others | 1 << level] - values[..., others])
    return contributions


def tables(lesions: Lesions, groups: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return lesion (what each subset's cut loses), shapley (what each level contributes) and lesion_edge_distance.

    Scores are over the whole set. `low` and `high` are the ends of the 95 % bootstrap interval over the images, or over
    groups where there are several: they say what other images would have shown of this one model, and nothing of
    another training of it.

    Args:
        lesions: what was counted.
        groups: of the N images.
    """
    levels, full = lesions.levels, lesions.counts.shape[1] - 1
    per_image = lesions.counts.transpose(0, 2).numpy()  # images first
    drawn = _scores(torch.from_numpy(resampled_sums(units_of(per_image, groups))).transpose(1, 2))
    whole = _scores(lesions.counts.sum(2))
    lost, worth, edges = [], [], []
    for cut, kind in enumerate(CUTS):
        for kept in reversed(range(full + 1)):
            gone = "+".join(str(level) for bit, level in enumerate(levels) if not kept >> bit & 1)
            if gone or cut == 0:
                row: dict[str, object] = {"cut": kind if gone else "intact", "levels": gone}
                for name in SCORES:
                    row[name] = whole[name][cut, kept]
                    loss = whole[name][cut, full] - whole[name][cut, kept]
                    row |= _with_interval(f"{name}_loss", loss, drawn[name][:, cut, full] - drawn[name][:, cut, kept])
                lost.append(row)
                rates = edge_table(lesions.edges[cut, kept].numpy(), groups)
                edges.append(rates.assign(cut=row["cut"], levels=gone))
        values = {name: (shapley(whole[name][cut]), shapley(drawn[name][:, cut])) for name in SCORES}
        for position, level in enumerate(levels):
            row = {"cut": kind, "level": level}
            for name, (value, spread) in values.items():
                row |= _with_interval(name, value[position], spread[:, position])
            worth.append(row)
    return {
        "lesion": pd.DataFrame(lost),
        "shapley": pd.DataFrame(worth),
        "lesion_edge_distance": pd.concat(edges)[["cut", "levels", *edges[0].columns[:-2]]],
    }


def _features(model: Segmenter, batch: Batch, device: torch.device | str) -> list[Tensor]:
    return list(model.net.encoder(model.normalise(batch.images.to(device))))


def _means(
    model: Segmenter, batches: Iterable[Batch], levels: Sequence[int], device: torch.device | str
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return each level's mean over images and positions, 1xSx1x1, and its features of the last images, DxSxHxW.

    D is DERANGEMENTS, or the number of images less one where that is smaller.
    """
    sums: dict[int, Tensor] = {}
    last: dict[int, Tensor] = {}
    images = 0
    for batch in batches:
        features = _features(model, batch, device)
        for level in levels:
            of_batch = features[level].double().mean((-2, -1), keepdim=True).sum(0, keepdim=True)
            sums[level] = sums[level] + of_batch if level in sums else of_batch
            last[level] = torch.cat([last[level], features[level]] if level in last else [features[level]])
            last[level] = last[level][-DERANGEMENTS:]
        images += len(batch.indices)
    last = {level: found[-min(DERANGEMENTS, images - 1) :] for level, found in last.items()}
    return {level: (total / images).to(last[level].dtype) for level, total in sums.items()}, last


def _stand_in(cut: str, features: Tensor, mean: Tensor, before: Tensor, shift: int) -> Tensor:
    """Return what the decoder gets instead of BxSxHxW features; `before` are those of the images before the batch."""
    if cut == "zero":
        return torch.zeros_like(features)
    if cut == "mean":
        return mean.expand_as(features)
    first = len(before) - shift
    return torch.cat([before, features])[first : first + len(features)]


def _scores(counts: Tensor) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in scores(counts).items() if name in SCORES}


def _with_interval(name: str, value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = interval(drawn)
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
