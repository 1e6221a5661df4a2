"""Checks of the arguments of a network that a file records, before anything is built: known names, bounded numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unetseg import classes
from unetseg.names import (
    FLOWS,
    FUSED,
    INITIALISATIONS,
    LARGEST_SIZE,
    LEVELS,
    LOSSES,
    MOST_CHANNELS,
    OWN_CLASS,
    PRECISIONS,
    SCALES,
    SHORT_SKIPS,
    SKIPS,
    TIMM,
    is_encoder,
    is_own,
)

Rule = tuple[str, Callable[[Any], bool]]
"""The accepted values in words, and whether a value is one of them."""


def name_rule(names: Sequence[str]) -> Rule:
    """Return the rule of one name."""
    return ", ".join(names), lambda value: isinstance(value, str) and value in names


def name_per_level_rule(names: Sequence[str]) -> Rule:
    """Return the rule of one name, or of one a level."""
    accepted, is_name = name_rule(names)

    def fits(value: Any) -> bool:
        return is_name(value) or (isinstance(value, list) and len(value) == LEVELS and all(map(is_name, value)))

    return f"{accepted}, or a list of {LEVELS} of them", fits


def is_own_class(value: Any) -> bool:
    """Return whether a value names a class of somebody's own, with arguments that are plain values."""
    try:
        return is_own(value) and bool(classes.read(value))
    except ValueError:
        return False


def _are_skips(value: Any) -> bool:
    if not isinstance(value, list):
        return isinstance(value, str) and (value in SKIPS or is_own_class(value))
    return len(value) == LEVELS and all(isinstance(v, str) and (v in FUSED or is_own_class(v)) for v in value)


def own_classes(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of each class of somebody's own among the arguments of a network, by the class."""
    skips, decoder = values.get("skip"), values.get("decoder")
    own = {str(name): "model.skip" for name in filter(is_own, skips if isinstance(skips, list) else [skips])}
    return own | ({decoder: "model.decoder"} if isinstance(decoder, str) else {})


def _is_dose(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _are_doses(value: Any) -> bool:
    return _is_dose(value) or (isinstance(value, list) and len(value) == LEVELS and all(map(_is_dose, value)))


def _are_scales(value: Any) -> bool:
    if isinstance(value, str):
        return value in SCALES
    return _are_doses(value) and all(value) if isinstance(value, list) else _is_dose(value) and value > 0


def _is_loss(value: Any) -> bool:
    if not isinstance(value, dict):
        return isinstance(value, str) and (value in LOSSES or is_own_class(value))
    tables = [(name, entry if isinstance(entry, dict) else {"weight": entry}) for name, entry in value.items()]
    return bool(tables) and all(
        name in LOSSES and table.keys() <= {"weight", *LOSSES[name]} and all(map(_is_dose, table.values()))
        for name, table in tables
    )


def class_weights_rule(classes: int) -> Rule:
    """Return the rule of the weights of so many classes."""

    def fits(value: Any) -> bool:
        return value is None or (isinstance(value, list) and len(value) == classes and all(map(_is_dose, value)))

    return f"null, or {classes} numbers from 0", fits


def whole_number_rule(low: int, high: int) -> Rule:
    """Return the rule of a whole number."""
    return f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high


def widths_rule(count: int) -> Rule:
    """Return the rule of a decoder's widths."""
    fits = whole_number_rule(1, 4096)[1]
    return f"{count} widths", lambda v: isinstance(v, list | tuple) and len(v) == count and all(map(fits, v))


def _are_numbers(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    return numbers and all(abs(v) <= sys.float_info.max for v in value)


def _is_range(value: Any) -> bool:
    return value is None or (_are_numbers(value) and len(value) == 2 and value[0] < value[1])


def _are_places(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) in (1, 3) and all(type(v) is int and 0 <= v < 256 for v in value)
    )


def _are_names(value: Any) -> bool:
    texts = isinstance(value, list) and all(type(v) is str and 0 < len(v) < 256 for v in value)
    return value is None or (texts and 0 < len({*value}) == len(value) <= MOST_CHANNELS)


def _is_precision(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(re.fullmatch(r"(16|bf16|32|64)-(true|mixed)", value)))


def _is_crop(value: Any) -> bool:
    return value is None or (type(value) is int and 32 <= value <= LARGEST_SIZE and value % 32 == 0)


SWITCH: Rule = ("true, false", lambda value: isinstance(value, bool))
DOSES: Rule = (f"a number from 0, or a list of {LEVELS} of them", _are_doses)
SCALES_RULE: Rule = (f"{', '.join(SCALES)}, a number above 0, or a list of {LEVELS} numbers", _are_scales)
LOSS: Rule = (f"{', '.join(LOSSES)}, {OWN_CLASS}, or a table of them and their weights", _is_loss)
BOUNDARY_WEIGHT: Rule = ("null, or a number from 0", lambda value: value is None or _is_dose(value))
RANGE: Rule = ("null, or [low, high]", _is_range)
NUMBERS: Rule = ("null, or a list of numbers", lambda value: value is None or _are_numbers(value))
_is_channels = whole_number_rule(1, MOST_CHANNELS)[1]
SCALE: Rule = ("a number from 0.001 to 16", lambda value: type(value) in (int, float) and 1e-3 <= value <= 16)
VIEW: dict[str, Rule] = {
    "size": whole_number_rule(1, LARGEST_SIZE),
    "range": RANGE,
    "fit": name_rule(("squash", "pad")),
    "crop": ("null, or a multiple of 32", _is_crop),
    "scale": SCALE,
    "channels": (f"null, or a whole number up to {MOST_CHANNELS}", lambda v: v is None or _is_channels(v)),
    "mean": NUMBERS,
    "std": NUMBERS,
    "shown": ("null, or one or three numbers of channels", _are_places),
    "bands": ("null, or different names of channels", _are_names),
}
"""Rules of what a checkpoint or an exported file says of how its model sees pictures, see `unetseg.data.view.View`."""
PRECISION: Rule = (f"null, {', '.join(PRECISIONS)}", _is_precision)
"""Of the number format of a checkpoint's training; Lightning's other ones are scored in the device's best."""
NET: dict[str, Rule] = {
    "encoder": (f"an encoder of smp, or {TIMM}NAME of a model of timm", is_encoder),
    "skip": (f"{', '.join(SKIPS)}, {OWN_CLASS}, or a list of {LEVELS} of them", _are_skips),
    "decoder": (f"null, or {OWN_CLASS}", lambda value: value is None or is_own_class(value)),
    "skip_flow": name_per_level_rule(FLOWS),
    "skip_gradient": DOSES,
    "skip_scale": SCALES_RULE,
    "stem_skip": SWITCH,
    "match_parameters": SWITCH,
    "short_skips": ("true, false, add, concat", lambda value: value in (True, False, *SHORT_SKIPS)),
    "normalisation": name_rule(("batch", "none")),
    "initialisation": name_rule(INITIALISATIONS),
    "classes": whole_number_rule(1, 254),
    "decoder_channels": widths_rule(LEVELS + 1),
    "in_channels": whole_number_rule(1, 256),
    "weights": ("null", lambda value: value is None),
}
"""Rules of SkipUnet's arguments, as a folder of the Hub records them."""
SEGMENTER: dict[str, Rule] = {
    **{name: rule for name, rule in NET.items() if name != "weights"},
    "classes": whole_number_rule(2, 254),
    "channels_last": SWITCH,
}
"""Rules of Segmenter's arguments, as a checkpoint records them."""
NEEDED = ("encoder", "skip", "classes")


def check(values: Any, rules: Mapping[str, Rule]) -> None:
    """Raise a ValueError that names an argument which is absent, unknown or not accepted."""
    if not isinstance(values, dict):
        raise ValueError("it doesn't say what network it holds")
    if absent := [name for name in NEEDED if name not in values]:
        raise ValueError(f"it doesn't say which {absent[0]} its network has")
    for name, value in values.items():
        if name not in rules:
            raise ValueError(f"{str(name)[:80]!r} is nothing that a network has: {', '.join(rules)}")
        check_value(name, value, rules[name])


def check_view(values: Mapping[str, Any]) -> None:
    """Raise a ValueError where what is stated of a view is not accepted; nothing but the size must be stated."""
    for name, rule in VIEW.items():
        if name in values or name == "size":
            check_value(name, values.get(name), rule)
    count = values.get("channels") or 3
    mean, std = values.get("mean"), values.get("std")
    if (mean is None) != (std is None) or (mean is None and count != 3):
        raise ValueError(f"it has {count} channels and doesn't say their mean and standard deviation")
    if mean is not None and std is not None:
        fits = len(mean) == len(std) == count and all(1e-30 < value < 1e30 for value in std)
        if not fits or max(map(abs, mean)) > 1e30:
            raise ValueError(f"mean={str(mean)[:80]} and std={str(std)[:80]} are not accepted for {count} channels")
    if max(values.get("shown") or [0]) >= count:
        raise ValueError(f"shown={values['shown']} is not accepted for {count} channels")
    crop, scale, fit = values.get("crop"), values.get("scale") or 1, values.get("fit")
    if (crop is None and scale != 1) or (crop is not None and fit == "pad"):
        raise ValueError(f"crop={crop} with scale={scale} and fit={fit} is not accepted")
    if count != 3 and values.get("range") is not None:
        raise ValueError(f"range={values['range']} is not accepted for {count} channels")


def check_value(name: str, value: Any, rule: Rule) -> None:
    """Raise a ValueError where a value breaks its rule."""
    accepted, fits = rule
    if not fits(value):
        raise ValueError(f"{name}={str(value)[:80]!r} is not accepted, but {accepted}")
