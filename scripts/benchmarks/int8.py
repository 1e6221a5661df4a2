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
from unetseg.evaluation.metrics import image_counts, scores
from unetseg.evaluation.statistics import compare
from unetseg.inference.engines import Engine, TorchEngine, load_exported
from unetseg.inference.export import export
from unetseg.inference.quantization import MOST
from unetseg.model.checkpoint import load

NAMES = ("iou", "boundary_iou")


def measure(checkpoint: Sequence[Path]) -> Result:
    """Compare runs of one setting, of different seeds, on their test split at the side of their training."""
    before, after, changed = zip(*map(scores_of, checkpoint), strict=True)
    rows: list[Row] = []
    for number, name in enumerate(NAMES):
        of_float, of_int8 = (np.stack([own[number] for own in found]) for found in (before, after))
        found = compare(of_int8, of_float)
        rows.append(
            {
                "score per picture": name,
                "float32": float(of_float.mean()),
                "int8": float(of_int8.mean()),
                "int8 less float32 [95 %]": f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]",
                "pixels of another class": f"{np.mean(changed):.2%}",
            }
        )
    setting = f"{len(checkpoint)} runs, {before[0].shape[1]} test pictures, OpenVINO, ranges of {MOST} training inputs"
    return Result(setting, [rows], {"pixels of another class": [*changed]})


def scores_of(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Return 2xN scores of a run's model in float32 and in int8, and the share of pixels of another class."""
    model, known = load(path)
    names, view = tuple(known["classes"]), View.of(known["data"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        data = known["data"] | {"workers": 0, "cache": "none"}
        training = as_pictures(first_of(loader(data, known["seed"], "train"), MOST))[:, None]
        export(model, {"classes": names, "size": view.size}, file, [*training], [*training])
        engines: list[Engine] = [
            TorchEngine(model, classes=names, view=view, device="cpu"),
            load_exported(file, runtime="openvino"),
        ]
        found: list[list[np.ndarray]] = [[], []]
        changed = []
        for batch in loader(data, known["seed"], "test"):
            pictures = as_pictures(batch)
            maps = [engine.probabilities(pictures).argmax(1) for engine in engines]
            changed.append(np.mean(maps[0] != maps[1]))
            for own, predicted in zip(found, maps, strict=True):
                counts = image_counts(torch.from_numpy(predicted), batch.masks, len(names))
                own.append(np.stack([scores(counts)[name].numpy() for name in NAMES]))
    return np.concatenate(found[0], 1), np.concatenate(found[1], 1), float(np.mean(changed))


def loader(data: Mapping[str, Any], seed: int, split: str) -> DataLoader[Any]:
    """Return the batches of a split as an evaluation sees them."""
    made = make_data(data, seed, test_split=split)
    made.prepare_data()
    made.setup("test")
    return made.test_dataloader()


def as_pictures(batch: Batch) -> np.ndarray:
    """Return the pictures of a batch as engines take them, BxHxWxD."""
    return batch.images.permute(0, 2, 3, 1).numpy()
