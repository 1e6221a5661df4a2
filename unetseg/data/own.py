"""A data set of the user's own: the Collection that a function of his returns, and all that is asked of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unetseg import classes
from unetseg.data.dataset import Collection, Example
from unetseg.data.masks import INVALID, MaskValues
from unetseg.data.splits import SPLITS
from unetseg.errors import UserError
from unetseg.names import IGNORE

OPTION = "data.source"
"""What names the function."""
FIELDS = {
    "classes": (list, tuple),
    "values": (MaskValues,),
    "splits": (Mapping,),
    "missing": (Mapping,),
    "notes": (list, tuple),
}
"""What each field of the Collection may be."""


def find(source: str, names: Sequence[str], needed: Sequence[str]) -> Collection:
    """Return the Collection that a function of the user's own returns, with the splits that are needed.

    It is called twice, as an evaluation will ask it again: other splits would mix what was trained on with the test.

    Args:
        source: the function, or a class, which is called with its arguments alone.
        names: of the classes, by the options.
        needed: splits; `all` is those of the Collection together where it has none of that name.

    Raises:
        UserError: it returns something else, other classes, a wrong table of values, an example twice, or other
            examples the second time; or it lacks a split.
    """
    setting = f"{OPTION}={source}"
    found, again = (checked(classes.build(source, OPTION), names, setting) for _ in range(2))
    if other := [split for split in found.splits if found.splits[split] != again.splits.get(split)]:
        raise UserError(
            f"{setting} gives other examples of {', '.join(other)} when it is called again",
            accepted="the same examples in the same order, as an evaluation calls it, too",
            advice="sorted(...) files, and random.Random(0).shuffle(...) where an order is drawn",
        )
    splits = {"all": tuple(itertools.chain(*found.splits.values())), **found.splits}
    if absent := [split for split in needed if not splits.get(split)]:
        raise UserError(
            f"{setting} has no examples of {', '.join(absent)}",
            accepted=f"splits with examples: {', '.join(needed)}; it has {', '.join(found.splits) or 'none'}",
        )
    return replace(found, splits={split: splits[split] for split in needed})


def checked(found: Any, names: Sequence[str], setting: str) -> Collection:
    """Return what a function returned as a Collection of tuples of examples with paths.

    Args:
        found: what it returned.
        names: of the classes, by the options.
        setting: the option with its value, for messages.

    Raises:
        UserError: it isn't one, or not of these classes; a field, an example or the table is of another kind; or
            an example is there twice.
    """
    if not isinstance(found, Collection):
        raise UserError(
            f"{setting} returns {type(found).__name__}",
            accepted="a unetseg.data.dataset.Collection: classes, values of the masks, and examples by split",
        )
    for field, kinds in FIELDS.items():
        value = getattr(found, field)
        if not isinstance(value, kinds):
            raise UserError(
                f"{setting}: {field} of its Collection is {type(value).__name__}",
                accepted=" or ".join(kind.__name__ for kind in kinds),
                advice='Collection(("background", "vessel"), stated_values({...}), {"train": [...], ...})',
            )
    if [*found.classes] != [*names]:
        own = [str(name) for name in found.classes]
        raise UserError(
            f"{setting} has the classes {', '.join(own)}, data.classes {', '.join(names)}",
            accepted="the same names in the same order",
            advice=f"data.classes=[{','.join(own)}]",
        )
    _check_table(found.values.table, names, setting)
    splits = {split: _examples(entries, f"{setting}: {split}") for split, entries in found.splits.items()}
    _check_once(splits, setting)
    return Collection(tuple(names), found.values, splits, found.missing, tuple(found.notes))


def _check_table(table: Any, names: Sequence[str], setting: str) -> None:
    """Raise a UserError where the table of MaskValues isn't 256 uint8, or has a class that isn't named."""
    if not isinstance(table, np.ndarray):
        wrong = f"is {type(table).__name__}"
    elif table.dtype != np.uint8 or table.shape != (256,):
        wrong = f"is {table.dtype} of shape {table.shape}"
    elif len(beyond := np.flatnonzero((table >= len(names)) & (table < INVALID))):
        wrong = f"maps the value {beyond[0]} to class {table[beyond[0]]}, of {len(names)} classes"
    else:
        return
    raise UserError(
        f"{setting}: the table of its MaskValues {wrong}",
        accepted=f"256 uint8, for each value of a mask: its class, 0 to {len(names) - 1}; {IGNORE} where it doesn't "
        f"count; {INVALID} where it must not occur",
        advice=f"unetseg.data.masks.stated_values({dict(zip(names, range(len(names)), strict=True))}) makes it",
    )


def _examples(entries: Any, place: str) -> tuple[Example, ...]:
    """Return the examples of a split, with paths where they are given as text; a UserError where one isn't right."""
    if not isinstance(entries, Iterable):
        raise UserError(f"{place} is {type(entries).__name__}", accepted="a list of unetseg.data.dataset.Example")
    try:
        listed = [*entries]
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # of a generator: whatever the user's code raises
        raise UserError(
            f"{place} can't be read: {classes.described(error)}", accepted="a list of unetseg.data.dataset.Example"
        ) from error
    examples = []
    for entry in listed:
        right = isinstance(entry, Example) and isinstance(entry.name, str) and isinstance(entry.group, str)
        if not right or not all(isinstance(path, str | Path) for path in (entry.image, entry.mask)):
            raise UserError(
                f"{place} holds {entry!r:.200}",
                accepted='Example(name, image, mask, group): texts, two of them paths; "" where there are no groups',
            )
        examples.append(Example(entry.name, Path(entry.image), Path(entry.mask), entry.group))
    return tuple(examples)


def _check_once(splits: Mapping[str, Sequence[Example]], setting: str) -> None:
    """Raise a UserError where train, val and test have a name twice, or share a picture."""
    split_of: dict[str | Path, str] = {}
    for split in SPLITS:
        for example in splits.get(split, ()):
            shared = ""
            if example.name in split_of:
                shared = f"two examples named {example.name}, in {split_of[example.name]}"
            elif split_of.setdefault(example.image, split) != split:
                shared = f"the picture {example.image} in {split_of[example.image]}"
            if shared:
                accepted = "each name once, and each picture in one split"
                raise UserError(f"{setting} has {shared} and in {split}", accepted=accepted)
            split_of[example.name] = split
