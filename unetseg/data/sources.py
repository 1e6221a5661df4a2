"""From the data section of a run's options, as plain values, to the loaders of its data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import track

from unetseg.data import folder, pets, synthetic
from unetseg.data.datamodule import SegmentationData
from unetseg.data.dataset import Collection
from unetseg.names import PETS_ROOT, class_names


def make_data(
    data: Mapping[str, Any], seed: int, *, test_split: str = "test", skip_unreadable: bool = False
) -> SegmentationData:
    """Return the loaders of a data set.

    Args:
        data: the data section of a run's options, as its config.yaml holds it.
        seed: of the order, the augmentation, and a validation split that is drawn.
        test_split: the part that a test runs over.
        skip_unreadable: leave out what can't be read, and don't end the run.
    """

    def prepare() -> None:
        if data["name"] == "synthetic":
            generate(data)
        elif data["name"] == "pets" and data["root"] is None:
            pets.download()

    return SegmentationData(
        lambda: find(data, seed),
        prepare=prepare,
        **{key: data[key] for key in ("size", "batch_size", "workers", "augment", "cache")},
        seed=seed,
        test_split=test_split,
        skip_unreadable=skip_unreadable,
    )


def find(data: Mapping[str, Any], seed: int) -> Collection:
    """Return the examples of a data set, whose files must be there."""
    classes = class_names(data)
    if data["name"] == "folder":
        given = {key: data[key] for key in ("ignore_index", "ratios", "split_seed")}
        return folder.load(Path(data["root"]), classes=classes, **given)
    root = generated_root(data) if data["name"] == "synthetic" else Path(data["root"] or PETS_ROOT)
    given = {key: data[key] for key in ("target", "border", "validation")}
    return pets.load(root, classes=classes, seed=seed, **given)


def generated_root(data: Mapping[str, Any]) -> Path:
    """Return where a generated set lies: its name holds everything that decides its content."""
    name = (
        f"{data['train_images']}+{data['test_images']}_{data['size']}px"
        f"_similarity{data['similarity']:g}_seed{data['generator_seed']}"
    )
    return Path(data["root"]) / name


def generate(data: Mapping[str, Any]) -> Path:
    """Generate the synthetic set unless it is there; return its root."""
    return synthetic.write_set(
        generated_root(data),
        train=data["train_images"],
        test=data["test_images"],
        size=data["size"],
        similarity=data["similarity"],
        seed=data["generator_seed"],
        progress=lambda indices: track(indices, "generating pictures"),
    )
