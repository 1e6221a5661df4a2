"""The space of a search: options given as choices, ranges and intervals, in Hydra's own grammar of sweeps.

model.skip=concat,add                              a choice
data.batch_size=range(8,33,8)                      8, 16, 24, 32
optimizer.weight_decay=interval(0,0.1)             any number between
optimizer.lr=tag(log,interval(1e-5,1e-2))          on a logarithmic scale
data.batch_size=int(tag(log,interval(4,64)))       whole numbers
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

from unetseg.errors import UserError
from unetseg.options.compose import CONF, parse, values_of
from unetseg.options.settings import NO_DIFFERENCE, begins_with

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SPACES = "a,b,c | range(8,33,8) | interval(0,1) | tag(log,interval(1e-5,1e-2)) | int(interval(1,9))"
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-5,1e-2))'"
SAME_IN_ALL = (
    *NO_DIFFERENCE,
    *("seed", "experiment", "logger", "wandb.", "gradients.", "trainer.limit_val_batches"),
    *("data.root", "data.size", "data.fit", "data.crop", "data.scale", "data.validation", "data.folds", "data.fold"),
)
"""Options, or sections of them, that a search doesn't choose: one training each, and val/iou of the same pixels."""


def is_search(overrides: Sequence[str]) -> bool:
    """Return whether overrides ask for a search in place of a sweep."""
    return values_of([*overrides]).get("search", "null") not in ("null", "None")


def space_of(overrides: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution], dict[str, str]]:
    """Return what overrides say of a search.

    Returns:
        The overrides that hold for all trials; the options that are searched as Optuna's distributions, by their keys;
        and their texts, as they were given.

    Raises:
        UserError: there is no space, it can't be searched, or Optuna isn't installed.
    """
    if find_spec("optuna") is None:
        raise UserError("search=optuna: Optuna is not installed", advice="pip install 'unetseg[search]'")
    fixed, space, texts = [], {}, {}
    for override in parse([*overrides]):
        if override.is_sweep_override():
            key = override.get_key_element().lstrip("+")
            texts[key] = override.input_line.partition("=")[2]
            space[key] = _distribution(key, override)
        else:
            fixed.append(override.input_line)
    if not space:
        raise UserError("search=optuna has nothing to choose", accepted=SPACES, advice=EXAMPLE)
    return fixed, space, texts


def edges(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of runs at the edges of a space, to be checked before the first trial begins.

    The first has the first value of each option; each of the others has another value of one option: a choice, or the
    upper end of an interval.
    """
    fixed, space, _ = space_of(overrides)
    values = {key: _edge_values(distribution) for key, distribution in space.items()}
    first = {key: own[0] for key, own in values.items()}
    others = [first | {key: value} for key, own in values.items() for value in own[1:]]
    return [[*fixed, *assignments(point)] for point in [first, *others]]


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as overrides; a choice is a text as it was given.

    Examples:
        >>> assignments({"optimizer.lr": 1e-05, "model.skip": "[none,add,add,add]", "trainer.max_epochs": 3})
        ['optimizer.lr=1e-05', 'model.skip=[none,add,add,add]', '++trainer.max_epochs=3']
    """
    return [f"{'++' if key.startswith('trainer.') else ''}{key}={value}" for key, value in values.items()]


def combinations(space: Mapping[str, BaseDistribution]) -> float:
    """Return the number of different trials that a space has; inf with an interval of decimal numbers."""
    count = 1.0
    for distribution in space.values():
        choices = getattr(distribution, "choices", None)
        step = getattr(distribution, "step", None)
        if choices is not None:
            count *= len(choices)
        elif step is not None:
            count *= (distribution.high - distribution.low) // step + 1  # type: ignore[attr-defined]
        else:
            return float("inf")
    return count


def _edge_values(distribution: BaseDistribution) -> list[Any]:
    choices = getattr(distribution, "choices", None)
    return [distribution.low, distribution.high] if choices is None else [*choices]  # type: ignore[attr-defined]


def _distribution(key: str, override: Any) -> BaseDistribution:
    """Return the distribution of an override that is a sweep; raise a UserError where there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    is_group = "/" in key or (CONF / key).is_dir()
    if is_group or begins_with(key, SAME_IN_ALL):
        reason = "a group of options" if is_group else "not what a search chooses"
        raise UserError(
            f"{override.input_line}: {key} is {reason}",
            accepted="a space of what a training does; seed, data and what val/iou is measured on are the same in all",
            advice=f"one value: {key}={next(iter(_texts(override)), '...')}",
        )
    sweep = override.value()
    problem = ""
    tags: set[str] = getattr(sweep, "tags", set())
    if not isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep) or getattr(sweep, "shuffle", False):
        problem = "is no space"
    elif tags - {"log"} or (tags and not isinstance(sweep, IntervalSweep)):
        problem = f"has the tag {', '.join(sorted(tags))}, and log for an interval is the only one"
    elif isinstance(sweep, IntervalSweep) and not sweep.start < sweep.end:  # type: ignore[operator]
        problem = "begins where it ends, or above"
    elif isinstance(sweep, IntervalSweep) and tags and sweep.start <= 0:  # type: ignore[operator]
        problem = "has no logarithm at its lower end"
    elif isinstance(sweep, RangeSweep) and not _texts(override):
        problem = "holds no value"
    if problem:
        raise UserError(f"{override.input_line} {problem}", accepted=SPACES, advice=EXAMPLE)
    if isinstance(sweep, IntervalSweep):
        kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
        return kind(sweep.start, sweep.end, log=bool(tags))  # type: ignore[arg-type]
    values = _texts(override)
    if isinstance(sweep, RangeSweep) and all(re.fullmatch(r"-?\d+", value) for value in values):
        low, high = sorted((int(values[0]), int(values[-1])))
        return IntDistribution(low, high, step=abs(int(sweep.step)))  # type: ignore[arg-type]
    return CategoricalDistribution(values)


def _texts(override: Any) -> list[str]:
    """Return the values of a choice or a range as they are written; none of an interval."""
    return [*override.sweep_string_iterator()] if override.is_choice_sweep() or override.is_range_sweep() else []
