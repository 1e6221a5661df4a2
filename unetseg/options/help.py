"""The text of --help: what a command is for, examples, and every option with its value, in groups."""

from __future__ import annotations

import textwrap
from typing import Any

from unetseg.options.compose import CONF
from unetseg.options.messages import format_value
from unetseg.options.schema import Train
from unetseg.options.section import Section
from unetseg.options.validation import describe

WIDTH = 100
"""Columns of the text."""
LEFT = 34
"""Columns of an option and its value."""
MISSING = "???"
"""What OmegaConf has in place of a value that must be given."""


def help_text(command: str, schema: type[Section], options: Any, about: str | None) -> str:
    """Return the text of --help.

    Args:
        command: its name.
        schema: the section of schema.py that describes the options.
        options: plain values, as composed of conf/ and the command line; missing ones are "???".
        about: docstring of the command's module: its purpose and examples.
    """
    multirun = " [--multirun]" if command == "train" else ""
    lines = [
        *(about or "").strip().splitlines(),
        "",
        f"usage: python -m unetseg.{command} [OPTION=VALUE ...]{multirun}",
        "",
    ]
    for group in ("experiment", "data", "trainer"):
        if group in schema.model_fields or (group == "experiment" and issubclass(schema, Train)):
            names = sorted(path.stem for path in (CONF / group).iterdir())
            choices = f"{group}={' | '.join(names)}"
            lines += textwrap.wrap(choices, WIDTH, initial_indent="  ", subsequent_indent=" " * (len(group) + 3))
    section_before = ""
    for key, text in describe(schema, options).items():
        section = key.rpartition(".")[0]
        value: Any = options
        for part in key.split("."):
            value = value.get(part, ...) if isinstance(value, dict) else ...
        if value is ...:
            continue
        if section != section_before:
            lines.append("")
        section_before = section
        given = "..." if value == MISSING else format_value(value)
        lines += _option(f"{key}={given}", f"(must be given) {text}" if value == MISSING else text)
    if issubclass(schema, Train):
        lines += ["", "Any other argument of Lightning's Trainer is accepted as trainer.NAME=VALUE."]
    return "\n".join(lines)


def _option(setting: str, text: str) -> list[str]:
    """Return the lines of one option: its setting on the left, what it means on the right."""
    right = textwrap.wrap(text, WIDTH - LEFT - 3)
    own_line = len(setting) > LEFT
    first = [f"  {setting}"] if own_line else [f"  {setting:{LEFT}} {right[0]}"]
    return [*first, *(f"  {'':{LEFT}} {line}" for line in (right if own_line else right[1:]))]
