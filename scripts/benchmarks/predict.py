"""Pictures' classes by smp.Unet, in torch and onnxruntime, and by our predictor in each of its runtimes, in turns.

Small pictures, one and sixteen at once, and a large one at its own resolution, which smp takes whole and we in tiles.
The memory is the peak of a process of its own, less what it had after the imports. What int8 costs in IoU says `int8`.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from unetseg.data.view import View
from unetseg.inference.engines import TorchEngine, load_exported
from unetseg.inference.export import export, silence_exporters, with_metadata
from unetseg.inference.predictor import TILE, Predictor
from unetseg.inference.quantization import quantize
from unetseg.model import Segmenter
from unetseg.model.encoders import MEAN, STD
from unetseg.model.segmenter import class_map

PREDICTORS = (
    "smp.Unet",
    "smp.Unet, onnxruntime",
    "unetseg",
    "unetseg, onnxruntime",
    "unetseg, OpenVINO",
    "unetseg, int8 in onnxruntime",
    "unetseg, int8 in OpenVINO",
)
"""Who predicts; the first is what the others are held against."""
BATCH = 16
PAUSE = 0.2
"""Seconds before a predictor's turn: the threads of onnxruntime spin for some hundredths of a second after theirs."""
CLASSES = ("background", "pet")


def segmenter(encoder: str) -> Segmenter:
    """Return the model that all predictors share, in eval mode."""
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder=encoder, weights=None).eval()


def predictor(kind: str, encoder: str, size: int, tile: int, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from BxHxWx3 uint8 to the classes, BxHxW uint8.

    Args:
        kind: one of PREDICTORS.
        encoder: of the model.
        size: side to which our predictors squash a picture where they don't take it in tiles.
        tile: side of the tiles, 0 for none; smp takes a picture whole.
        folder: holds the model's exports.
    """
    if kind.startswith("unetseg"):
        if kind == "unetseg":
            engine = TorchEngine(segmenter(encoder), classes=CLASSES, view=View(size), device="cpu")
        else:
            name, runtime = (("int8" if "int8" in kind else "float32"), "onnxruntime" if "onnx" in kind else "openvino")
            engine = load_exported(folder / f"{name}.onnx", runtime=runtime)
        own = Predictor(engine, tile=tile, batch_size=4 if tile else BATCH)
        return lambda images: np.stack(own(images))
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    net = smp_unet(encoder) if kind == "smp.Unet" else in_onnxruntime(folder / "smp.onnx")

    @torch.inference_mode()
    def work(images: np.ndarray) -> np.ndarray:
        inputs = (images.transpose(0, 3, 1, 2) / np.float32(255) - mean) / std
        return class_map(net(torch.from_numpy(inputs))).numpy()

    return work


def smp_unet(encoder: str) -> smp.Unet:
    """Return smp.Unet with the weights of `segmenter`."""
    net = smp.Unet(encoder, encoder_weights=None).eval()
    net.load_state_dict(segmenter(encoder).net.state_dict())
    return net


def export_smp(encoder: str, shape: tuple[int, ...], path: Path) -> None:
    """Export smp.Unet for pictures of one shape, BxHxWx3."""
    batch, height, width, channels = shape
    with silence_exporters():
        example = torch.zeros(batch, channels, height, width)
        torch.onnx.export(smp_unet(encoder), (example,), path, dynamo=True, input_names=["x"], external_data=False)


def in_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a network in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options)
    return lambda images: torch.from_numpy(session.run(None, {"x": images.numpy()})[0])


def memory(kind: str, encoder: str, size: int, tile: int, folder: Path, shape: tuple[int, ...]) -> int:
    """Return the bytes that a predictor adds to this process at its peak, with pictures BxHxWx3."""
    before = status("VmRSS")
    work = predictor(kind, encoder, size, tile, folder)
    work(np.zeros(shape, np.uint8))
    return status("VmHWM") - before


def status(field: str) -> int:
    """Return a memory figure of this process in bytes (Linux)."""
    return 1024 * int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def measure(encoder: str, size: int, large: tuple[int, int], rounds: int) -> Result:
    """Return what each predictor takes for small pictures and for a large one."""
    rows: list[Row] = []
    measured: dict[str, list[float]] = {}
    fresh = multiprocessing.get_context("spawn")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, about = Path(name), {"classes": CLASSES, "size": size}
        export(segmenter(encoder), about, folder / "float32.onnx")
        int8 = quantize(
            (folder / "float32.onnx").read_bytes(), random.integers(0, 256, (4, 1, size, size, 3), np.uint8)
        )
        entries = {name: json.dumps(value) for name, value in about.items()}
        (folder / "int8.onnx").write_bytes(with_metadata(int8, entries))
        for shape, tile in (((1, size, size), 0), ((BATCH, size, size), 0), ((1, *large), TILE)):
            title = f"{shape[0]} of {shape[2]} x {shape[1]}"
            images = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
            common = (encoder, size, tile, folder)
            export_smp(encoder, images.shape, folder / "smp.onnx")
            peaks = []
            for kind in PREDICTORS:
                with fresh.Pool(1) as pool:
                    peaks.append(pool.apply(memory, (kind, *common, images.shape)))
            kinds = {kind: timed(partial(predictor(kind, *common), images), PAUSE) for kind in PREDICTORS}
            seconds = interleaved(kinds, rounds)
            measured |= listed({f"{title}, {kind}": values for kind, values in seconds.items()}, "s")
            for kind, peak in zip(PREDICTORS, peaks, strict=True):
                rows.append(
                    {
                        "pictures": title,
                        "": kind,
                        "images/s": shape[0] / float(np.median(seconds[kind])),
                        f"times as fast as {PREDICTORS[0]}": spread(seconds[PREDICTORS[0]] / seconds[kind]),
                        "peak memory, MiB": peak / 2**20,
                        f"share of {PREDICTORS[0]}'s": peak / peaks[0],
                    }
                )
    setting = f"{encoder}, concat, {rounds} interleaved rounds, range of the middle half"
    return Result(setting, [rows], measured)
