"""What an option may be: errors that list the accepted values, the nearest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pydantic_core import PydanticCustomError

from unetseg import classes
from unetseg.names import ENCODERS, LEVELS, OWN_CLASS, TIMM, alike, is_encoder, is_own, nearest_first

KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a decimal number",
    "str": "a text",
    "list": "a list",
    "dict": "a section of options",
    "NoneType": "null",
}
"""What values are called, by the names of their types."""

OWN_TABLE = "{class: package.module:Class, ARGUMENT: VALUE}"
NEAREST = 9
"""Names that are shown of a long list."""


def rejected(accepted: str, advice: str = "", problem: str = "") -> PydanticCustomError:
    """Return the error that a validator raises.

    Args:
        accepted: what would be accepted.
        advice: what to try.
        problem: what is wrong; empty: the value.
    """
    return PydanticCustomError("rejected", "{accepted}", {"accepted": accepted, "advice": advice, "problem": problem})


def one_of(value: object, names: Sequence[str], more: str = "") -> str:
    """Return `value` if it is among `names`; otherwise raise, with the nearest names first."""
    if isinstance(value, str) and value in names:
        return value
    ordered = nearest_first(str(value), names)
    raise rejected(f"{', '.join(ordered)}{more}", ordered[0])


def own_class(value: object) -> str | None:
    """Return the text of a class of the user's own, by text or table; None for what is neither.

    Raises:
        PydanticCustomError: it has arguments that are no plain values.
    """
    if not is_own(value) and not (isinstance(value, Mapping) and "class" in value):
        return None
    try:
        return classes.written(value)
    except ValueError as error:
        raise rejected(f"{OWN_CLASS}, with arguments {OWN_TABLE}", OWN_TABLE, str(error)) from None


def one_of_own(value: object, accepted: str, advice: str = "my_module:MyClass") -> str:
    """Return the text of a class of the user's own; otherwise raise."""
    own = own_class(value)
    if own is None:
        raise rejected(accepted, advice)
    return own


def an_encoder(value: object) -> str:
    """Return `value` if it may be an encoder's name; otherwise raise, with the nearest names of smp."""
    if is_encoder(value):
        return str(value)
    ordered = nearest_first(str(value), ENCODERS)
    accepted = (
        f"{', '.join(ordered[:NEAREST])}, ..., {len(ENCODERS)} names of segmentation-models-pytorch in all, or "
        f"{TIMM}NAME of a model of timm: letters, digits, '_', '.' and '-'"
    )
    raise rejected(accepted, f"{TIMM}convnext_tiny" if str(value).startswith(TIMM) else ordered[0])


def one_or_per_level(
    value: object, names: Sequence[str], key: str, of_levels: Sequence[str] | None = None, own: bool = False
) -> str | list[str]:
    """Return a name or a list of LEVELS names, finest level first; a list may have fewer kinds than one name.

    A list of equal names is the one name.

    With `own` a class of the user's own is a name as well.
    """
    of_levels = of_levels or names

    def name_of(entry: object, among: Sequence[str]) -> str:
        return (own_class(entry) if own else None) or one_of(entry, among, more)

    example = [of_levels[-1], *[of_levels[0]] * (LEVELS - 1)]
    more = f"; or one per level, {LEVELS} in all, finest first: {key}=[{','.join(example)}]"
    more = f"; {OWN_CLASS}{more}" if own else more
    if not isinstance(value, list | tuple):
        return name_of(value, names)
    if len(value) != LEVELS:
        raise rejected(f"{', '.join(names)}{more}", f"[{','.join(example)}]")
    if all(entry == value[0] for entry in value):
        return name_of(value[0], names)
    return alike([name_of(entry, of_levels) for entry in value])  # type: ignore[no-any-return]


def dose_per_level(value: object, key: str) -> float | list[float]:
    """Return a finite number >= 0 or a list of LEVELS different ones, finest level first."""
    more = f"or one per level, {LEVELS} in all, finest first: {key}=[{','.join(['0', *['1'] * (LEVELS - 1)])}]"
    return _numbers_per_level(value, lambda number: number >= 0, f"a number of 0 or more; {more}")


def scale_per_level(value: object, names: Sequence[str], key: str) -> str | float | list[float]:
    """Return a name, a finite number above 0 or a list of LEVELS such numbers, finest level first."""
    more = f"a number above 0, or one per level, {LEVELS} in all, finest first: {key}=[{'0.5' + ',1' * (LEVELS - 1)}]"
    if isinstance(value, str):
        return one_of(value, names, f", {more}")
    accepted = f"{', '.join(names)}, {more}; a skip without features is none or placebo"
    return _numbers_per_level(value, lambda number: number > 0, accepted)


def _numbers_per_level(value: object, fits: Callable[[float], bool], accepted: str) -> float | list[float]:
    entries = value if isinstance(value, list | tuple) else [value] * LEVELS
    numbers = [float(entry) for entry in entries if isinstance(entry, int | float) and not isinstance(entry, bool)]
    if not len(entries) == len(numbers) == LEVELS or not all(math.isfinite(n) and fits(n) for n in numbers):
        raise rejected(accepted, "0.5")
    return alike(numbers)  # type: ignore[no-any-return]


def format_value(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_value(entry)}' for key, entry in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)
