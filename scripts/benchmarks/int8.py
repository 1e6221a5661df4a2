"""What int8 costs in IoU: trained models against their int8 exports, paired by picture, with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.report import Result, Row
from unetseg.data.dataset import Batch, first_of
from unetseg.data.sources import make_data
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.evaluation.metrics import image_counts, scores
from unetseg.evaluation.statistics import compare
from unetseg.inference.engines import Engine, TorchEngine, load_exported
from unetseg.inference.export import export
from unetseg.inference.quantization import MOST
from unetseg.model import Segmenter
from unetseg.model.checkpoint import load

NAMES = ("iou", "boundary_iou")
RUNTIMES = ("onnxruntime", "openvino")


def measure(checkpoint: Sequence[Path]) -> Result:
    """Compare runs of one setting, of different seeds, on their test split at the side of their training."""
    loaded = [load(path) for path in checkpoint]
    check_alike(checkpoint, [known for _, known in loaded])
    found = [scores_of(model, known) for model, known in loaded]
    before = np.stack([of_float for of_float, _, _ in found])
    rows: list[Row] = []
    means = {f"float32, {name}": before[:, number].mean(-1).tolist() for number, name in enumerate(NAMES)}
    for position, runtime in enumerate(RUNTIMES):
        after = np.stack([of_int8[position] for _, of_int8, _ in found])
        changed = [shares[position] for _, _, shares in found]
        for number, name in enumerate(NAMES):
            difference = compare(after[:, number], before[:, number])
            rows.append(
                {
                    "int8 in": runtime,
                    "score per picture": name,
                    "float32": float(before[:, number].mean()),
                    "int8": float(after[:, number].mean()),
                    "int8 less float32 [95 %]": (
                        f"{difference.difference:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
                    ),
                    "pixels of another class": f"{np.mean(changed):.2%}",
                }
            )
            means[f"{runtime}, {name}"] = after[:, number].mean(-1).tolist()
        means[f"{runtime}, share of pixels of another class"] = changed
    setting = f"{len(checkpoint)} runs, {before.shape[-1]} test pictures, ranges of {MOST} training inputs"
    return Result(setting, [rows], means)


def check_alike(checkpoint: Sequence[Path], known: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError where runs, with these hyper-parameters, differ in more than their seed."""
    for path, other in zip(checkpoint, known, strict=True):
        if different := [key for key in ("classes", "data", "model") if known[0][key] != other[key]]:
            raise UserError(
                f"{path} differs from {checkpoint[0]} in its {' and '.join(different)}: runs of one setting"
            )


def scores_of(model: Segmenter, known: Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Return a run's scores in float32, 2xN, and by runtime those in int8 and the share of pixels of another class."""
    names, view = tuple(known["classes"]), View.of(known["data"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        data = known["data"] | {"workers": 0, "cache": "none"}
        training = as_pictures(first_of(loader(data, known["seed"], "train"), MOST))[:, None]
        export(model, {"classes": names, "size": view.size}, file, [*training], [*training])
        engines: list[Engine] = [
            TorchEngine(model, classes=names, view=view, device="cpu"),
            *(load_exported(file, runtime=runtime) for runtime in RUNTIMES),
        ]
        found: list[list[np.ndarray]] = [[] for _ in engines]
        changed = []
        for batch in loader(data, known["seed"], "test"):
            pictures = as_pictures(batch)
            maps = [engine.probabilities(pictures).argmax(1) for engine in engines]
            changed.append([np.mean(maps[0] != own, axis=(1, 2)) for own in maps[1:]])
            for own, predicted in zip(found, maps, strict=True):
                counts = image_counts(torch.from_numpy(predicted), batch.masks, len(names))
                own.append(np.stack([scores(counts)[name].numpy() for name in NAMES]))
    before, *after = (np.concatenate(own, 1) for own in found)
    return before, after, np.concatenate(changed, 1).mean(1).tolist()


def loader(data: Mapping[str, Any], seed: int, split: str) -> DataLoader[Any]:
    """Return the batches of a split as an evaluation sees them."""
    made = make_data(data, seed, test_split=split)
    made.prepare_data()
    made.setup("test")
    return made.test_dataloader()


def as_pictures(batch: Batch) -> np.ndarray:
    """Return the pictures of a batch as engines take them, BxHxWxD."""
    return batch.images.permute(0, 2, 3, 1).numpy()
