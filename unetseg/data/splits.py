"""Which picture is for training, validation or test, where the data set doesn't say it.

Pictures of one group are never in two splits. Everything is drawn with a seed: the same names give the same splits.

Legend: N pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unetseg.errors import UserError

SPLITS = ("train", "val", "test")
LISTS = {split: f"{split}.txt" for split in SPLITS}
"""The files in a data set's folder that list its splits."""
FLAG = "1"
"""The second column of VOC's lists of one class, where the picture has it; what others mean isn't guessed."""
MOST_STARS = 2
"""More of them in a pattern would take too long to compare."""


@dataclass(frozen=True)
class Drawing:
    """How splits are drawn.

    Examples:
        >>> drawing = Drawing(ratios=(0.5, 0.25, 0.25), group="{group}_*")
        >>> splits = drawing.split(["a_1", "a_2", "b_1", "c_1"], {})
        >>> sorted(map(len, splits.values())), "a_1" in splits["train"], "a_2" in splits["train"]
        ([1, 1, 2], True, True)
    """

    ratios: Sequence[float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test."""
    seed: int = 0
    group: str | None = None
    """A pattern of names with {group}, such as {group}_slice*."""
    folds: int | None = None
    """If set, the pictures are divided into so many parts; one of them is the test split."""
    fold: int = 0
    """Which of them, from 0."""

    def group_of(self, name: str) -> str:
        """Return the group of a name; empty where there are no groups.

        Raises:
            UserError: the name doesn't fit the pattern.
        """
        if self.group is None:
            return ""
        if self.group.count("*") > MOST_STARS:
            raise UserError(f"data.group={self.group} has too many *", accepted=f"up to {MOST_STARS}")
        parts = [re.escape(part) for part in self.group.replace("{group}", "\0").split("*")]
        found = re.fullmatch(".*".join(parts).replace("\0", "(?P<group>.+?)", 1).replace("\0", "(?P=group)"), name)
        if not found:
            raise UserError(
                f"the picture {name} doesn't fit data.group={self.group}",
                accepted="a pattern that fits the NAME of every picture, with {group} for its group and * for the rest",
            )
        return found["group"]

    def split(
        self, names: Sequence[str], given: Mapping[str, str], classes: Mapping[str, frozenset[int]] | None = None
    ) -> dict[str, list[str]]:
        """Return the names of train, val and test.

        Args:
            names: of all pictures that may be drawn.
            given: the split of pictures whose split is said; splits that are said for some picture are not drawn, but
                taken as they are, and what they don't have is drawn from the pictures of train and those without any.
            classes: of each name, the classes that occur: each split gets its share of the pictures with each class,
                as far as that is possible; None: the classes don't matter.
        """
        said = {split: [name for name, own in given.items() if own == split] for split in SPLITS}
        pool = [name for name in names if given.get(name, "train") == "train"]
        drawn = [split for split in SPLITS if not said[split] or split == "train"]
        if self.folds is not None:
            if self.group is None and classes is None:
                order = np.random.default_rng(self.seed).permutation(len(pool))
                parts = [[pool[i] for i in part] for part in np.array_split(order, self.folds)]
            else:
                parts = self._draw(pool, [1 / self.folds] * self.folds, classes)
            said["test"] = sorted(parts[self.fold])
            pool = [name for number, part in enumerate(parts) if number != self.fold for name in part]
            drawn = ["train", "val"]
        if drawn != ["train"]:
            shares = np.array([self.ratios[SPLITS.index(split)] for split in drawn])
            shares = shares if len(drawn) == len(SPLITS) else shares / shares.sum()
            said |= zip(drawn, map(sorted, self._draw(pool, shares.tolist(), classes)), strict=True)
        return said

    def _draw(
        self, names: Sequence[str], shares: Sequence[float], classes: Mapping[str, frozenset[int]] | None
    ) -> list[list[str]]:
        """Divide the names by shares, whole groups at a time."""
        order = np.random.default_rng(self.seed).permutation(len(names))
        if self.group is None and classes is None:
            bounds = [0, *np.cumsum([round(len(names) * share) for share in shares[:-1]]).tolist(), len(names)]
            return [[names[i] for i in order[a:b]] for a, b in pairwise(bounds)]
        units: dict[str, list[str]] = {}
        for position in order:
            name = names[position]
            units.setdefault(self.group_of(name) if self.group else name, []).append(name)
        return _balanced([*units.values()], shares, classes or {})


def _balanced(
    units: Sequence[list[str]], shares: Sequence[float], classes: Mapping[str, frozenset[int]]
) -> list[list[str]]:
    """Divide units of names by shares, so that each part has its share of the pictures and of those with each class.

    Iterative stratification (Sechidis et al. 2011): the rarest class first, each of its units to the part that lacks
    most of that class; then the largest of the units that are left, to the part that lacks most pictures.
    """
    labels = {name: classes.get(name, frozenset()) for unit in units for name in unit}
    totals: dict[int | None, int] = {None: len(labels)}
    for own in labels.values():
        for label in own:
            totals[label] = totals.get(label, 0) + 1
    wanted = {label: np.array(shares) * total for label, total in totals.items()}
    parts: list[list[str]] = [[] for _ in shares]
    rest = dict.fromkeys(range(len(units)))

    def put(number: int, label: int | None) -> None:
        lacking = np.array([*zip(wanted[label], wanted[None], strict=True)])
        empty = [part for part, names in enumerate(parts) if not names]
        open_to = empty if len(rest) <= len(empty) else range(len(shares))  # so that no part stays empty
        part = max(open_to, key=lambda part: tuple(lacking[part]))
        parts[part] += units[number]
        del rest[number]
        for name in units[number]:
            for own in (None, *labels[name]):
                wanted[own][part] -= 1

    for label in sorted((label for label in totals if label is not None), key=lambda label: (totals[label], label)):
        for number in [n for n in rest if any(label in labels[name] for name in units[n])]:
            put(number, label)
    for number in sorted(rest, key=lambda number: -len(units[number])):
        put(number, None)
    return parts
