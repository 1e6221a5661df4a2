"""FOLDER/data.yaml: how a data set lies in its folder and what its masks mean, as options.

It is data, whoever wrote it: plain values under a few known names. What the command line gives holds in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetseg.errors import UserError
from unetseg.huggingface import Source
from unetseg.names import IGNORED
from unetseg.options import plain_yaml

NAME = "data.yaml"
KEYS = (
    *("images", "bands", "masks", "classes", "values", "threshold", "instances", "ignore_index", "group"),
    *("channels", "range", "mean", "std", "shown"),
)
"""The options that describe a data set wherever it lies."""
LAYOUT = ("images", "masks", "values", "threshold", "instances", "group")
"""Those that hold for one folder alone; the others are also what a checkpoint knows of its data."""
EXCLUSIVE = {
    "values": ("threshold", "ignore_index", "classes"),
    "threshold": ("values", "ignore_index"),
    "ignore_index": ("values", "threshold"),
}
"""Which of them say the same thing in another way."""
DEFAULT_CLASSES = ["background", "foreground"]


def complete(data: dict[str, Any], given: set[str] | None = None) -> dict[str, Any]:
    """Return the data section of options, completed by the data.yaml in its root.

    Args:
        data: the section; of other data sets than `folder` and `hf`, which may name its classes, it is returned as it
            is.
        given: the keys that the user has given beside a new root; the others are replaced by the file, also where they
            have a value. None: what is null is filled.

    Raises:
        UserError: the file can't be read or holds other keys, classes are stated twice, or a data set of the hub whose
            classes aren't given can't be opened.
    """
    if data.get("name") == "hf" and isinstance(data.get("root"), str):
        named = {"classes", "values"} & (given if given is not None else {key for key in KEYS if data.get(key)})
        return _with_class_names(data if named else data | {"classes": Source.of(data).class_names(), "values": None})
    if data.get("name") != "folder" or not isinstance(data.get("root"), str):
        return data
    file = Path(data["root"]) / NAME
    stated = read(file) if file.is_file() else {}
    if given is None:
        given = {key for key in KEYS if data.get(key) is not None}
    elif stated:  # the options are those of another folder
        data = data | dict.fromkeys({*LAYOUT} - given)
    beaten = given.union(*(EXCLUSIVE.get(key, ()) for key in given))
    taken = {key: value for key, value in stated.items() if key not in beaten}
    for key in taken:
        data = data | dict.fromkeys({*EXCLUSIVE.get(key, ())} - given)
    return _with_class_names(data | taken)


def _with_class_names(data: dict[str, Any]) -> dict[str, Any]:
    """Return the section with the names of its classes: those of `values`, its own, or the defaults."""
    values = data.get("values")
    names = [name for name in values if name != IGNORED] if isinstance(values, dict) else None
    classes = data.get("classes")
    if names and classes and names != classes:
        raise UserError(
            f"data.classes names {', '.join(map(str, classes))}, data.values {', '.join(map(str, names))}",
            accepted="data.values alone, which names the classes in their order",
        )
    return data | {"classes": names or classes or DEFAULT_CLASSES}


def read(file: Path) -> dict[str, Any]:
    """Return the content of a data.yaml; a UserError where it is no mapping of KEYS."""
    content = plain_yaml.read(file, accepted=f"a mapping of {', '.join(KEYS)}")
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        raise UserError(
            f"{file} has {', '.join(unknown)}",
            accepted=", ".join(KEYS),
            advice="options beside them are given to the command",
        )
    return content
