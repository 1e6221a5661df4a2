"""Builds the loaders of a data set from the data section of a run's options, as plain values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from unetseg import classes
from unetseg.data import folder, hf, own, pets, synthetic
from unetseg.data.datamodule import SegmentationData
from unetseg.data.dataset import Collection
from unetseg.data.published import bands_of
from unetseg.data.splits import SPLITS, Drawing
from unetseg.data.view import View
from unetseg.huggingface import Source
from unetseg.names import PETS_ROOT, class_names


def make_data(
    data: Mapping[str, Any],
    seed: int,
    *,
    test_split: str | None = None,
    skip_unreadable: bool = False,
    batch_normalisation: bool = True,
    trust: bool = False,
) -> SegmentationData:
    """Return the loaders of a data set.

    Args:
        data: the data section of a run's options, as its config.yaml holds it.
        seed: of the order, the augmentation, and a validation split that is drawn.
        test_split: the only split that is needed, for a test: train, val, test or all. None: the set is trained on,
            validated and tested.
        skip_unreadable: leave out files that can't be read, and don't end the run.
        batch_normalisation: whether the model has any: a training batch of one picture can't be normalised.
        trust: import a function of the user's own, by which data=own finds its examples.
    """
    needed = SPLITS if test_split is None else (test_split,)
    if data["name"] == "own":
        classes.admit({data["source"]: own.OPTION}, f"{own.OPTION}={data['source']}", trust)
    if data["name"] == "folder" and data.get("images") and not data.get("bands"):
        data = {**data, "bands": bands_of(Path(data["root"]), data["images"])}

    def prepare() -> None:
        if data["name"] == "synthetic":
            generate(data)
        elif data["name"] == "hf":
            hf.keep(Source.of(data))
        elif data["name"] == "pets" and data["root"] is None:
            pets.download()

    return SegmentationData(
        lambda: find(data, seed, needed),
        prepare=prepare,
        view=View.of(data),
        **{key: data[key] for key in ("batch_size", "workers", "augment", "cache")},
        seed=seed,
        test_split=test_split or "test",
        skip_unreadable=skip_unreadable,
        check_files=data.get("check", "full"),  # older runs lack this option, and those of crops
        foreground=data.get("foreground", 0.0),
        crops=data.get("crops"),
        batch_normalisation=batch_normalisation,
    )


def find(data: Mapping[str, Any], seed: int, needed: Sequence[str] = SPLITS) -> Collection:
    """Return the examples of the splits of a data set that are needed; its lists and folders must exist."""
    names = class_names(data)
    if data["name"] == "own":
        return own.find(data["source"], names, needed)
    if data["name"] in ("folder", "hf"):
        drawing = Drawing(
            ratios=data["ratios"],
            seed=data["split_seed"],
            **{key: data[key] for key in ("group", "folds", "fold") if data.get(key) is not None},
        )
        keys = ("images", "masks", "values", "threshold", "instances", "bands", "ignore_index", "stratify")
        options = {key: data[key] for key in keys if data.get(key) is not None}  # older runs have fewer
        if data["name"] == "folder":
            return folder.load(Path(data["root"]), classes=names, drawing=drawing, needed=needed, **options)
        root = Source.of(data).folder
        if not data["values"]:
            hf.check_names(root, names)
        grouped = replace(drawing, group=hf.GROUP if data["group"] else None)
        collection = folder.load(root, classes=names, drawing=grouped, needed=needed, **options)
        return replace(collection, notes=(*hf.notes_of(root), *collection.notes))
    root = generated_root(data) if data["name"] == "synthetic" else Path(data["root"] or PETS_ROOT)
    options = {key: data[key] for key in ("target", "border", "validation")}
    collection = pets.load(root, classes=names, seed=seed, **options)
    splits = {**collection.splits, "all": tuple(itertools.chain(*collection.splits.values()))}
    return replace(collection, splits={split: splits[split] for split in needed})


def generated_root(data: Mapping[str, Any]) -> Path:
    """Return the folder of a generated set; its name holds everything that determines its content."""
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
