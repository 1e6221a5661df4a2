"""From a Collection to batches of uint8: which examples are found, kept and loaded on which process."""

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
from unetseg.data.cache import Cache, modest
from unetseg.data.dataset import Batch, Collection, EpochSampler, Examples, Listing, collate
from unetseg.data.device import AugmentationBatch, AugmentationExamples, DeviceImages
from unetseg.data.pictures import Range, Unreadable
from unetseg.data.survey import Survey, remarks, survey, table
from unetseg.data.transforms import Transform
from unetseg.errors import UserError

SEVERAL_VALUES = 64
"""Side from which on the deepest features of one picture, at a stride of 32, are several values a channel."""


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
        test_split: the part that a test runs over.
        cache: none, or where the resized pictures are kept between epochs: ram | disk; auto: in RAM where little of it
            is needed and there is room, and only what is read in each epoch. device: what is read in each epoch lies on
            the trainer's device, which augments it too.
        skip_unreadable: leave out what can't be read, and don't end the run.
        value_range: what becomes black and what white of pictures of more than 8 bits.
        look: what is read before training: full (every mask, every picture's head), headers or none.
        batch_normalisation: of the model: a training batch of one picture is left out, or refused.
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
        look: str = "full",
        batch_normalisation: bool = True,
    ):
        super().__init__()
        self.find, self.prepare, self.test_split = find, prepare, test_split
        self.size, self.batch_size, self.workers = size, batch_size, workers
        self.augment, self.seed = augment, seed
        self.cache, self.skip_unreadable = cache, skip_unreadable
        self.value_range, self.look, self.batch_normalisation = value_range, look, batch_normalisation
        self.caches: dict[str, Cache | None] = {}
        self.on_device: dict[str, DeviceImages] = {}
        self.collection: Collection | None = None
        self.left_out: list[str] = []
        """Names of the pictures of all splits whose files could not be opened, with skip_unreadable."""
        self.done = (0, 0)
        self.survey: Survey | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch that is to go on, and how many of its examples all ranks together have been trained on."""
        if self.trainer is None:
            return {}
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if batches >= self.trainer.num_training_batches:
            return {"epoch": self.trainer.current_epoch + 1, "examples": 0}
        return {"epoch": self.trainer.current_epoch, "examples": batches * self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training examples go on from there."""
        self.done = state_dict["epoch"], state_dict["examples"]

    def check(self) -> None:
        """Download or generate, find and check the files, before anything else of a run is made; say what is there.

        Raises:
            UserError: the data set can't be trained on.
        """
        self.prepare_data()
        self.setup()
        assert self.collection is not None
        assert self.survey is not None
        if "train" in self.collection.splits:
            self._drops_last(len(self.collection.splits["train"]))
        if launch.is_first() and self.look != "none":
            Console().print(table(self.collection, self.survey))
            for line in remarks(self.collection, self.survey):
                print(line)

    def prepare_data(self) -> None:
        """Download or generate what is absent."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Find the files and look at them, once."""
        if self.collection is None:
            found = self.find()
            self.survey = survey(found, self.look, self.value_range)
            unreadable = self.survey.unreadable
            self._check_unreadable(found, unreadable)
            readable = {
                split: Listing(example for i, example in enumerate(examples) if i not in unreadable[split])
                for split, examples in found.splits.items()
            }
            self.collection = replace(found, splits=readable)

    def _check_unreadable(self, found: Collection, unreadable: Mapping[str, Mapping[int, Unreadable]]) -> None:
        """Keep and say what is left out, or raise a UserError where nothing may be or where nothing is left."""
        for split, errors in unreadable.items():
            if errors and (not self.skip_unreadable or len(errors) == len(found.splits[split])):
                raise next(iter(errors.values()))
        names = [found.splits[split][position].name for split, errors in unreadable.items() for position in errors]
        self.left_out = names
        if names and launch.is_first():
            print(f"left out, unreadable: {len(names)} pictures: {', '.join(names[:3])}{', ...' * (len(names) > 3)}")

    def _drops_last(self, length: int) -> bool:
        """Return whether the last training batch is left out: it has one picture, which can't be normalised.

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
            given = f"{length} training pictures in batches of {self.batch_size}"
            raise UserError(
                f"{given} at data.size={self.size}: batch normalisation can't do with one value a channel",
                accepted="batches of two and more, or a larger data.size",
                advice="data.batch_size=2" if length > 1 else f"data.size={SEVERAL_VALUES}",
            )
        return False

    def loader(
        self,
        split: str,
        *,
        shuffle: bool = False,
        augment: bool = False,
        each_epoch: bool = False,
        training: bool = False,
    ) -> DataLoader[Any]:
        """Return a loader of a split; this rank's share of it where a trainer with several is attached."""
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
        drop_last = training and self._drops_last(len(sampler))
        if drop_last and launch.is_first():
            given = f"{len(sampler)} training pictures in batches of {self.batch_size}"
            print(f"{given}: one sits out in each epoch, a last batch of one can't be normalised")
        collating: Callable[[list[Any]], Any] = collate
        if isinstance(dataset, AugmentationExamples):
            if split not in self.on_device:
                self.on_device[split] = DeviceImages(split, Cache("ram", *self._cached(dataset)), self._device())
            dataset.whole, collating = self.on_device[split].whole, partial(device.collate, split, self.size)
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
            collate_fn=collating,
            worker_init_fn=launch.loader_init_fn() if self.workers else None,
            generator=torch.Generator().manual_seed(self.seed),  # the process-wide one stays as it is
        )

    def _cache(self, dataset: Examples, each_epoch: bool) -> Cache | None:
        """Return what keeps the resized images of a split; ranks that differ in it load the same all the same."""
        what = self._cached(dataset)
        if self.cache in ("ram", "disk"):
            return Cache(self.cache, *what)
        if self.cache == "auto" and each_epoch and modest(len(dataset), self.size):
            with suppress(UserError):  # there is no room after all
                return Cache("ram", *what)
        return None

    def _cached(self, dataset: Examples) -> tuple[Any, ...]:
        """Return Cache's arguments but for its kind."""
        files = [(e.image, e.mask) for e in dataset.examples]
        return files, dataset.values, self.size, dataset.resized, self.value_range

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def on_after_batch_transfer(self, batch: Batch | AugmentationBatch, dataloader_idx: int) -> Batch:
        """Return the batch that is asked for, where the device holds the examples."""
        return self.on_device[batch.split].batch(batch) if isinstance(batch, AugmentationBatch) else batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented training examples; a last batch of one is left out if it has to be."""
        return self.loader("train", shuffle=True, augment=self.augment, each_epoch=True, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation examples."""
        return self.loader("val", each_epoch=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the examples of the test split, or of the one chosen in its place."""
        return self.loader(self.test_split)
