"""From a Collection to batches of uint8: finds, checks, caches and loads the examples of each process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from unetseg import launch
from unetseg.data import device
from unetseg.data.cache import Cache, fits_in_memory
from unetseg.data.dataset import Batch, Collection, EpochSampler, Examples, Listing, collate
from unetseg.data.device import AugmentationBatch, AugmentationExamples, DeviceImages
from unetseg.data.pictures import Range, Unreadable
from unetseg.data.survey import Survey, remarks, survey, table
from unetseg.data.transforms import Transform
from unetseg.errors import UserError

SEVERAL_VALUES = 64
"""Least side at which a channel of one picture's deepest features, at a stride of 32, has several values."""


class SegmentationData(L.LightningDataModule):
    """The loaders of a Collection.

    Args:
        find: returns the Collection; called once, before training, on every process.
        size: side of the square that pictures are resized to.
        batch_size: examples per step and device.
        workers: loader processes; 0 loads in this one.
        augment: random flip, scale, rotation and colour while training.
        seed: of the order and the augmentation.
        prepare: downloads or generates the files; called on one process of each machine.
        test_split: the split of a test.
        cache: none, or where the resized pictures are kept between epochs: ram | disk; auto: in RAM where they need
            little of it and there is room, and only the splits that are read in each epoch; device: these splits are
            kept on the trainer's device, which augments them too.
        skip_unreadable: leave out pictures that can't be read, and don't end the run.
        value_range: the values of pictures of more than 8 bits that become black and white.
        check_files: full (read every mask and every picture's header before training), headers or none.
        batch_normalisation: whether the model has any: a training batch of one picture is left out, or refused.
    """

    def __init__(
        self,
        find: Callable[[], Collection],
        *,
        size: int,
        batch_size: int,
        workers: int,
        augment: bool,
        seed: int,
        prepare: Callable[[], object] = lambda: None,
        test_split: str = "test",
        cache: str = "none",
        skip_unreadable: bool = False,
        value_range: Range = None,
        check_files: str = "full",
        batch_normalisation: bool = True,
    ):
        super().__init__()
        self.find, self.prepare, self.test_split = find, prepare, test_split
        self.size, self.batch_size, self.workers = size, batch_size, workers
        self.augment, self.seed = augment, seed
        self.cache, self.skip_unreadable = cache, skip_unreadable
        self.value_range, self.check_files, self.batch_normalisation = value_range, check_files, batch_normalisation
        self.caches: dict[str, Cache | None] = {}
        self.on_device: dict[str, DeviceImages] = {}
        self.collection: Collection | None = None
        self.left_out: list[str] = []
        """With skip_unreadable: names of the pictures of all splits that could not be read."""
        self.done = (0, 0)
        self.survey: Survey | None = None

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
            self._drops_last_batch(len(self.collection.splits["train"]))
        if launch.is_first() and self.check_files != "none":
            Console().print(table(self.collection, self.survey))
            for line in [*self.collection.notes, *remarks(self.collection, self.survey)]:
                print(line)

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Find the files and check them, once."""
        if self.collection is None:
            collection = self.find()
            self.survey = survey(collection, self.check_files, self.value_range)
            unreadable = self.survey.unreadable
            self._check_unreadable(collection, unreadable)
            readable = {
                split: Listing(example for i, example in enumerate(examples) if i not in unreadable[split])
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
        if self.size < SEVERAL_VALUES:
            batches = f"{length} training pictures in batches of {self.batch_size}"
            raise UserError(
                f"{batches} at data.size={self.size}: batch normalisation can't do with one value a channel",
                accepted="batches of two and more, or a larger data.size",
                advice="data.batch_size=2" if length > 1 else f"data.size={SEVERAL_VALUES}",
            )
        return False

    def batches_per_epoch(self, ranks: int = 1) -> int:
        """Return the training batches of an epoch on each of so many devices, once the files are found."""
        assert self.collection is not None, "call setup() first"
        share = -(-len(self.collection.splits["train"]) // ranks)
        return -(-share // self.batch_size) - self._drops_last_batch(share)

    def loader(
        self,
        split: str,
        *,
        shuffle: bool = False,
        augment: bool = False,
        each_epoch: bool = False,
        training: bool = False,
    ) -> DataLoader[Any]:
        """Return a loader of a split, or of this rank's share of it where an attached trainer has several ranks."""
        assert self.collection is not None, "call setup() first"
        examples = self.collection.splits[split]
        share: dict[str, Any] = {}
        if self.trainer:
            share = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        if shuffle:
            share["done"] = self.done
        on_device = self.cache == "device" and each_epoch
        dataset = (AugmentationExamples if on_device else Examples)(
            examples,
            self.collection.values,
            Transform(self.size, augment),
            self.seed,
            skip_unreadable=self.skip_unreadable,
            value_range=self.value_range,
        )
        sampler = EpochSampler(len(examples), shuffle=shuffle, seed=self.seed, **share)
        drop_last = training and self._drops_last_batch(len(sampler))
        if drop_last and launch.is_first():
            batches = f"{len(sampler)} training pictures in batches of {self.batch_size}"
            print(f"{batches}: one sits out in each epoch, a last batch of one can't be normalised")
        collate_fn: Callable[[list[Any]], Any] = collate
        if isinstance(dataset, AugmentationExamples):
            if split not in self.on_device:
                cache = Cache("ram", *self._cache_arguments(dataset))
                self.on_device[split] = DeviceImages(split, cache, self._device())
            dataset.whole = self.on_device[split].whole
            collate_fn = partial(device.collate, split, self.size)
        else:
            if split not in self.caches:
                self.caches[split] = self._cache(dataset, each_epoch)
            dataset.cache = self.caches[split]
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_fn,
            worker_init_fn=launch.loader_init_fn() if self.workers else None,
            generator=torch.Generator().manual_seed(self.seed),  # the process-wide one stays as it is
        )

    def _cache(self, dataset: Examples, each_epoch: bool) -> Cache | None:
        """Return the cache of a split, if it has one; ranks with and without a cache load the same examples."""
        arguments = self._cache_arguments(dataset)
        if self.cache in ("ram", "disk"):
            return Cache(self.cache, *arguments)
        if self.cache == "auto" and each_epoch and fits_in_memory(len(dataset), self.size):
            with suppress(UserError):  # there is no room after all
                return Cache("ram", *arguments)
        return None

    def _cache_arguments(self, dataset: Examples) -> tuple[Any, ...]:
        """Return the arguments of Cache after its kind."""
        files = [(e.image, e.mask) for e in dataset.examples]
        return files, dataset.values, self.size, dataset.load_resized, self.value_range

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def on_after_batch_transfer(self, batch: Batch | AugmentationBatch, dataloader_idx: int) -> Batch:
        """Return the augmented examples of an AugmentationBatch from the device, or a Batch as it is."""
        return self.on_device[batch.split].batch(batch) if isinstance(batch, AugmentationBatch) else batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented training examples; a last batch of one picture may be left out."""
        return self.loader("train", shuffle=True, augment=self.augment, each_epoch=True, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val", each_epoch=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test_split)
