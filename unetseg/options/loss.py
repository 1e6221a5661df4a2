"""The options of the loss: names, tables of names and weights, and what weighs classes and boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unetseg.names import BINARY_LOSSES, LOSSES, OWN_CLASS, PIXEL_LOSSES, is_own, nearest_first
from unetseg.options.messages import format_value, one_of, own_class, rejected

TABLE = "'loss={dice:1,focal:0.5}'"
"""An example of a table, as a shell takes it."""
ABOVE_0 = ("weight", "alpha", "beta")
"""What must be above 0: the others may be 0."""


def checked_loss(value: object) -> str | dict[str, float | dict[str, float]]:
    """Return a loss's name, or the table of a sum in the order of LOSSES; a single one of weight 1 is its name.

    A class of the user's own is a name as well.

    Raises:
        PydanticCustomError: a name, a weight or a parameter is not accepted.
    """
    if own := own_class(value):
        return own
    if isinstance(value, str) and ":" in value:  # without quotes a shell makes several options of {a:1,b:2}
        raise rejected("the name of a loss, or a table of names and weights in quotes", TABLE)
    if not isinstance(value, dict):
        return one_of(value, [*LOSSES], f"; {OWN_CLASS}; or a table of names and weights: {TABLE}")
    if not value:
        raise rejected(f"a table of at least one of {', '.join(LOSSES)}", TABLE)
    for name in value:
        # {my_module:MyLoss:1} has a colon more: Hydra reads a name and a text.
        if is_own(name) or (name not in LOSSES and isinstance(value[name], str)):
            raise rejected(
                f"a table of {', '.join(LOSSES)}; {OWN_CLASS} stands alone, and may add others itself",
                "loss=my_module:MyLoss",
                f"loss={{{name}:{value[name]}}} is not accepted",
            )
        if name not in LOSSES:
            nearest = nearest_first(str(name), [*LOSSES])
            raise rejected(", ".join(nearest), f"'loss={{{nearest[0]}:1}}'", f"loss={name} is not a loss")
    table = {name: _checked_term(name, value[name]) for name in LOSSES if name in value}
    alone = next(iter(table))
    return alone if table == {alone: 1.0} else table


def _checked_term(name: str, entry: object) -> float | dict[str, float]:
    """Return the weight of a loss in a table, or its weight and parameters."""
    accepted = ("weight", *LOSSES[name])
    if not isinstance(entry, dict):
        return _checked_number(name, "weight", entry)
    for key in entry:
        if key not in accepted:
            nearest = nearest_first(str(key), accepted)
            advice = f"'loss={{{name}:{{{nearest[0]}:1}}}}'"
            raise rejected(", ".join(nearest), advice, f"{name} has no parameter {key}")
    numbers = {key: _checked_number(name, key, entry.get(key, 1)) for key in accepted if key in (*entry, "weight")}
    return numbers if len(numbers) > 1 else numbers["weight"]


def _checked_number(name: str, key: str, value: object) -> float:
    given = f"loss={{{name}:{{{key}:{format_value(value)}}}}} is not accepted"
    below_1 = key == "smoothing"
    words = "a number above 0" if key in ABOVE_0 else f"a number from 0{' and below 1' if below_1 else ''}"
    number = _number(value)
    if number is None or (number == 0 and key in ABOVE_0) or (below_1 and number >= 1):
        raise rejected(f"{words} for {key}", f"'loss={{{name}:{{{key}:0.5}}}}'", given)
    return number


def checked_class_weights(value: object) -> str | list[float] | None:
    """Return `balanced`, None, or numbers from 0, of which one is above 0."""
    if value is None or value == "balanced":
        return None if value is None else "balanced"
    numbers = [_number(entry) for entry in value] if isinstance(value, list | tuple) else []
    weights = [number for number in numbers if number is not None]
    if len(weights) < len(numbers) or not any(weights):
        raise rejected("null, balanced, or a number from 0 for each class, not all of them 0", "balanced")
    return weights


def checked_boundary_weight(value: object) -> float | None:
    """Return None or a number above 0."""
    if value is not None and not _number(value):
        raise rejected("null, or a number above 0", "10")
    return _number(value)


def check_loss_for_classes(
    loss: str | dict[str, float | dict[str, float]],
    classes: Sequence[str],
    class_weights: str | list[float] | None,
    boundary_weight: float | None,
) -> None:
    """Raise a PydanticCustomError where the options of the loss don't fit the classes or each other."""
    names, several = [loss] if isinstance(loss, str) else [*loss], len(classes) > 2
    binary = next((name for name in names if name in BINARY_LOSSES), None)
    if binary and several:
        advice = "loss=dice" if isinstance(loss, str) else "'loss={dice:1,cross_entropy:1}'"
        raise rejected(f"loss={binary} with two classes; dice or cross_entropy with {len(classes)}", advice)
    by_pixel = [name for name in names if name in PIXEL_LOSSES]
    if isinstance(class_weights, list) and len(class_weights) != len(classes):
        raise rejected(
            f"a weight for each of {', '.join(classes)}",
            f"class_weights={format_value([1] * len(classes))}",
            f"class_weights={format_value(class_weights)} for {len(classes)} classes",
        )
    unweighted = names == ["lovasz"] or is_own(names[0])
    if class_weights is not None and not by_pixel and (not several or unweighted):
        weighted = [name for name in LOSSES if (name != "lovasz" if several else name in PIXEL_LOSSES)]
        raise rejected(
            f"with {len(classes)} classes a loss that weighs them: {', '.join(weighted)}",
            "class_weights=null, or loss=cross_entropy",
            f"class_weights={format_value(class_weights)} does nothing to loss={format_value(loss)}",
        )
    if boundary_weight is not None and not by_pixel:
        raise rejected(
            f"a loss of pixels, or a table with one: {', '.join(PIXEL_LOSSES)}",
            "boundary_weight=null, or loss=cross_entropy",
            f"boundary_weight={format_value(boundary_weight)} does nothing to loss={format_value(loss)}",
        )


def _number(value: object) -> float | None:
    """Return a finite number from 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
