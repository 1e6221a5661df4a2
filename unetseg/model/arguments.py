"""What a file may say of the network in it, checked before anything is built: names that are known, bounded numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from unetseg.names import ENCODERS, FLOWS, LEVELS, SKIPS

Rule = tuple[str, Callable[[Any], bool]]


def among(names: Sequence[str]) -> Rule:
    """Return the rule of one name."""
    return ", ".join(names), lambda value: isinstance(value, str) and value in names


def per_level(names: Sequence[str]) -> Rule:
    """Return the rule of one name, or of one a level."""
    accepted, is_name = among(names)

    def fits(value: Any) -> bool:
        return is_name(value) or (isinstance(value, list) and len(value) == LEVELS and all(map(is_name, value)))

    return f"{accepted}, or a list of {LEVELS} of them", fits


def whole(low: int, high: int) -> Rule:
    """Return the rule of a whole number."""
    return f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high


def widths(count: int) -> Rule:
    """Return the rule of a decoder's widths."""
    fits = whole(1, 4096)[1]
    return f"{count} widths", lambda v: isinstance(v, list | tuple) and len(v) == count and all(map(fits, v))


SWITCH: Rule = ("true, false", lambda value: isinstance(value, bool))
NET: dict[str, Rule] = {
    "encoder": among(ENCODERS),
    "skip": per_level(SKIPS),
    "skip_flow": per_level(FLOWS),
    "match_parameters": SWITCH,
    "short_skips": SWITCH,
    "normalisation": among(("batch", "none")),
    "initialisation": among(("he", "glorot")),
    "classes": whole(1, 254),
    "decoder_channels": widths(LEVELS + 1),
    "in_channels": whole(1, 256),
    "weights": ("null", lambda value: value is None),
}
"""Of SkipUnet's arguments, as a folder of the Hub records them."""
SEGMENTER: dict[str, Rule] = {
    **{name: rule for name, rule in NET.items() if name not in ("in_channels", "weights")},
    "classes": whole(2, 254),
    "channels_last": SWITCH,
}
"""Of Segmenter's arguments, as a checkpoint records them."""


def check(given: Any, rules: Mapping[str, Rule], needed: Collection[str] = ("encoder", "skip", "classes")) -> None:
    """Raise a ValueError that names what is absent, unknown or not accepted."""
    if not isinstance(given, dict):
        raise ValueError("it doesn't say what network it holds")
    if absent := [name for name in needed if name not in given]:
        raise ValueError(f"it doesn't say which {absent[0]} its network has")
    for name, value in given.items():
        if name not in rules:
            raise ValueError(f"{str(name)[:80]!r} is nothing that a network has: {', '.join(rules)}")
        accepted, fits = rules[name]
        if not fits(value):
            raise ValueError(f"{name}={str(value)[:80]!r} is not accepted, but {accepted}")
