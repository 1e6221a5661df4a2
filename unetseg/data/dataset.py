"""A data set as the list of its files, and how its examples become batches.

An example is read, resized and augmented in the same way by any number of loader processes.

Legend: H x W pixels of a picture, S side of a square or a crop, C channels.
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
from unetseg.data.masks import MaskValues, read_mask
from unetseg.data.pictures import Unreadable, read_image
from unetseg.data.transforms import Transform, fit_image
from unetseg.errors import UserError


@dataclass(frozen=True)
class Example:
    """One picture and its mask, as files."""

    name: str
    image: Path
    mask: Path
    group: str
    """Scores are also given per group: the breed in Pets, empty where there are no groups."""


class Pair(NamedTuple):
    """The files of an example as text: a million of them take seconds, and paths many times as long."""

    image: str
    mask: str


class Listing(Sequence[Example]):
    """Many examples as a few arrays of bytes; an Example is created when it is accessed.

    A forked loader process shares its parent's memory until one of the two writes to it. Python writes to an object
    whenever it is accessed (its reference count), so a list of N examples would be copied into every loader process.

    Args:
        columns: N names, pictures, masks and groups, as text.

    Examples:
        >>> listing = Listing(["cat_1"], ["images/cat_1.jpg"], ["masks/cat_1.png"], ["cat"])
        >>> len(listing), listing[0].group
        (1, 'cat')
    """

    def __init__(self, *columns: Sequence[str]):
        self.columns = [np.array([*map(os.fsencode, column)], dtype=np.bytes_) for column in columns]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Listing:
        """Return examples as a listing."""
        rows = [(example.name, str(example.image), str(example.mask), example.group) for example in examples]
        return cls(*([row[column] for row in rows] for column in range(4)))

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are not needed
        name, image, mask, group = (os.fsdecode(column[index]) for column in self.columns)
        return Example(name, Path(image), Path(mask), group)

    def without(self, positions: Iterable[int]) -> Listing:
        """Return the examples at all other positions."""
        found = Listing()
        found.columns = [np.delete(column, [*positions]) for column in self.columns]
        return found


def files_of(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Return the pictures and the masks of N examples as text."""
    if isinstance(examples, Listing):
        images, masks = ([*map(os.fsdecode, column.tolist())] for column in examples.columns[1:3])
        return images, masks
    return [str(example.image) for example in examples], [str(example.mask) for example in examples]


@dataclass(frozen=True)
class Collection:
    """A data set: its classes, the meaning of its mask values, and the examples of each split.

    Examples:
        >>> from unetseg.data.masks import stated_values
        >>> train = [Example("cat_1", Path("images/cat_1.jpg"), Path("masks/cat_1.png"), "cat")]
        >>> values = stated_values({"background": 0, "cat": 255})
        >>> collection = Collection(("background", "cat"), values, {"train": train})
    """

    classes: tuple[str, ...]
    values: MaskValues
    splits: Mapping[str, Sequence[Example]]
    """train, val and test, or the ones that are needed; all: every example of the set."""
    missing: Mapping[Path, Unreadable] = field(default_factory=dict)
    """The error to raise for each file that does not exist."""
    notes: tuple[str, ...] = ()
    """What the user is told about how the examples were found."""


def missing_layout(root: Path, parts: Sequence[str]) -> list[str]:
    """Return the parts of a layout (files or folders under root) that do not exist."""
    return [part for part in parts if not (root / part).exists()]


def read_list(file: Path) -> list[str]:
    """Return a file's lines that aren't empty; a UserError if it is neither UTF-8 nor UTF-16 with a byte order mark."""
    if not file.is_file():
        raise UserError(f"{file} is no file", accepted="a list of pictures, a line each")
    content = file.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{file} is in an unknown encoding", accepted="UTF-8, or UTF-16 with its mark")
    return [line.strip() for line in text.splitlines() if line.strip()]


class Batch(NamedTuple):
    """B examples of size S; or a whole picture at its own size, where a model of crops is evaluated."""

    images: Tensor
    """BxCxSxS, channels innermost in memory: uint8 RGB, or float32; of a whole picture 1xCxhxw, at the view's scale."""
    masks: Tensor
    """BxSxS uint8 classes, IGNORE included; of a whole picture 1xHxW."""
    indices: Tensor
    """B int64: positions in the split."""
    unreadable: Tensor = torch.zeros(0, dtype=torch.int64)
    """int64: positions of the examples of this batch that could not be read."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its pictures and masks on a device."""
        return self._replace(images=self.images.to(device), masks=self.masks.to(device))


class SkippedExample(NamedTuple):
    """Stands in for an example that could not be read."""

    position: int
    reason: str


T = TypeVar("T")
Item = tuple[np.ndarray, np.ndarray, int] | SkippedExample
"""Image SxSxC and mask SxS, with the picture's position in the split; or a SkippedExample."""


class Examples(Dataset[Item]):
    """Reads and transforms one example, addressed by (epoch, position).

    The epoch is part of the address because a worker process that lives through all epochs can't learn it otherwise.

    Args:
        examples: the files.
        values: of the Collection.
        transform: applied to each example.
        seed: of the augmentation.
        skip_unreadable: return a SkippedExample for an example that can't be read, and don't raise.
        crops: of each picture in an epoch, N numbers from 1; None: one example a picture.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        values: MaskValues,
        transform: Transform,
        seed: int,
        *,
        skip_unreadable: bool = False,
        crops: np.ndarray | None = None,
    ):
        self.examples, self.values, self.transform, self.seed = examples, values, transform, seed
        self.skip_unreadable = skip_unreadable
        self.ends = None if crops is None else crops.cumsum()
        """Before which position each picture's crops end."""
        self.cache: Cache | None = None
        """If set, the results of `load_resized`."""

    def __len__(self) -> int:
        return len(self.examples) if self.ends is None else int(self.ends[-1])

    def __getitem__(self, address: tuple[int, int]) -> Item:
        return self.load(*address)

    def load(self, epoch: int, position: int) -> Item:
        """Return an example with the crop and the augmentation of this epoch."""
        index = position if self.ends is None else int(np.searchsorted(self.ends, position, "right"))
        try:
            image, mask = (self.cache and self.cache[index]) or self.load_resized(index)
        except Unreadable as error:
            return self.skip(index, error)
        image, mask = self.transform(image, mask, (self.seed, epoch, position))
        return image, mask, index

    def skip(self, index: int, error: Unreadable) -> SkippedExample:
        """Return a SkippedExample, or raise a UserError where no example may be skipped."""
        if self.skip_unreadable:
            return SkippedExample(index, str(error))
        raise UserError(str(error)) from None  # options.command looks for this name in a loader process's report

    def load_resized(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an example and resize it: image hxwxC and mask hxw."""
        return self.transform.resize(*self.read(index))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an example as its files hold it: image HxWxC and mask HxW."""
        example = self.examples[index]
        return read_image(example.image, self.transform.view), read_mask(example.mask, self.values)


class WholeExamples(Examples):
    """Whole pictures for a model of crops: the image as the view scales it, the mask at its own size."""

    def load(self, epoch: int, position: int) -> Item:
        """Return an example; it is the same in every epoch."""
        try:
            image, mask = self.read(position)
        except Unreadable as error:
            return self.skip(position, error)
        return fit_image(image, self.transform.view), mask, position


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index): this rank's share of the examples, in an order drawn from (seed, epoch).

    A shuffled share has the same length on every rank, because ranks train in step: the last length % ranks examples
    of an epoch's order are left out of that epoch. Without shuffling every example is yielded on exactly one rank.

    Args:
        length: of the data set.
        shuffle: draw a new order in each epoch.
        seed: of the order.
        rank: number of this process.
        ranks: number of processes.
        done: the epoch in which a resumed run continues, and how many of its examples all ranks together have had.

    Examples:
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
        """Set the epoch. Lightning calls this before each epoch, with 0 until it has restored a resumed run."""
        self.epoch = max(epoch, self.done[0])

    def __len__(self) -> int:  # of the whole epoch, also of the one that is resumed: Lightning counts from its start
        return self.length // self.ranks if self.shuffle else len(range(self.rank, self.length, self.ranks))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist()
        else:
            order = range(self.length)
        epoch, examples = self.done
        first = examples // self.ranks if self.epoch == epoch else 0
        for position in range(first, len(self)):
            yield self.epoch, order[self.rank + position * self.ranks]


def first_of(batches: Iterable[Batch], count: int) -> Batch:
    """Return the first pictures of some batches, at most so many, as one batch.

    Examples:
        >>> batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8), torch.tensor([4, 7]))
        >>> first_of([batch, batch], 3).indices.tolist()
        [4, 7, 4]
    """
    taken: list[Batch] = []
    for batch in batches:
        taken.append(batch)
        if sum(len(own.indices) for own in taken) >= count:
            break
    joined = (torch.cat([getattr(own, name) for own in taken])[:count] for name in ("images", "masks", "indices"))
    return Batch(*joined)


class First:
    """The first pictures of some batches, at most so many, in batches: the same ones each time it is gone through.

    Args:
        batches: a loader that has the same order each time.
        count: of the pictures.

    Examples:
        >>> batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8), torch.tensor([4, 7]))
        >>> [own.indices.tolist() for own in First([batch, batch, batch], 3)]
        [[4, 7], [4]]
    """

    def __init__(self, batches: Iterable[Batch], count: int):
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Batch]:
        left = self.count
        for batch in self.batches:
            yield Batch(batch.images[:left], batch.masks[:left], batch.indices[:left], batch.unreadable)
            left -= len(batch.indices)
            if left <= 0:
                return


def collate(items: list[Item]) -> Batch:
    """Stack examples; the images stay HxWxC in memory, the layout that channels_last models read.

    Raises:
        UserError: no example could be read.
    """
    examples, unreadable = split_skipped(items)
    images, masks, indices = default_collate(examples)
    return Batch(images.permute(0, 3, 1, 2), masks, indices, unreadable)


def split_skipped(items: Sequence[T | SkippedExample]) -> tuple[list[T], Tensor]:
    """Return the items that could be read, and the positions of the others, int64.

    Raises:
        UserError: no item could be read.
    """
    skipped = [item for item in items if isinstance(item, SkippedExample)]
    if len(skipped) == len(items):
        reasons = "\n".join(item.reason.partition("\n")[0] for item in skipped)
        raise UserError(f"nothing is left of a batch:\n{reasons}", advice="replace these files, or drop their lines")
    read = [item for item in items if not isinstance(item, SkippedExample)]
    return read, torch.tensor([item.position for item in skipped], dtype=torch.int64)
