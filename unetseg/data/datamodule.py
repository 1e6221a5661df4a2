"""From a Collection to batches of uint8: finds, checks, caches and loads the examples of each process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from unetseg import launch
from unetseg.data import device
from unetseg.data.augmentation import Augment
from unetseg.data.cache import Cache, cache_bytes, fits_in_memory
from unetseg.data.channels import statistics
from unetseg.data.dataset import Batch, Collection, EpochSampler, Examples, Listing, WholeExamples, collate, files_of
from unetseg.data.device import AugmentationBatch, AugmentationExamples, DeviceImages
from unetseg.data.pictures import Unreadable, image_size, read_image
from unetseg.data.survey import Survey, read_masks, remarks, survey, table
from unetseg.data.transforms import Transform
from unetseg.data.view import RGB, View
from unetseg.errors import UserError

SEVERAL_VALUES = 64
"""Least side at which a channel of one picture's deepest features, at a stride of 32, has several values."""


class SegmentationData(L.LightningDataModule):
    """The loaders of a Collection.

    Args:
        find: returns the Collection; called once, before training, on every process.
        view: how the model sees pictures: as squares, or in crops, which are whole pictures in validation and test.
        batch_size: examples per step and device.
        workers: loader processes; 0 loads in this one.
        augment: how training pictures are changed at random, see `augmentation`.
        seed: of the order and the augmentation.
        prepare: downloads or generates the files; called on one process of each machine.
        test_split: the split of a test.
        cache: none, or where the resized pictures are kept between epochs: ram | disk; auto: in RAM where they need
            little of it and there is room, and only the splits that are read in each epoch; device: these splits are
            kept on the trainer's device, which augments them too. Of a model of crops only the training pictures are
            kept: to predict a whole picture takes far longer than to read it.
        skip_unreadable: leave out pictures that can't be read, and don't end the run.
        foreground: the share of crops that are centred on a rare class, 0..1.
        crops: of each picture in an epoch; None: as many as its area holds, at least one.
        check_files: full (read every mask and every picture's header before training), headers or none.
        batch_normalisation: whether the model has any: a training batch of one picture is left out, or refused.
    """

    def __init__(
        self,
        find: Callable[[], Collection],
        *,
        view: View,
        batch_size: int,
        workers: int,
        augment: Augment,
        seed: int,
        prepare: Callable[[], object] = lambda: None,
        test_split: str = "test",
        cache: str = "none",
        skip_unreadable: bool = False,
        foreground: float = 0.0,
        crops: int | None = None,
        check_files: str = "full",
        batch_normalisation: bool = True,
    ):
        super().__init__()
        self.find, self.prepare, self.test_split = find, prepare, test_split
        self.view, self.batch_size, self.workers = view, batch_size, workers
        self.foreground, self.crops = foreground, crops
        self.augment, self.seed = augment, seed
        self.cache, self.skip_unreadable = cache, skip_unreadable
        self.check_files, self.batch_normalisation = check_files, batch_normalisation
        self.caches: dict[str, Cache | None] = {}
        self.on_device: dict[str, DeviceImages] = {}
        self.collection: Collection | None = None
        self.left_out: list[str] = []
        """With skip_unreadable: names of the pictures of all splits that could not be read."""
        self.done = (0, 0)
        self.survey: Survey | None = None
        self.sizes: dict[str, np.ndarray] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch that a resumed run continues, and how many of its examples all ranks together have had."""
        if self.trainer is None:
            return {}
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if batches >= self.trainer.num_training_batches:
            return {"epoch": self.trainer.current_epoch + 1, "examples": 0}
        return {"epoch": self.trainer.current_epoch, "examples": batches * self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training examples continue from that position."""
        self.done = state_dict["epoch"], state_dict["examples"]

    def check(self) -> None:
        """Download or generate, find and check the files before a run is set up, and print a table of them.

        Raises:
            UserError: the data set can't be trained on.
        """
        self.prepare_data()
        self.setup()
        assert self.collection is not None
        assert self.survey is not None
        if "train" in self.collection.splits:
            self._drops_last_batch(self.examples_of("train"))
        if launch.is_first() and self.check_files != "none":
            Console().print(table(self.collection, self.survey))
            for line in [*self.collection.notes, *remarks(self.collection, self.survey)]:
                print(line)

    def measured_view(self) -> View:
        """Return the view, with mean and standard deviation of the training pictures' channels where it needs them."""
        if self.view.channels != RGB and self.view.mean is None:
            self.prepare_data()
            self.setup()
            assert self.collection is not None
            examples = self.collection.splits["train"]
            paths = track(list(examples), "measuring the channels", transient=True, disable=not launch.is_first())
            mean, std = statistics(picture for e in paths if (picture := self._readable(e.image)) is not None)
            self.view = replace(self.view, mean=mean, std=std)
        return self.view

    def class_pixels(self, split: str) -> list[int]:
        """Return the pixels of each class in the masks of a split, as their files hold them."""
        self.prepare_data()
        self.setup()
        assert self.collection is not None
        assert self.survey is not None
        masks, values = self.survey.masks[split], self.collection.values
        if not len(masks):  # data.check=headers and none read no masks
            masks, _ = read_masks(files_of(self.collection.splits[split])[1], values)
        labels = range(len(self.collection.classes))
        return [int(masks.pixels_of(values.table, label).sum()) for label in labels]

    def _readable(self, path: Path) -> np.ndarray | None:
        try:
            return read_image(path, self.view)
        except Unreadable:
            if self.skip_unreadable:
                return None
            raise

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Find the files and check them, once."""
        if self.collection is None:
            collection = self.find()
            self.survey = survey(collection, self.check_files, self.view)
            unreadable = self.survey.unreadable
            self._check_unreadable(collection, unreadable)
            readable = {
                split: (examples if isinstance(examples, Listing) else Listing.of(examples)).without(unreadable[split])
                for split, examples in collection.splits.items()
            }
            self.collection = replace(collection, splits=readable)

    def _check_unreadable(self, collection: Collection, unreadable: Mapping[str, Mapping[int, Unreadable]]) -> None:
        """Keep and print the names that are left out; raise a UserError if none may be, or if a split has no others."""
        splits = collection.splits
        for split, errors in unreadable.items():
            if errors and (not self.skip_unreadable or len(errors) == len(splits[split])):
                raise next(iter(errors.values()))
        names = [splits[split][position].name for split, errors in unreadable.items() for position in errors]
        self.left_out = names
        if names and launch.is_first():
            more = ", ..." if len(names) > 3 else ""
            print(f"left out, unreadable: {len(names)} pictures: {', '.join(names[:3])}{more}")

    def _drops_last_batch(self, length: int) -> bool:
        """Return whether the last training batch is left out because it has one picture and can't be normalised.

        Args:
            length: examples of this rank.

        Raises:
            UserError: every batch has one picture, and the deepest features of one are single values.
        """
        last = length % self.batch_size
        if not self.batch_normalisation or (last != 1 and self.batch_size > 1):
            return False
        if length > self.batch_size > 1:
            return True
        if self.view.side < SEVERAL_VALUES:
            batches = f"{length} training {self._unit()} in batches of {self.batch_size}"
            option = "data.size" if self.view.crop is None else "data.crop"
            raise UserError(
                f"{batches} at {option}={self.view.side}: batch normalisation can't do with one value a channel",
                accepted=f"batches of two and more, or a larger {option}",
                advice="data.batch_size=2" if length > 1 else f"{option}={SEVERAL_VALUES}",
            )
        return False

    def _unit(self) -> str:
        return "pictures" if self.view.crop is None else "crops"

    def batches_per_epoch(self, ranks: int = 1) -> int:
        """Return the training batches of an epoch on each of so many devices, once the files are found."""
        assert self.collection is not None, "call setup() first"
        share = -(-self.examples_of("train") // ranks)
        return -(-share // self.batch_size) - self._drops_last_batch(share)

    def loader(
        self,
        split: str,
        *,
        shuffle: bool = False,
        augment: Augment = False,
        each_epoch: bool = False,
        training: bool = False,
        crops: bool = False,
    ) -> DataLoader[Any]:
        """Return a loader of a split, or of this rank's share of it where an attached trainer has several ranks.

        Args:
            split: its name.
            shuffle: in a new order in each epoch.
            augment: how pictures are changed at random.
            each_epoch: it is read in every epoch, so a cache is worth its memory.
            training: leave out a last batch that can't be normalised.
            crops: where the view has crops, yield random ones and not whole pictures, one in a batch.
        """
        assert self.collection is not None, "call setup() first"
        whole = self.view.crop is not None and not crops
        share: dict[str, Any] = {}
        if self.trainer:
            share = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        if shuffle:
            share["done"] = self.done
        on_device = self.cache == "device" and each_epoch
        kind = WholeExamples if whole else AugmentationExamples if on_device else Examples
        dataset = self._examples(kind, split, augment, self.foreground if training else 0.0, crops)
        sampler = EpochSampler(len(dataset), shuffle=shuffle, seed=self.seed, **share)
        drop_last = training and self._drops_last_batch(len(sampler))
        if drop_last and launch.is_first():
            batches = f"{len(sampler)} training {self._unit()} in batches of {self.batch_size}"
            print(f"{batches}: one sits out in each epoch, a last batch of one can't be normalised")
        collate_fn: Callable[[list[Any]], Any] = collate
        if isinstance(dataset, AugmentationExamples):
            if split not in self.on_device:
                cache = Cache("ram", *self._cache_arguments(dataset, split))
                self.on_device[split] = DeviceImages(split, cache, self._device())
            dataset.whole = self.on_device[split].whole
            collate_fn = partial(device.collate, split, self.view.size)
        elif not whole:
            if split not in self.caches:
                self.caches[split] = self._cache(dataset, split, each_epoch)
            dataset.cache = self.caches[split]
        return DataLoader(
            dataset,
            batch_size=1 if whole else self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_fn,
            worker_init_fn=launch.loader_init_fn() if self.workers else None,
            generator=torch.Generator().manual_seed(self.seed),  # the process-wide one stays as it is
        )

    def augmented_examples(self) -> Examples:
        """Return the training examples as a training augments them, read from their files."""
        return self._examples(Examples, "train", self.augment, self.foreground, crops=True)

    def _examples(self, kind: type[Examples], split: str, augment: Augment, foreground: float, crops: bool) -> Examples:
        assert self.collection is not None
        return kind(
            self.collection.splits[split],
            self.collection.values,
            Transform(self.view, augment, foreground),
            self.seed,
            skip_unreadable=self.skip_unreadable,
            crops=self._crops_of(split) if crops and self.view.crop is not None else None,
        )

    def examples_of(self, split: str) -> int:
        """Return the examples of an epoch of a split: pictures, or crops of those in training."""
        assert self.collection is not None, "call setup() first"
        if split == "train" and self.view.crop is not None:
            return int(self._crops_of(split).sum())
        return len(self.collection.splits[split])

    def batches_of(self, split: str, ranks: int) -> int:
        """Return the batches of an epoch of a split on each of several ranks, the last one included."""
        size = 1 if split != "train" and self.view.crop is not None else self.batch_size
        return -(-self.examples_of(split) // (size * ranks))

    def _crops_of(self, split: str) -> np.ndarray:
        """Return how many crops of each picture an epoch has: as many as its area holds, or as were asked for."""
        areas = np.array([np.prod(self.view.resized(*map(int, size)), dtype=float) for size in self._sizes(split)])
        covering = np.rint(areas / self.view.side**2).astype(np.int64).clip(1)
        return covering if self.crops is None else np.full_like(covering, self.crops)

    def _sizes(self, split: str) -> np.ndarray:
        """Return height and width of the pictures of a split, Nx2 int; 0 by 0 of one that can't be read."""
        assert self.collection is not None
        assert self.survey is not None
        if self.check_files != "none":
            return self.survey.sizes[split]
        if split not in self.sizes:
            self.sizes[split] = np.array([_size(e.image, self.view) for e in self.collection.splits[split]])
        return self.sizes[split]

    def _cache(self, dataset: Examples, split: str, each_epoch: bool) -> Cache | None:
        """Return the cache of a split, if it has one; ranks with and without a cache load the same examples."""
        if self.cache in ("ram", "disk"):
            return Cache(self.cache, *self._cache_arguments(dataset, split))
        if self.cache == "auto" and each_epoch:
            sizes = None if self.view.crop is None else self._sizes(split)
            needed = cache_bytes(self.view, len(dataset.examples), sizes)
            if fits_in_memory(needed):
                with suppress(UserError):  # there is no room after all
                    return Cache("ram", *self._cache_arguments(dataset, split))
            if self.view.crop is not None and launch.is_first():
                print(f"each crop reads its picture again: data.cache=disk keeps them decoded, {needed:,} bytes")
        return None

    def _cache_arguments(self, dataset: Examples, split: str) -> tuple[Any, ...]:
        """Return the arguments of Cache after its kind."""
        files = [(e.image, e.mask) for e in dataset.examples]
        sizes = None if self.view.crop is None else self._sizes(split)
        return files, dataset.values, self.view, dataset.load_resized, sizes

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def on_after_batch_transfer(self, batch: Batch | AugmentationBatch, dataloader_idx: int) -> Batch:
        """Return the augmented examples of an AugmentationBatch from the device, or a Batch as it is."""
        return self.on_device[batch.split].batch(batch) if isinstance(batch, AugmentationBatch) else batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented training examples; a last batch of one picture may be left out."""
        return self.loader("train", shuffle=True, augment=self.augment, each_epoch=True, training=True, crops=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val", each_epoch=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test_split)


def _size(path: Path, view: View) -> tuple[int, int]:
    try:
        return image_size(path, view)
    except Unreadable:
        return 0, 0
