"""Options that do nothing beside others: whoever gives one takes it for working, so it is refused.

Only what is given on the command line or in a call is looked at. Defaults, an experiment's values and those of a
recorded run may lie idle. Where a default is neutral, as model.skip_gradient=1 is, the schema itself refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unetseg.errors import UserError
from unetseg.options.messages import format_value
from unetseg.options.settings import flat


@dataclass(frozen=True)
class Need:
    """What an option needs of another one to do anything."""

    option: str
    other: str
    is_met: Callable[[Any], bool]
    accepted: str
    """Values of the other one, in words."""


NEEDS = (
    Need("optimizer.patience", "optimizer.schedule", lambda value: value == "plateau", "plateau"),
    Need("model.strict_weights", "model.weights", lambda value: value not in (None, "imagenet"), "a file or a run"),
    Need("data.border", "data.target", lambda value: value == "pet", "pet"),
    Need("data.foreground", "data.crop", lambda value: value is not None, "the side of crops, such as 128"),
    Need("data.crops", "data.crop", lambda value: value is not None, "the side of crops, such as 128"),
    Need("gradients.routes_every_n_steps", "gradients.routes", lambda value: value == "exits", "exits"),
    *(
        Need(f"wandb.{name}", "logger", lambda value: value == "wandb", "wandb")
        for name in ("mode", "entity", "log_model")
    ),
    Need("wandb.project", "logger", lambda value: value in ("wandb", "mlflow"), "wandb or mlflow"),
    Need(
        "wandb.images", "logger", lambda value: value in ("wandb", "tensorboard", "mlflow"), "one that takes pictures"
    ),
    Need("gradients.routes_every_n_steps", "gradients.every_n_steps", lambda value: value > 0, "1 or more"),
)


def check(runs: Sequence[tuple[dict[str, Any], Iterable[str]]]) -> None:
    """Raise a UserError where an option that is given does nothing beside the others; null asks for nothing.

    In a sweep an option may lie idle in some of the runs: `optimizer.schedule=cosine,plateau optimizer.patience=3`.

    Args:
        runs: of each run the plain values of all options, validated, and the dotted keys of those that the user gave.

    Examples:
        >>> check([({"optimizer": {"schedule": "plateau", "patience": 3}}, ["optimizer.patience"])])
    """
    flattened = [(flat(options), {*given}) for options, given in runs]
    for need in NEEDS:
        asked = [
            values
            for values, given in flattened
            if need.option in given and values.get(need.option) is not None and need.other in values
        ]
        if asked and not any(need.is_met(values[need.other]) for values in asked):
            value, instead = (format_value(asked[0][name]) for name in (need.option, need.other))
            raise UserError(
                f"{need.option}={value} does nothing with {need.other}={instead}",
                accepted=f"{need.option} with {need.other}={need.accepted}",
                advice=f"the same without {need.option}",
            )
