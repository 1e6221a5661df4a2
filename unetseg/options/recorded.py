"""Options recorded in a config.yaml: plain values and never commands, whoever wrote them.

A run folder may be a stranger's. Nothing in its config.yaml goes through Hydra: no key is an override, no name leads to
another file, `${...}` is text, and nothing is instantiated. Its options are read within bounds, completed by conf/
where an earlier version had fewer, changed by the command line, and validated like any other options.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unetseg.errors import UserError, first_line
from unetseg.options import data_file, idle, plain_yaml
from unetseg.options.compose import CONF, as_override, compose_config, given_keys, parse
from unetseg.options.data_schema import DATA
from unetseg.options.schema import Train
from unetseg.options.section import Section
from unetseg.options.settings import flat
from unetseg.options.validation import Schema, validate

SECTIONS = ("model", "data", "trainer")
"""Sections of every config.yaml of a training, and hardly of another program's."""
AS_RECORDED = ("trainer", "sweep")
"""Sections that conf/ doesn't complete: a run has no other arguments of the Trainer than those that it recorded."""

EARLIER: dict[str, dict[str, Any]] = {"optimizer": {"encoder_lr_factor": 1.0}, "checkpoint": {"choose": "best"}}
"""What runs did before there were these options, where conf/ says otherwise."""


def read_training(path: Path) -> dict[str, Any]:
    """Return the options of a run's config.yaml, completed by conf/ where an earlier version had fewer.

    They are not validated yet: `apply_overrides` does it. `resume`, `trust`, `allow_changes`, `dry_run` and `find_lr`
    are never taken from the file.

    Raises:
        UserError: as `plain_yaml.read`, or the file is not that of a training.
    """
    recorded = plain_yaml.read(path)
    absent = [name for name in SECTIONS if not isinstance(recorded.get(name), dict)]
    if absent:
        raise UserError(
            f"{path} is not that of a training: it has no {', '.join(absent)}",
            accepted="the config.yaml of a run folder, as unetseg.train writes it",
        )
    name = recorded["data"].get("name")
    if name not in list(DATA):
        raise UserError(f"data.name={str(name)[:80]} in {path} is not accepted", accepted=", ".join(map(str, DATA)))
    completed = dict(recorded)
    for key, default in defaults("train", Train, name).items():
        default = {**default, **EARLIER.get(key, {})} if isinstance(default, dict) else default
        section = recorded.get(key, default)
        fill = isinstance(default, dict) and isinstance(section, dict) and key not in AS_RECORDED
        completed[key] = {**default, **section} if fill else section
    return completed | {"resume": None, "trust": False, "allow_changes": [], "dry_run": False, "find_lr": False}


def defaults(command: str, schema: type[Section], data: str) -> dict[str, Any]:
    """Return the defaults of conf/ for a data set; options without a default are absent."""
    return copy.deepcopy(_defaults(command, schema, data))


def apply_overrides(command: str, schema: type[Schema], recorded: dict[str, Any], overrides: list[str]) -> Schema:
    """Return recorded options, changed by overrides of the command line and validated.

    Args:
        command: name of the config in conf/.
        schema: of the options.
        recorded: plain values, which are not changed.
        overrides: as Hydra takes them; those of Hydra's own options (hydra.*) are ignored.

    Raises:
        UserError: an option is unknown or not accepted, or a whole group of conf/ is chosen.
    """
    options = copy.deepcopy(recorded)
    data = recorded["data"]["name"]
    own = [
        (override, text)
        for override, text in zip(parse(list(map(as_override, overrides))), overrides, strict=True)
        if override.key_or_group.partition(".")[0].partition("/")[0] != "hydra"
    ]
    single = [text for override, text in own if override.key_or_group != "data" and not override.is_delete()]
    new_values = _resolve(command, schema, [f"data={data}", *single])
    for override, text in own:
        key = override.key_or_group
        value = None if override.is_delete() else override.value()
        if (CONF / key).is_dir() and not isinstance(value, dict):
            if (key, value) != ("data", data):
                raise UserError(
                    f"{text} beside options that are recorded (data={data})",
                    accepted=f"single options beside them, such as {key}.OPTION=VALUE",
                )
            continue
        for leaf in flat({key: value}) if isinstance(value, dict) else [key]:
            _set_option(options, {} if override.is_delete() else new_values, leaf.split("."))
    given = {override.key_or_group.removeprefix("data.") for override, _ in own}
    if "root" in given:
        options["data"] = data_file.complete(options["data"], given)
    try:
        checked = validate(schema, options)
        idle.check([(checked.model_dump(), given_keys([override for override, _ in own]))])
    except UserError as error:
        raise UserError(f"among the options that are recorded, and those given now: {error}") from None
    return checked


@functools.cache
def _defaults(command: str, schema: type[Section], data: str) -> dict[str, Any]:
    def without_missing(values: dict[str, Any]) -> dict[str, Any]:
        return {k: without_missing(v) if isinstance(v, dict) else v for k, v in values.items() if v != "???"}

    return without_missing(_resolve(command, schema, [f"data={data}"]))


def _resolve(command: str, schema: type[Section], overrides: list[str]) -> dict[str, Any]:
    """Return the plain values of conf/ and overrides of the command line."""
    try:
        return OmegaConf.to_container(compose_config(command, schema, overrides), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}", advice="--help") from None


def _set_option(options: dict[str, Any], new_values: dict[str, Any], path: list[str]) -> None:
    """Set the option at a path to its new value; remove it where there is none."""
    *sections, name = path
    for section in sections:
        new_values = new_values.get(section, {})
        options = options.setdefault(section, {})
    if name in new_values:
        options[name] = new_values[name]
    else:
        options.pop(name, None)
