"""Mechanisms: what meets at each fusion of a trained model, and what its decoder makes of it.

similarity: how alike the deep features and the long skip's are (CKA, Kornblith et al. 2019): U-Net++ calls their
distance the semantic gap (Zhou et al. 2018).
rank: how many directions the features of each use, and how many channels are dead (Orhan and Pitkow 2018).
reuse: by which weights the decoder's first convolution reads each of both (Huang et al. 2017, Fig. 5).
spectra: which frequencies each of both has, as FreeU looks at them (Si et al. 2024).

One pass over the data gathers sums over positions, by blocks of pictures; the tables follow from these.

Legend: B batch, D and S channels of the deep path and the skip, H x W resolution of a level, b blocks of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unetseg.data.dataset import Batch
from unetseg.evaluation.statistics import jackknife
from unetseg.model.segmenter import Segmenter
from unetseg.model.skips import Concat, Fusion, Scse, Shuffled

BLOCKS = 10
"""Blocks of pictures, each of which is left out once for the intervals (the jackknife of Tukey 1958)."""
BANDS = 8
"""Bands of equal width of frequencies from 0 to half a cycle a pixel; higher ones, in the corners, are one more."""


@dataclass
class Sums:
    """Sums over positions of what meets at a level's fusion, float64, by block of pictures.

    Attributes:
        counts: b, positions.
        means: b x (D + S), sums of the features, the deep ones first.
        products: b x (D + S) x (D + S), sums of their products.
        powers: b x 2 x (BANDS + 1), power of the deep features and of the skip's by band of frequencies.
        places: (D + S) x H·W, sums of the features over all pictures.
        reads: squares of what the columns of the decoder's first convolution read; D + S of them after a concatenation.
        bands: those that features of this resolution have.
        deep_channels: D.
    """

    counts: Tensor
    means: Tensor
    products: Tensor
    powers: Tensor
    places: Tensor
    reads: Tensor
    bands: list[int]
    deep_channels: int

    def without(self, block: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the number of positions, the means, the covariance and the powers without a block, or of all."""
        kept = [number for number in range(len(self.counts)) if number != block]
        count = self.counts[kept].sum()
        mean = self.means[kept].sum(0) / count
        covariance = self.products[kept].sum(0) / count - torch.outer(mean, mean)
        return count, mean, covariance, self.powers[kept].sum(0)

    def at_places(self) -> Tensor:
        """Return the covariance of what is left of the features without each position's mean over the pictures."""
        count = self.counts.sum()
        pictures = count / self.places.shape[1]
        return (self.products.sum(0) - self.places @ self.places.T / pictures) / count


@dataclass
class Meeting:
    """What meets at the fusions in the last forward pass, by level, and what becomes of it.

    They are BxDxHxW deep features, BxSxHxW of the skip, scaled by skip_scale, and what the block's convolution reads.
    """

    deep: dict[int, Tensor] = field(default_factory=dict)
    skip: dict[int, Tensor] = field(default_factory=dict)
    read: dict[int, Tensor] = field(default_factory=dict)


def refusal(model: Segmenter, chosen: Sequence[str] = ()) -> str:
    """Return why nothing meets in a model's decoder, or nothing that reuse, chosen alone, reads; empty if it does."""
    if reason := model.net.why_not_by_level:
        return reason
    if [*chosen] == ["reuse"] and not any(is_concatenated(fusion) for fusion in model.net.fusions):
        return f"with skip={', '.join(dict.fromkeys(model.net.skip))} no level has weights of the skip's own to compare"
    return ""


def is_concatenated(fusion: Fusion) -> bool:
    """Return whether a decoder's first convolution reads the deep features and the skip's by columns of each."""
    return type(fusion) in (Concat, Scse, Shuffled)


@contextmanager
def watched(model: Segmenter) -> Iterator[Meeting]:
    """Keep what meets at each level's fusion while the block runs; levels without features are left out."""
    meeting = Meeting()

    blocks: Any = model.net.decoder.blocks

    def keep(level: int, fusion: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        meeting.deep[level], skip = inputs
        meeting.skip[level] = cast(Fusion, fusion).scale(skip) if skip.shape[1] else skip

    def keep_read(level: int, _: nn.Module, inputs: tuple[Tensor]) -> None:
        meeting.read[level] = inputs[0]

    with ExitStack() as hooks:
        for level, fusion in model.net.fusion_of.items():
            hooks.enter_context(fusion.register_forward_pre_hook(partial(keep, level)))
            conv = blocks[len(blocks) - 1 - level].conv1
            hooks.enter_context(conv.register_forward_pre_hook(partial(keep_read, level)))
        yield meeting


@torch.inference_mode()
def measure(
    model: Segmenter,
    batches: Sequence[Batch] | DataLoader[Any],
    groups: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> dict[int, Sums]:
    """Return the sums of each level that has features, finest first.

    Args:
        model: in eval mode, on `device`.
        batches: of images.
        groups: of all pictures of the data set, by their indices.
        device: where the model is.
        track: wraps an iterable, with a description, to show a progress bar.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> images, masks = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 32, 32, dtype=torch.uint8)
        >>> sums = measure(model, [Batch(images, masks, torch.arange(2))], ["", ""])
        >>> [(level, own.products.shape) for level, own in sums.items()][0]
        (1, torch.Size([2, 128, 128]))
    """
    blocks = blocks_of(groups)
    sums: dict[int, Sums] = {}
    with watched(model) as meeting:
        for batch in track(batches, "what meets at the fusions"):
            model(batch.images.to(device))
            own = [blocks[index] for index in batch.indices.tolist()]
            for level, skip in meeting.skip.items():
                if skip.shape[1]:
                    _add(sums, level, max(blocks) + 1, own, meeting.deep[level].double(), skip.double())
                    sums[level].reads = sums[level].reads + meeting.read[level].double().square().sum((0, 2, 3))
    return dict(sorted(sums.items()))


def blocks_of(groups: Sequence[str]) -> list[int]:
    """Return the block of each picture, 0 ... BLOCKS - 1 or fewer; pictures of one group are in one block.

    Examples:
        >>> blocks_of(["a", "b", "a"])
        [0, 1, 0]
    """
    several = len({*groups} - {""}) > 1
    units = [(1, group, 0) if several and group else (0, "", place) for place, group in enumerate(groups)]
    order = {unit: place for place, unit in enumerate(sorted({*units}))}
    count = min(BLOCKS, len(order))
    return [order[unit] * count // len(order) for unit in units]


def _add(sums: dict[int, Sums], level: int, count: int, blocks: Sequence[int], deep: Tensor, skip: Tensor) -> None:
    """Add a batch's features to the sums of a level."""
    together = torch.cat([deep, skip], 1)
    width = together.shape[1]
    if level not in sums:
        zeros = partial(torch.zeros, dtype=torch.float64, device=deep.device)
        own_bands = (
            bands(skip.shape[-2], skip.shape[-1], skip).flatten()[1:].unique().tolist()
        )  # without the mean, which is first
        sums[level] = Sums(
            *(zeros(count), zeros(count, width), zeros(count, width, width), zeros(count, 2, BANDS + 1)),
            *(zeros(width, skip[0, 0].numel()), zeros(1)),
            own_bands,
            deep.shape[1],
        )
    own = sums[level]
    for block, picture in zip(blocks, together, strict=True):
        flat = picture.flatten(1)
        own.counts[block] += flat.shape[1]
        own.means[block] += flat.sum(1)
        own.products[block] += flat @ flat.T
        own.places += flat
        for part, features in enumerate((picture[: own.deep_channels], picture[own.deep_channels :])):
            own.powers[block, part] += band_powers(features)


def bands(height: int, width: int, like: Tensor) -> Tensor:
    """Return the band of each frequency of HxW features, HxW int64; its length is its vector's, in cycles a pixel."""
    rows, columns = (torch.fft.fftfreq(size, device=like.device, dtype=like.dtype) for size in (height, width))
    radius = (rows[:, None].square() + columns.square()).sqrt()
    return torch.where(radius > 0.5, BANDS, (radius * 2 * BANDS).long().clamp(max=BANDS - 1))


def band_powers(features: Tensor) -> Tensor:
    """Return the power of features, CxHxW, by band of frequencies, BANDS + 1 numbers that sum to their squared size.

    Each channel's mean is taken away first.

    Examples:
        >>> wave = torch.cos(torch.pi * torch.arange(16.0)).expand(1, 16, 16)  # half a cycle a pixel
        >>> band_powers(wave).round().int().tolist()
        [0, 0, 0, 0, 0, 0, 0, 256, 0]
    """
    height, width = features.shape[-2:]
    centred = features - features.mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(centred, norm="ortho").abs().square().sum(0)
    powers = torch.zeros(BANDS + 1, dtype=features.dtype, device=features.device)
    return powers.index_add_(0, bands(height, width, features).flatten(), power.flatten())


def similarity(sums: dict[int, Sums]) -> pd.DataFrame:
    """Return linear CKA of the deep features with the skip's at each level, in 0..1, with its interval.

    CKA = ||cov(x, s)||² / (||cov(x, x)|| ||cov(s, s)||), Frobenius norms, over all positions of all pictures. It is 1
    where one is the other rotated and scaled, and nan where one is constant. `cka_at_places` is that of what is left
    without each position's mean over the pictures: features of two pictures are alike, too, where both tell of the
    middle and the rim. It has no interval, and is nan for one picture.
    """
    table = _table(sums, "cka", lambda own, block: [cka(own.without(block)[2], own.deep_channels)], [{}])
    table["cka_at_places"] = [cka(own.at_places(), own.deep_channels) for own in sums.values()]
    return table


def cka(covariance: Tensor, deep_channels: int) -> float:
    """Return the linear CKA of the first channels with the others, of their joint covariance."""
    first, second = slice(0, deep_channels), slice(deep_channels, None)
    across = covariance[first, second].square().sum()
    size = covariance[first, first].norm() * covariance[second, second].norm()
    return float(across / size) if size > 0 else float("nan")


def rank(sums: dict[int, Sums]) -> pd.DataFrame:
    """Return the effective rank of the deep features and the skip's, and the number of their dead channels.

    The effective rank (Roy and Vetterli 2007) is exp of the entropy of the singular values of the centred features,
    divided by their sum: from 1 to `at_most`, the number of channels, or of positions where they are fewer; four
    positions of the deep features, which are enlarged by nearest neighbours, count as one. A channel is dead that has
    one value at all positions.
    """

    def values(own: Sums, block: int | None) -> list[float]:
        _, _, covariance, _ = own.without(block)
        return [effective_rank(part) for part in _parts(own, covariance)]

    table = _table(sums, "effective_rank", values, [{"features": "deep"}, {"features": "skip"}])
    covariances = [part for own in sums.values() for part in _parts(own, own.without(None)[2])]
    table["channels"] = [len(part) for part in covariances]
    positions = [int(own.counts.sum()) // share for own in sums.values() for share in (4, 1)]
    table["at_most"] = np.minimum(table["channels"], positions)
    table["dead"] = [int((part.diagonal() <= 1e-12 * part.diagonal().max()).sum()) for part in covariances]
    return table


def effective_rank(covariance: Tensor) -> float:
    """Return exp of the entropy of the singular values, from the covariance of features; nan where all are 0."""
    values = torch.linalg.eigvalsh(covariance).clamp(min=0).sqrt()
    if not values.sum() > 0:
        return float("nan")
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def reuse(model: Segmenter, sums: dict[int, Sums]) -> pd.DataFrame:
    """Return by which weights the decoder's first convolution at each level reads the deep features and the skip's.

    `weight` is mean |w| over the columns of each. `contribution` is that of |w| times the root mean square of what the
    column reads, as a share of both: a large weight on features near 0 reads little. Levels are left out whose fusion
    is no concatenation of these features: there are no columns of each.
    """
    blocks: Any = model.net.decoder.blocks
    rows = []
    for level, own in sums.items():
        block = blocks[len(blocks) - 1 - level]
        columns = block.conv1[0].weight.detach().abs().double().mean((0, 2, 3))
        if not is_concatenated(model.net.fusion_of[level]):
            continue
        read = columns * (own.reads / own.counts.sum()).sqrt()
        for name, part in (("deep", slice(0, own.deep_channels)), ("skip", slice(own.deep_channels, None))):
            share = float(read[part].sum() / read.sum()) if read.sum() > 0 else float("nan")
            rows.append(
                {"level": level, "features": name, "weight": float(columns[part].mean()), "contribution": share}
            )
    return pd.DataFrame(rows, columns=["level", "features", "weight", "contribution"])


def spectra(sums: dict[int, Sums]) -> pd.DataFrame:
    """Return the share of the power of the deep features and of the skip's in each band of frequencies.

    `from` and `to` are in cycles a pixel of the level. Bands without a frequency at its resolution are left out.
    """
    rows = []
    for level, own in sums.items():
        for name, power in zip(("deep", "skip"), own.powers.sum(0), strict=True):
            shares = power / power.sum()
            for band in own.bands:
                low, high = band / (2 * BANDS), (band + 1) / (2 * BANDS) if band < BANDS else 0.5**0.5
                rows.append({"level": level, "features": name, "from": low, "to": high, "share": float(shares[band])})
    return pd.DataFrame(rows)


def tables(model: Segmenter, sums: dict[int, Sums], chosen: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the table of each of these mechanisms."""
    made = {
        "similarity": lambda: similarity(sums),
        "rank": lambda: rank(sums),
        "reuse": lambda: reuse(model, sums),
        "spectra": lambda: spectra(sums),
    }
    return {name: made[name]() for name in chosen}


def _parts(own: Sums, covariance: Tensor) -> list[Tensor]:
    return [covariance[: own.deep_channels, : own.deep_channels], covariance[own.deep_channels :, own.deep_channels :]]


def _table(
    sums: dict[int, Sums],
    name: str,
    values: Callable[[Sums, int | None], list[float]],
    labels: Sequence[dict[str, str]],
) -> pd.DataFrame:
    """Return a row for each level and label: the value of all pictures, and the ends of its jackknife interval."""
    rows = []
    for level, own in sums.items():
        count = len(own.counts)
        without = [values(own, block) for block in range(count)] if count > 1 else [values(own, None)]
        ends = jackknife(np.array(without)).tolist()
        for label, value, half in zip(labels, values(own, None), ends, strict=True):
            rows.append(
                {"level": level, **label, name: value, f"{name}_low": value - half, f"{name}_high": value + half}
            )
    return pd.DataFrame(rows)
