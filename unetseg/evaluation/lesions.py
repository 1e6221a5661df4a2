"""Lesions: what a trained model loses when its long skips are cut at test time, and what each level contributes.

The encoder's features of a batch are computed once and decoded for every subset of levels and every kind of cut. A
lesion shows what this trained model relies on; what a network could learn without a skip takes a training without it.

Legend: N images, L levels that carry features, C classes. A subset of levels is a bit mask of the levels that are kept,
bit 0 the finest: 0 means that all levels are cut, 2^L - 1 is the intact model.
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
from unetseg.evaluation.decoding import Redecoder
from unetseg.evaluation.metrics import (
    COUNTS,
    EDGE_DISTANCES,
    edge_bands,
    edge_table,
    errors_by_band,
    image_counts,
    scores,
)
from unetseg.evaluation.statistics import interval, resampled_sums, sum_by_unit
from unetseg.model.segmenter import Segmenter, class_map

CUTS = ("zero", "mean", "shuffle")
"""What replaces a cut level's features: zeros; the channels' means over all images and positions; or the features of
another image, in turn of each of the DERANGEMENTS images before it in the loader's order (cyclic)."""
DERANGEMENTS = 4
"""The counts of shuffle are the mean over so many derangements: one alone is as uncertain as its interval is wide."""

SCORES = ("iou", "boundary_iou")


@dataclass(frozen=True)
class Lesions:
    """The counts of all lesions.

    Attributes:
        levels: the L levels that carry features, finest first.
        cuts: those of CUTS that the model has, K = 3 or 2 of them.
        counts: K x 2^L x N x C x 6 float64 pixels of metrics.COUNTS for each of K cuts and subset of kept levels.
        edges: K x 2^L x N x 7 x 2 float64 pixels and errors by distance to the edge.
        indices: of the N images in their data set.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> images, masks = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 32, 32, dtype=torch.uint8)
        >>> lesions = measure(model, [Batch(images, masks, torch.arange(2))], classes=2)
        >>> lesions.levels, lesions.counts.shape
        ([1, 2, 3, 4], torch.Size([3, 16, 2, 2, 6]))
    """

    levels: list[int]
    cuts: tuple[str, ...]
    counts: Tensor
    edges: Tensor
    indices: list[int]


def levels_to_cut(model: Segmenter) -> list[int]:
    """Return the levels whose long skip carries features, finest first; 0 is the stem skip's."""
    return [level for level, fusion in model.net.fusion_of.items() if fusion.carries_features]


def cuts_of(model: Segmenter) -> tuple[str, ...]:
    """Return the CUTS that a model has: no zeros where they would cut the deep path as well, as with skip=multiply."""
    is_whole = all(fusion.is_whole_without for fusion in model.net.fusion_of.values())
    return CUTS if is_whole else tuple(cut for cut in CUTS if cut != "zero")


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    classes: int,
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> Lesions:
    """Count the pixels of every subset of levels; the encoder runs twice, for the means and for the lesions.

    Args:
        model: in eval mode, on `device`, with at least one level to cut.
        batches: at least two images, in the same order each time.
        classes: C.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.
    """
    levels, cuts = levels_to_cut(model), cuts_of(model)
    full = 2 ** len(levels) - 1
    means, before = _feature_means(model, track(batches, "means of the features"), levels, device)
    shifts = range(1, len(before[levels[0]]) + 1)
    counts, edges, indices = [], [], []
    for batch in track(batches, f"lesions of {len(levels)} levels"):
        target = batch.masks.to(device)
        bands = edge_bands(target, classes)
        features, redecoder = features_of(model, batch, device), Redecoder(model.net)
        size = (len(cuts), full + 1, len(target))
        of_batch = torch.zeros(*size, classes, len(COUNTS), dtype=torch.float64)
        of_edges = torch.zeros(*size, len(EDGE_DISTANCES) + 1, 2, dtype=torch.float64)
        for cut, kind in enumerate(cuts):
            of_subsets: dict[int, list[tuple[Tensor, Tensor]]] = {}
            for shift in shifts if kind == "shuffle" else shifts[:1]:
                others = {
                    level: _replacement(kind, features[level], means[level], before[level], shift) for level in levels
                }
                for kept in range(full + 1):  # the finest levels change first, which decodes the least again
                    cut_levels = [level for bit, level in enumerate(levels) if not kept >> bit & 1]
                    if not cut_levels and (cut or shift > 1):
                        continue  # the intact model is the same for every kind of cut
                    replaced = [others[level] if level in cut_levels else own for level, own in enumerate(features)]
                    changes = [(kind, shift) if level in cut_levels else None for level in range(len(features) - 1)]
                    predicted = class_map(redecoder.decode(replaced, changes))
                    pixels = image_counts(predicted, target, classes).double().cpu()
                    errors = errors_by_band(predicted, target, bands).double().cpu()
                    of_subsets.setdefault(kept, []).append((pixels, errors))
            for kept, of_shifts in of_subsets.items():
                pixels, errors = (torch.stack(counts_of).mean(0) for counts_of in zip(*of_shifts, strict=True))
                of_batch[cut, kept], of_edges[cut, kept] = pixels, errors
        of_batch[1:, full], of_edges[1:, full] = of_batch[0, full], of_edges[0, full]
        counts.append(of_batch)
        edges.append(of_edges)
        indices += batch.indices.tolist()
        before = {level: torch.cat([before[level], features[level]])[-len(shifts) :] for level in levels}
    return Lesions(levels, cuts, torch.cat(counts, dim=2), torch.cat(edges, dim=2), indices)


def shapley(values: np.ndarray) -> np.ndarray:
    """Return the Shapley value of each level, ...xL, from the score of every subset of kept levels, ...x2^L.

    The Shapley value (Shapley 1953) is what a level adds to the score when it is put back, as the mean over all orders
    of putting the levels back. The L values sum to values[..., -1] - values[..., 0]: intact minus all cut.
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
    groups where there are several. They say what other images would have shown of this one model, and nothing about
    another training of it.

    Args:
        lesions: the counts.
        groups: of the N images.
    """
    levels, full = lesions.levels, lesions.counts.shape[1] - 1
    per_image = lesions.counts.transpose(0, 2).numpy()  # images first
    resampled = set_scores(torch.from_numpy(resampled_sums(sum_by_unit(per_image, groups))).transpose(1, 2))
    whole = set_scores(lesions.counts.sum(2))
    losses, contributions, edges = [], [], []
    for cut, kind in enumerate(lesions.cuts):
        for kept in reversed(range(full + 1)):
            cut_levels = "+".join(str(level) for bit, level in enumerate(levels) if not kept >> bit & 1)
            if cut_levels or cut == 0:
                row: dict[str, object] = {"cut": kind if cut_levels else "intact", "levels": cut_levels}
                for name in SCORES:
                    row[name] = whole[name][cut, kept]
                    loss = whole[name][cut, full] - whole[name][cut, kept]
                    draws = resampled[name][:, cut, full] - resampled[name][:, cut, kept]
                    row |= with_interval(f"{name}_loss", loss, draws)
                losses.append(row)
                rates = edge_table(lesions.edges[cut, kept].numpy(), groups)
                edges.append(rates.assign(cut=row["cut"], levels=cut_levels))
        values = {name: (shapley(whole[name][cut]), shapley(resampled[name][:, cut])) for name in SCORES}
        for position, level in enumerate(levels):
            row = {"cut": kind, "level": level}
            for name, (value, draws) in values.items():
                row |= with_interval(name, value[position], draws[:, position])
            contributions.append(row)
    return {
        "lesion": pd.DataFrame(losses),
        "shapley": pd.DataFrame(contributions),
        "lesion_edge_distance": pd.concat(edges)[["cut", "levels", *edges[0].columns[:-2]]],
    }


def features_of(model: Segmenter, batch: Batch, device: torch.device | str) -> list[Tensor]:
    """Return the encoder's features of a batch, [input, stride 2, ..., stride 32]."""
    return list(model.net.encoder(model.normalise(batch.images.to(device))))


def _feature_means(
    model: Segmenter, batches: Iterable[Batch], levels: Sequence[int], device: torch.device | str
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return each level's mean over images and positions, 1xSx1x1, and its features of the last D images, DxSxHxW.

    D is DERANGEMENTS, or the number of images minus one if that is smaller.
    """
    sums: dict[int, Tensor] = {}
    last: dict[int, Tensor] = {}
    images = 0
    for batch in batches:
        features = features_of(model, batch, device)
        for level in levels:
            of_batch = features[level].double().mean((-2, -1), keepdim=True).sum(0, keepdim=True)
            sums[level] = sums[level] + of_batch if level in sums else of_batch
            last[level] = torch.cat([last[level], features[level]] if level in last else [features[level]])
            last[level] = last[level][-DERANGEMENTS:]
        images += len(batch.indices)
    last = {level: features[-min(DERANGEMENTS, images - 1) :] for level, features in last.items()}
    return {level: (total / images).to(last[level].dtype) for level, total in sums.items()}, last


def _replacement(cut: str, features: Tensor, mean: Tensor, before: Tensor, shift: int) -> Tensor:
    """Return what replaces the BxSxHxW features of a batch; `before` are the features of the images before it."""
    if cut == "zero":
        return torch.zeros_like(features)
    if cut == "mean":
        return mean.expand_as(features)
    first = len(before) - shift
    return torch.cat([before, features])[first : first + len(features)]


def set_scores(counts: Tensor) -> dict[str, np.ndarray]:
    """Return each of SCORES from ...xCx6 counts."""
    return {name: value.numpy() for name, value in scores(counts).items() if name in SCORES}


def with_interval(name: str, value: float, draws: np.ndarray) -> dict[str, float]:
    """Return a value and the ends of its 95 % interval by their columns."""
    low, high = interval(draws)
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
