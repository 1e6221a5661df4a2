"""The options of each command with the values that a shell can offer for them; from the schema and conf/."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from unetseg.names import ENCODERS, FLOWS, LOSSES, PRECISIONS, SCALES, SKIPS
from unetseg.options.command_schema import Demo, Evaluate, Export, Predict, Report
from unetseg.options.compose import CONF
from unetseg.options.data_schema import DATA
from unetseg.options.schema import Ablate, Train
from unetseg.options.section import Section
from unetseg.options.trainer import trainer_arguments

COMMANDS: dict[str, type[Section]] = {
    "train": Train,
    "ablate": Ablate,
    "evaluate": Evaluate,
    "report": Report,
    "predict": Predict,
    "demo": Demo,
    "export": Export,
}
BY_NAME = {
    "model.encoder": ENCODERS,
    "model.skip": SKIPS,
    "model.skip_flow": FLOWS,
    "model.skip_scale": SCALES,
    "model.weights": ("imagenet", "null"),
    "loss": tuple(LOSSES),
    "data.validation": ("every_10th",),
    "trainer.accelerator": ("auto", "cpu", "gpu"),
    "trainer.strategy": ("auto", "ddp"),
    "trainer.precision": ("null", *PRECISIONS),
    "trainer.enable_progress_bar": ("true", "false"),
    "accelerator": ("auto", "cpu", "gpu"),
}
"""Values of options whose type doesn't tell them."""
PATHS = ("checkpoint", "images", "model.weights", "data.root", "output", "resume", "runs")
"""Options that are files or folders."""
GROUPS = ("data", "trainer", "experiment")
"""The folders of conf/ that are chosen from."""


def choices(command: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each option of a command by its dotted key; empty where there are no words for them.

    Examples:
        >>> choices("train")["model.skip_flow"]
        ('both', 'forward', 'backward')
    """
    schema = COMMANDS[command]
    groups = {"data": "data" in schema.model_fields}
    groups |= dict.fromkeys(("trainer", "experiment"), issubclass(schema, Train))
    table = {group: tuple(sorted(path.stem for path in (CONF / group).iterdir())) for group in GROUPS if groups[group]}
    return {**table, **_of_section(schema, "")}


def _of_section(schema: type[Section], prefix: str) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for name, field in schema.model_fields.items():
        key = f"{prefix}{name}"
        if key == "data":
            for data in DATA.values():
                table |= {k: v for k, v in _of_section(data, "data.").items() if k != "data.name"}
        elif key == "trainer":
            table |= {f"trainer.{argument}": BY_NAME.get(f"trainer.{argument}", ()) for argument in trainer_arguments()}
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            table |= _of_section(field.annotation, f"{key}.")
        elif key != "sweep":
            table[key] = BY_NAME.get(key) or _values(field.annotation)
    return table


def _values(annotation: Any) -> tuple[str, ...]:
    """Return the values of a type as they are written on the command line."""
    if annotation is bool:
        return "true", "false"
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(value for member in get_args(annotation) for value in _values(member))
    return ("null",) if annotation is type(None) else ()
