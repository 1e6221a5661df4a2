"""FreeU: what a trained model gains or loses when its decoder weighs the deep path and the long skips otherwise.

FreeU (Si et al. 2024, CVPR) trains nothing. Where a block of the decoder merges its deep features ("backbone") with a
long skip's, it amplifies half the channels of the former by a factor b, and multiplies the low frequencies of the
latter with a factor s. It was made for diffusion; of segmentation it says nothing.

Legend: B batch, C channels, H x W resolution of a level, N images, V variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unetseg.data.dataset import Batch
from unetseg.evaluation.decoding import Redecoder
from unetseg.evaluation.lesions import SCORES, features_of, levels_to_cut, set_scores, with_interval
from unetseg.evaluation.metrics import image_counts
from unetseg.evaluation.statistics import resampled_sums, sum_by_unit
from unetseg.model.segmenter import Segmenter, class_map

RADIUS = 1
"""Frequencies from -RADIUS to RADIUS - 1 of each axis are low, as in the authors' code: four of them, with the mean."""
STAGES = 2
"""The blocks that the paper changes together: those of the coarsest levels."""


def amplified(deep: Tensor, b: float) -> Tensor:
    """Return BxCxHxW deep features with the first C // 2 channels amplified; at b = 1 as they are.

    The factor is the paper's, by structure: alpha = (b - 1) m + 1, where m is the mean over all channels at a position,
    brought to 0..1 over the positions of the picture. The first version of the paper had the constant b.
    """
    if b == 1:
        return deep
    mean = deep.mean(1, keepdim=True)
    low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
    structure = (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)  # 0 where all means are equal
    half = deep.shape[1] // 2
    return torch.cat([deep[:, :half] * ((b - 1) * structure + 1), deep[:, half:]], 1)


def filtered(skip: Tensor, s: float) -> Tensor:
    """Return BxCxHxW features whose low frequencies are multiplied with s; at s = 1 as they are."""
    if s == 1:
        return skip
    exact = skip.to(torch.promote_types(skip.dtype, torch.float32))
    frequencies = torch.fft.fftshift(torch.fft.fftn(exact, dim=(-2, -1)), dim=(-2, -1))
    factors = torch.ones_like(exact)
    row, column = skip.shape[-2] // 2, skip.shape[-1] // 2
    low = [slice(max(0, centre - RADIUS), centre + RADIUS) for centre in (row, column)]
    factors[..., low[0], low[1]] = s
    shifted = torch.fft.ifftshift(frequencies * factors, dim=(-2, -1))
    return torch.fft.ifftn(shifted, dim=(-2, -1)).real.to(skip.dtype)


@dataclass(frozen=True)
class Variant:
    """Factors b and s at some levels; part says which of the two differ from 1: none, backbone, skip or both."""

    part: str
    levels: tuple[int, ...]
    b: float = 1.0
    s: float = 1.0


def variants(levels: Sequence[int], b: float, s: float) -> list[Variant]:
    """Return the untouched network and each part's variants: at each level alone, the two coarsest, and all.

    Examples:
        >>> [variant.levels for variant in variants([1, 2, 3, 4], 1.2, 1.0)]
        [(), (1,), (2,), (3,), (4,), (3, 4), (1, 2, 3, 4)]
    """
    sets = dict.fromkeys([*((level,) for level in levels), tuple(levels[-STAGES:]), tuple(levels)])
    parts = {"backbone": (b, 1.0), "skip": (1.0, s), "both": (b, s)}
    wanted = {part: factors for part, factors in parts.items() if factors != (1, 1)}
    if b == 1 or s == 1:
        wanted.pop("both", None)
    own = [Variant(part, chosen, *factors) for part, factors in wanted.items() for chosen in sets]
    return [Variant("none", ()), *own]


def refusal(model: Segmenter) -> str:
    """Return why a model has no place for the factors; empty where it has."""
    kinds = dict.fromkeys(model.net.skip)
    if reason := model.net.why_not_by_level:
        return reason
    return "" if levels_to_cut(model) else f"with skip={', '.join(kinds)} no long skip carries features"


@contextmanager
def applied(model: Segmenter, variant: Variant) -> Iterator[None]:
    """Weigh what the model's fusions merge by a variant's factors within the block; the skip after its skip_scale."""

    def amplify(_: object, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        deep, skip = inputs
        return amplified(deep, variant.b), skip

    def weaken(_: object, inputs: tuple[Tensor], scaled: Tensor) -> Tensor:
        return filtered(scaled, variant.s)

    with ExitStack() as hooks:
        for fusion in (model.net.fusion_of[level] for level in variant.levels):
            hooks.enter_context(fusion.register_forward_pre_hook(amplify))
            hooks.enter_context(fusion.scale.register_forward_hook(weaken))
        yield


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    classes: int,
    chosen: Sequence[Variant],
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> tuple[Tensor, list[int]]:
    """Return VxNxCx6 float64 pixels of metrics.COUNTS, and the images' indices; the encoder runs once.

    Args:
        model: in eval mode, on `device`.
        batches: of images and masks.
        classes: C.
        chosen: the V variants.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> images, masks = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 32, 32, dtype=torch.uint8)
        >>> counts, _ = measure(model, [Batch(images, masks, torch.arange(2))], 2, variants([1, 2, 3, 4], 1.2, 0.9))
        >>> counts.shape
        torch.Size([19, 2, 2, 6])
    """
    counts, indices = [], []
    for batch in track(batches, f"{len(chosen)} variants of the decoder"):
        target = batch.masks.to(device)
        features, redecoder = features_of(model, batch, device), Redecoder(model.net)
        of_batch = []
        for variant in chosen:
            factors = (variant.b, variant.s)
            changes = [factors if level in variant.levels else None for level in range(len(features) - 1)]
            with applied(model, variant):
                predicted = class_map(redecoder.decode(features, changes))
            of_batch.append(image_counts(predicted, target, classes).double().cpu())
        counts.append(torch.stack(of_batch))
        indices += batch.indices.tolist()
    return torch.cat(counts, dim=1), indices


def table(counts: Tensor, chosen: Sequence[Variant], groups: Sequence[str]) -> pd.DataFrame:
    """Return the scores over the whole set of each variant, and their difference from the untouched network's.

    `low` and `high` are the ends of the 95 % bootstrap interval of the paired difference over the images, or over
    groups where there are several: of this one model.

    Args:
        counts: VxNxCx6 of `measure`, the untouched network first.
        chosen: the V variants.
        groups: of the N images.
    """
    per_image = counts.transpose(0, 1).numpy()
    resampled = set_scores(torch.from_numpy(resampled_sums(sum_by_unit(per_image, groups))))
    whole = set_scores(counts.sum(1))
    rows = []
    for position, variant in enumerate(chosen):
        levels = "+".join(map(str, variant.levels))
        row: dict[str, object] = {"part": variant.part, "levels": levels, "b": variant.b, "s": variant.s}
        for name in SCORES:
            row[name] = whole[name][position]
            draws = resampled[name][:, position] - resampled[name][:, 0]
            row |= with_interval(f"{name}_difference", whole[name][position] - whole[name][0], draws)
        rows.append(row)
    return pd.DataFrame(rows)
