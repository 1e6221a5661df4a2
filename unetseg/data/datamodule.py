"""From a Collection to batches of uint8, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from unetseg.data.examples import Collection, Example, check_headers, read_image, read_mask
from unetseg.data.transforms import Transform


class Batch(NamedTuple):
    """B examples of size S."""

    images: Tensor
    """Bx3xSxS uint8 RGB, channels innermost in memory."""
    masks: Tensor
    """BxSxS uint8 classes, IGNORE included."""
    indices: Tensor
    """B int64: positions in the split."""
    unreadable: Tensor = torch.zeros(0, dtype=torch.int64)
    """int64: positions of examples that should have been in the batch and could not be read."""


class Examples(Dataset[tuple[np.ndarray, np.ndarray, int]]):
    """Reads and transforms one example, addressed by (epoch, index).

    The epoch comes with the index because a worker process that lives through all epochs has no other way to learn it.
    """

    def __init__(self, examples: list[Example], values: np.ndarray, transform: Transform, seed: int):
        self.examples, self.values, self.transform, self.seed = examples, values, transform, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, address: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        epoch, index = address
        example = self.examples[index]
        image, mask = read_image(example.image), read_mask(example.mask, self.values)
        return *self.transform(image, mask, (self.seed, epoch, index)), index


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index): this rank's share of the examples, in an order drawn from (seed, epoch).

    A shuffled share has the same length on every rank, as training in step demands: the last length % ranks examples
    of an epoch's order sit that epoch out. Without shuffling every example is yielded on exactly one rank.

    Args:
        length: of the data set.
        shuffle: see above.
        seed: of the order.
        rank: which of the processes this is.
        ranks: how many there are.
        done: an epoch in which the run goes on, and how many of its examples all ranks have had before.
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        done: tuple[int, int] = (0, 0),
    ):
        self.length, self.shuffle, self.seed, self.rank, self.ranks = length, shuffle, seed, rank, ranks
        self.epoch, self.done = done[0], done

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one, with 0 while it has not restored a resumed run."""
        self.epoch = max(epoch, self.done[0])

    def __len__(self) -> int:  # of the whole epoch, also where it is gone on with: Lightning counts from its start
        return self.length // self.ranks if self.shuffle else len(range(self.rank, self.length, self.ranks))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist()
        else:
            order = range(self.length)
        epoch, examples = self.done
        for position in range(examples // self.ranks if self.epoch == epoch else 0, len(self)):
            yield self.epoch, order[self.rank + position * self.ranks]


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
    ):
        super().__init__()
        self.find, self.prepare, self.test_split = find, prepare, test_split
        self.size, self.batch_size, self.workers, self.augment, self.seed = (
            size,
            batch_size,
            workers,
            augment,
            seed,
        )
        self.collection: Collection | None = None
        self.done = (0, 0)

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

    def prepare_data(self) -> None:
        """Download or generate what is absent."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Find the files and read their headers, once."""
        if self.collection is None:
            self.collection = self.find()
            check_headers([example for split in self.collection.splits.values() for example in split])

    def loader(self, split: str, *, shuffle: bool = False, augment: bool = False) -> DataLoader[Any]:
        """Return a loader of a split; this rank's share of it where a trainer with several is attached."""
        assert self.collection is not None, "call setup() first"
        examples = self.collection.splits[split]
        share: dict[str, Any] = {}
        if self.trainer:
            share = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        if shuffle:
            share["done"] = self.done
        return DataLoader(
            Examples(examples, self.collection.values, Transform(self.size, augment), self.seed),
            batch_size=self.batch_size,
            sampler=EpochSampler(len(examples), shuffle=shuffle, seed=self.seed, **share),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),  # the process-wide one stays as it is
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented training examples."""
        return self.loader("train", shuffle=True, augment=self.augment)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation examples."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the examples of the test split, or of the one chosen in its place."""
        return self.loader(self.test_split)


def collate(examples: list[tuple[np.ndarray, np.ndarray, int]]) -> Batch:
    """Stack examples; the images stay HxWx3 in memory, which is what channels_last models read."""
    images, masks, indices = default_collate(examples)
    return Batch(images.permute(0, 3, 1, 2), masks, indices)
