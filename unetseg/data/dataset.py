"""What a data set is once its files have been found, and how its examples become batches.

What a loader's process does, read, resize, augment and stack, is the same for any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from unetseg.data.cache import Cache
from unetseg.data.pictures import Range, Unreadable, read_image, read_mask
from unetseg.data.transforms import Transform
from unetseg.errors import UserError


@dataclass(frozen=True)
class Example:
    """One picture and its mask, as files."""

    name: str
    image: Path
    mask: Path
    group: str
    """What results are broken down by: the breed in Pets, empty where there is none."""


class Listing(Sequence[Example]):
    """Many examples as a few arrays of bytes; an Example is made when it is asked for.

    A loader's process shares the memory of the process that it was forked from until one of the two writes to it, and
    Python writes to an object whenever it is looked at: a list of N examples would be copied into every loader process.

    Example:
        >>> listing = Listing([Example("cat_1", Path("images/cat_1.jpg"), Path("masks/cat_1.png"), "cat")])
        >>> len(listing), listing[0].group
        (1, 'cat')
    """

    def __init__(self, examples: Iterable[Example]):
        rows = [tuple(map(os.fsencode, (e.name, str(e.image), str(e.mask), e.group))) for e in examples]
        self.columns = [np.array([row[column] for row in rows], dtype=np.bytes_) for column in range(4)]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are not needed
        name, image, mask, group = (os.fsdecode(column[index]) for column in self.columns)
        return Example(name, Path(image), Path(mask), group)


@dataclass(frozen=True)
class Collection:
    """A data set: its classes, what its mask values mean, and the examples of each split."""

    classes: tuple[str, ...]
    values: np.ndarray
    """256 uint8: the class of each mask value, IGNORE, or pictures.INVALID."""
    splits: Mapping[str, Sequence[Example]]
    """train, val and test, or those of them that are needed; all: every example of the set."""
    missing: Mapping[Path, Unreadable] = field(default_factory=dict)
    """Of files that aren't there: what is to be said of them."""


def missing_layout(root: Path, parts: Sequence[str]) -> list[str]:
    """Return the parts of a layout (files or folders under root) that do not exist."""
    return [part for part in parts if not (root / part).exists()]


def read_list(file: Path) -> list[str]:
    """Return the lines of a list, in UTF-8 or, with its mark at the beginning, in UTF-16.

    Raises:
        UserError: it is in another encoding.
    """
    content = file.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{file} is in an unknown encoding", accepted="UTF-8, or UTF-16 with its mark")
    return [line.strip() for line in text.splitlines() if line.strip()]


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


T = TypeVar("T")
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
        value_range: what becomes black and what white of pictures of more than 8 bits, see `pictures.opened`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        values: np.ndarray,
        transform: Transform,
        seed: int,
        *,
        skip_unreadable: bool = False,
        value_range: Range = None,
    ):
        self.examples, self.values, self.transform, self.seed = examples, values, transform, seed
        self.skip_unreadable, self.value_range = skip_unreadable, value_range
        self.cache: Cache | None = None
        """Holds what `resized` returns, if given."""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        return self.load(*address)

    def load(self, epoch: int, index: int) -> Item:
        """Return an example as it is in this epoch."""
        try:
            image, mask = (self.cache and self.cache[index]) or self.resized(index)
        except Unreadable as error:
            return self.unread(index, error)
        return *self.transform(image, mask, (self.seed, epoch, index)), index

    def unread(self, index: int, error: Unreadable) -> Unread:
        """Return what stands in for an example, or raise a UserError where nothing may be left out."""
        if self.skip_unreadable:
            return Unread(index, str(error))
        raise UserError(str(error)) from None  # by this name command.leave finds it in what a loader's process reports

    def resized(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an example and resize it: image SxSx3 and mask SxS, uint8."""
        example = self.examples[index]
        return self.transform.resize(read_image(example.image, self.value_range), read_mask(example.mask, self.values))


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

    Example:
        >>> list(EpochSampler(5, shuffle=False, seed=0, rank=1, ranks=2))
        [(0, 1), (0, 3)]
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


def collate(items: list[Item]) -> Batch:
    """Stack examples; the images stay HxWx3 in memory, which is what channels_last models read.

    Raises:
        UserError: none of them could be read.
    """
    read, missing = readable(items)
    images, masks, indices = default_collate(read)
    return Batch(images.permute(0, 3, 1, 2), masks, indices, missing)


def readable(items: Sequence[T | Unread]) -> tuple[list[T], Tensor]:
    """Return the items that could be read, and the positions of the others.

    Raises:
        UserError: none of them could be read.
    """
    unread = [item for item in items if isinstance(item, Unread)]
    if len(unread) == len(items):
        reasons = "\n".join(item.reason.partition("\n")[0] for item in unread)
        raise UserError(f"nothing is left of a batch:\n{reasons}", advice="replace these files, or drop their lines")
    read = [item for item in items if not isinstance(item, Unread)]
    return read, torch.tensor([item.position for item in unread], dtype=torch.int64)
