"""A picture's classes by smp.Unet, by our predictor, and by our predictor on the model's ONNX file, in turns.

A small picture, and a large one at its own resolution, which smp takes whole and we in tiles. The memory is the peak of
a process of its own, less what it had after the imports.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from unetseg.data.view import View
from unetseg.inference.engines import TorchEngine, load_exported
from unetseg.inference.export import export
from unetseg.inference.predictor import TILE, Predictor
from unetseg.model import Segmenter
from unetseg.model.encoders import MEAN, STD
from unetseg.model.segmenter import class_map

PREDICTORS = ("smp.Unet", "unetseg", "unetseg, ONNX")
"""Who predicts; the first is what the others are held against."""


def segmenter(encoder: str) -> Segmenter:
    """Return the model that all predictors share, in eval mode."""
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder=encoder, weights=None).eval()


def predictor(kind: str, encoder: str, size: int, tile: int, exported: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from HxWx3 uint8 to the classes, HxW uint8.

    Args:
        kind: one of PREDICTORS.
        encoder: of the model.
        size: side to which our predictors squash a picture where they don't take it in tiles.
        tile: side of the tiles, 0 for none; smp takes a picture whole.
        exported: the model's ONNX file.
    """
    if kind == "unetseg, ONNX":
        return Predictor(load_exported(exported), tile=tile)
    model = segmenter(encoder)
    if kind == "unetseg":
        return Predictor(TorchEngine(model, classes=("background", "pet"), view=View(size), device="cpu"), tile=tile)
    net = smp.Unet(encoder, encoder_weights=None).eval()
    net.load_state_dict(model.net.state_dict())
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    @torch.inference_mode()
    def work(image: np.ndarray) -> np.ndarray:
        images = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
        return class_map(net(images))[0].numpy()

    return work


def memory(kind: str, encoder: str, size: int, tile: int, exported: Path, shape: tuple[int, int]) -> int:
    """Return the bytes that a predictor adds to this process at its peak, with a picture HxW."""
    before = status("VmRSS")
    work = predictor(kind, encoder, size, tile, exported)
    work(np.zeros((*shape, 3), np.uint8))
    return status("VmHWM") - before


def status(field: str) -> int:
    """Return a memory figure of this process in bytes (Linux)."""
    return 1024 * int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def measure(encoder: str, size: int, large: tuple[int, int], rounds: int) -> Result:
    """Return what each predictor takes for a small and for a large picture."""
    rows: list[Row] = []
    measured: dict[str, list[float]] = {}
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        export(segmenter(encoder), {"classes": ["background", "pet"], "size": size}, exported)
        for shape, tile in (((size, size), 0), (tuple(large), TILE)):
            picture = f"{shape[1]} x {shape[0]}"
            image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            common = (encoder, size, tile, exported)
            peaks = []
            for kind in PREDICTORS:
                with fresh.Pool(1) as pool:
                    peaks.append(pool.apply(memory, (kind, *common, shape)))
            kinds = {kind: timed(partial(predictor(kind, *common), image)) for kind in PREDICTORS}
            seconds = interleaved(kinds, rounds)
            measured |= listed({f"{picture}, {kind}": values for kind, values in seconds.items()}, "s")
            for kind, peak in zip(PREDICTORS, peaks, strict=True):
                rows.append(
                    {
                        "picture": picture,
                        "": kind,
                        "images/s": 1 / float(np.median(seconds[kind])),
                        f"times as fast as {PREDICTORS[0]}": spread(seconds[PREDICTORS[0]] / seconds[kind]),
                        "peak memory, MiB": peak / 2**20,
                        f"share of {PREDICTORS[0]}'s": peak / peaks[0],
                    }
                )
    setting = f"{encoder}, batch 1, concat, {rounds} interleaved rounds, range of the middle half"
    return Result(setting, [rows], measured)
