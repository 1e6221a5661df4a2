"""YAML files that a stranger may have written: plain values within bounds, never objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from unetseg.errors import UserError, first_line
from unetseg.files import no_link

LARGEST = 2**20
"""Bytes of a file; a config.yaml has some two thousand."""
DEEPEST = 13
MOST = 10_000
"""Levels and values of a file; a config.yaml has three, and some hundred, with augmentations in one another 13."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path, accepted: str = "the config.yaml of a run folder") -> dict[str, Any]:
    """Return the plain values of a YAML file.

    Raises:
        UserError: it can't be read, is no mapping, larger, deeper or fuller than options are, or holds anchors, tags,
            dates, NUL or numbers beyond 64 bits.
    """
    try:
        with open(path, "rb", opener=no_link) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        text = content.decode("utf-8")
        _check_events(text)
        _check_keys(yaml.compose(text, Loader=LOADER))
        values = yaml.load(text, Loader=LOADER)
        _check_plain(values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} can't be read: {first_line(error)}", accepted=accepted) from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no options", accepted=accepted)
    return values


def _check_events(text: str) -> None:
    """Raise a ValueError at the first sign of more than a few plain values, before an object is built from the text."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("it has anchors or aliases")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has tags ({event.tag[:80]})")
        if depth > DEEPEST or count > MOST:
            raise ValueError(f"it is deeper than {DEEPEST} levels, or has more than {MOST} values")


def _check_keys(node: Any) -> None:
    """Raise a ValueError where a mapping has a key twice, of which YAML would take the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"it has the key {twice!r} twice")
    for child in getattr(node, "value", ()) if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _check_keys(part)


def _check_plain(value: Any) -> None:
    """Raise a ValueError where a value, or one within, is no text, number, truth value, null, list or mapping."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        for key, entry in value.items():
            _check_plain(key)
            _check_plain(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_plain(entry)
    elif isinstance(value, str):
        value.encode("utf-8")  # which no half of a surrogate pair can be
        if "\0" in value:
            raise ValueError("a text holds NUL")
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            raise ValueError("a number is beyond 64 bits")
    elif value is not None and not isinstance(value, float):
        raise ValueError(f"{value!r} is a {type(value).__name__}; in quotes it is text")
