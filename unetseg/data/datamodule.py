"""From a Collection to batches of uint8, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from unetseg import launch
from unetseg.config import UserError
from unetseg.data.cache import Cache, modest
from unetseg.data.examples import Collection, Example, Listing, Unreadable, check_headers, read_image, read_mask
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


class Unread(NamedTuple):
    """An example that could not be read."""

    position: int
    reason: str


Item = tuple[np.ndarray, np.ndarray, int] | Unread
"""Image SxSx3 and mask SxS, uint8, with their position in the split; or what stands in for them."""


class Examples(Dataset[Item]):
    """Reads and transforms one example, addressed by (epoch, index).

    The epoch comes with the index because a worker process that lives through all epochs has no other way to learn it.

    Args:
        examples: the files.
        values: the table of the Collection.
        transform: what is done to each.
        seed: of the augmentation.
        skip_unreadable: return an Unread in place of what can't be read, and don't raise.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        values: np.ndarray,
        transform: Transform,
        seed: int,
        *,
        skip_unreadable: bool = False,
    ):
        self.examples, self.values, self.transform, self.seed = examples, values, transform, seed
        self.skip_unreadable = skip_unreadable
        self.cache: Cache | None = None
        """Holds what `square` returns, if given."""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        try:
            image, mask = (self.cache and self.cache[index]) or self.square(index)
        except Unreadable as error:
            if self.skip_unreadable:
                return Unread(index, str(error))
            raise UserError(str(error)) from None  # by this name cli.py finds it in what a loader's process reports
        return *self.transform(image, mask, (self.seed, epoch, index)), index

    def square(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an example and resize it: image SxSx3 and mask SxS, uint8."""
        example = self.examples[index]
        image = read_image(example.image, self.transform.size)
        return self.transform.square(image, read_mask(example.mask, self.values))


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
        cache: none, or where the resized pictures are kept between epochs: ram | disk; auto: in RAM where little of it
            is needed and there is room, and only what is read in each epoch.
        skip_unreadable: leave out what can't be read, and don't end the run.
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
        self.cache, self.skip_unreadable = cache, skip_unreadable
        self.caches: dict[str, Cache | None] = {}
        self.collection: Collection | None = None
        self.left_out: list[str] = []
        """Names of the pictures of all splits whose files could not be opened, with skip_unreadable."""
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
            found = self.find()
            unreadable = {split: check_headers(examples) for split, examples in found.splits.items()}
            self._check_unreadable(found, unreadable)
            readable = {
                split: Listing(example for i, example in enumerate(examples) if i not in unreadable[split])
                for split, examples in found.splits.items()
            }
            self.collection = replace(found, splits=readable)

    def _check_unreadable(self, found: Collection, unreadable: dict[str, dict[int, Unreadable]]) -> None:
        """Keep and say what is left out, or raise a UserError where nothing may be or where nothing is left."""
        for split, errors in unreadable.items():
            if errors and (not self.skip_unreadable or len(errors) == len(found.splits[split])):
                raise next(iter(errors.values()))
        names = [found.splits[split][position].name for split, errors in unreadable.items() for position in errors]
        self.left_out = names
        if names and launch.is_first():
            print(f"left out, unreadable: {len(names)} pictures: {', '.join(names[:3])}{', ...' * (len(names) > 3)}")

    def loader(
        self, split: str, *, shuffle: bool = False, augment: bool = False, each_epoch: bool = False
    ) -> DataLoader[Any]:
        """Return a loader of a split; this rank's share of it where a trainer with several is attached."""
        assert self.collection is not None, "call setup() first"
        examples = self.collection.splits[split]
        share: dict[str, Any] = {}
        if self.trainer:
            share = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        if shuffle:
            share["done"] = self.done
        dataset = Examples(
            examples,
            self.collection.values,
            Transform(self.size, augment),
            self.seed,
            skip_unreadable=self.skip_unreadable,
        )
        if split not in self.caches:
            self.caches[split] = self._cache(dataset, each_epoch)
        dataset.cache = self.caches[split]
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(examples), shuffle=shuffle, seed=self.seed, **share),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),  # the process-wide one stays as it is
        )

    def _cache(self, dataset: Examples, each_epoch: bool) -> Cache | None:
        """Return what keeps the squares of a split; ranks that differ in it load the same all the same."""
        what = (dataset.examples, dataset.values, self.size, dataset.square)
        if self.cache in ("ram", "disk"):
            return Cache(self.cache, *what)
        if self.cache == "auto" and each_epoch and modest(len(dataset), self.size):
            with suppress(UserError):  # there is no room after all
                return Cache("ram", *what)
        return None

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented training examples."""
        return self.loader("train", shuffle=True, augment=self.augment, each_epoch=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation examples."""
        return self.loader("val", each_epoch=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the examples of the test split, or of the one chosen in its place."""
        return self.loader(self.test_split)


def collate(items: list[Item]) -> Batch:
    """Stack examples; the images stay HxWx3 in memory, which is what channels_last models read.

    Raises:
        UserError: none of them could be read.
    """
    unread = [item for item in items if isinstance(item, Unread)]
    if len(unread) == len(items):
        reasons = "\n".join(item.reason.partition("\n")[0] for item in unread)
        raise UserError(f"nothing is left of a batch:\n{reasons}\n  try: replace these files, or drop their lines")
    images, masks, indices = default_collate([item for item in items if not isinstance(item, Unread)])
    missing = torch.tensor([item.position for item in unread], dtype=torch.int64)
    return Batch(images.permute(0, 3, 1, 2), masks, indices, missing)
