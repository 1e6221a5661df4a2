"""From the command line to options: Hydra composes conf/ and the overrides, and the schema validates the result."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unetseg import launch
from unetseg.errors import UserError
from unetseg.names import is_own, nearest_first
from unetseg.options import data_file, idle
from unetseg.options.section import Section
from unetseg.options.settings import flat
from unetseg.options.trainer import lightnings_arguments
from unetseg.options.validation import Schema, describe, unknown_option, validate

_PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""Inside the package in a wheel, at the root of a checkout."""
_CALL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\([^()'\"]*\)", re.ASCII)
"""A class of the user's own with arguments, which Hydra takes for a call of its own."""
TEXTS = ("name", "output", "resume", "wandb.project", "wandb.entity")
"""Options whose text may look like a number: name=1e3 stays 1e3, and is not 1000.0."""


def compose(command: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Return the validated options that conf/<command>.yaml and the overrides make, or raise a UserError."""
    return compose_runs(command, schema, [overrides])[0]


def compose_cell(command: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Return the options of one run of a sweep, as `compose`; an option may do nothing that does in another run."""
    values = _composed_like_an_earlier(command, [as_override(override) for override in overrides])
    if values is None:
        return validate(schema, plain_values(compose_config(command, schema, overrides), schema))
    return validate(schema, _with_data_file(values))


def given_keys(overrides: Sequence[Any]) -> list[str]:
    """Return the dotted keys of single options that parsed overrides set, also by a table of a section."""
    keys: list[str] = []
    for override in overrides:
        key, value = str(override.key_or_group), None if override.is_delete() else override.value()
        keys += flat({key: value}) if isinstance(value, dict) else [key]
    return keys


def compose_runs(command: str, schema: type[Schema], runs: list[list[str]]) -> list[Schema]:
    """Return the validated options of each run of a sweep, or raise a UserError where two would be the same."""
    options_of_runs: dict[str, Schema] = {}
    for overrides in runs:
        options = compose_cell(command, schema, overrides)
        content = json.dumps(options.model_dump(), sort_keys=True, default=repr)
        if content in options_of_runs:
            twin = runs[[*options_of_runs].index(content)]
            only_in_twin = " ".join(override for override in twin if override not in overrides)
            only_here = " ".join(override for override in overrides if override not in twin)
            same = f"{only_in_twin} and {only_here}" if only_here else f"both {' '.join(overrides)}"
            raise UserError(
                f"two runs of the sweep would be the same: {same}",
                accepted="a sweep whose runs differ; what comes last holds",
                advice="leave one of the axes out",
            )
        options_of_runs[content] = options
    if not launch.is_cell():
        given = [given_keys(parse([as_override(override) for override in overrides])) for overrides in runs]
        idle.check([(o.model_dump(), keys) for o, keys in zip(options_of_runs.values(), given, strict=True)])
    return [*options_of_runs.values()]


def runs_of(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of every run of a sweep that is written in Hydra's comma syntax."""
    axes = []
    for override in parse(overrides):
        try:
            values = [*override.sweep_string_iterator()] if override.is_sweep_override() else [None]
        except HydraException as error:
            advice = "search=optuna trials=50" if override.is_interval_sweep() else ""
            problem = f"{override.input_line}: {error}"
            raise UserError(problem, accepted="values with commas between them", advice=advice) from None
        key = override.get_key_element()
        axes.append([override.input_line if value is None else f"{key}={value}" for value in values])
    return [list(run) for run in itertools.product(*axes)]


def experiment_axes(command: str, schema: type[Section], overrides: list[str]) -> list[str]:
    """Return the experiment's own axes as overrides, without those that the user sets."""
    set_by_user = {override.get_key_element() for override in parse(overrides)}
    options = plain_values(compose_config(command, schema, runs_of(overrides)[0]), schema)
    return [f"{key}={values}" for key, values in options.get("sweep", {}).items() if key not in set_by_user]


def values_of(overrides: list[str]) -> dict[str, str]:
    """Return the value of each override by its key, without the quotes around it."""
    parsed = parse([as_override(override) for override in overrides])
    return {override.get_key_element(): str(override.value()) for override in parsed}


def as_override(argument: str) -> str:
    """Return an argument of the command line as an override for Hydra.

    The user needs no `+` before an argument of the Trainer that conf/ doesn't name, and no quotes around a path with
    `=` in it, such as that of a run of a sweep, or around a class with arguments, alone or among other values.

    Examples:
        >>> as_override("model.skip=[my_skips:Gated(reduction=4),concat,concat,concat]")
        "model.skip=['my_skips:Gated(reduction=4)',concat,concat,concat]"
    """
    key, equals, value = argument.partition("=")
    of_trainer = key.startswith("trainer.") and key.split(".")[1] in lightnings_arguments()
    value = os.path.expanduser(value)
    name = f"++{key}" if of_trainer else key
    override = f"{name}{equals}{value}"
    escaped = value.replace("'", r"\'")
    quoted = f"{name}='{escaped}'"
    of_classes = _CALL.sub(r"'\g<0>'", value)
    number = key in TEXTS and re.fullmatch(r"[-+]?[\d_.]+(e[-+]?\d+)?", value, re.IGNORECASE)
    ways = (quoted,) if number else (override, f"{name}={of_classes}", quoted)
    return next(filter(_parses, ways), override) if equals else override


def compose_config(command: str, schema: type[Schema], overrides: list[str]) -> DictConfig:
    """Return the options as Hydra composes them; its errors become UserErrors."""
    overrides = [as_override(override) for override in overrides]
    parse(overrides)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(command, overrides=overrides)
    except MissingConfigException as error:
        raise _no_such_file(str(error.missing_cfg_file), error.options or []) from None
    except ValueError as error:  # data=null or data=1.5, which Hydra names no group in
        if "Config group override must be" not in str(error):
            raise
        chosen = {o.lstrip("+").partition("=")[0].partition("@")[0]: o.partition("=")[2] for o in overrides}
        words = ("null", "true", "false")
        wrong = {key: value for key, value in chosen.items() if not value[:1].isalpha() or value in words}
        group = next((key for key in wrong if key and (CONF / key).is_dir()), None)
        if group is None:
            raise UserError(f"{' '.join(overrides)} has no option", accepted="OPTION=VALUE", advice="--help") from None
        names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        raise _no_such_file(f"{group}/{wrong[group]}", names) from None
    except HydraException as error:
        if ambiguous := re.match(r"Ambiguous value for argument '(.+?)=(.+)'\n", str(error)):
            key, value = ambiguous.groups()
            ways = (
                f"{key}={value} in a sweep: train --multirun, or ablate",
                f"'{key}=[{value}]'",
                f"\"{key}='{value}'\"",
            )
            raise UserError(
                f"{key}={value} may be the values of several runs, a list, or one value with a comma", advice=ways
            ) from None
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        if unknown is None:
            raise UserError(str(error), advice="--help") from None
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            named = {override: CONF / f"{override.replace('=', '/', 1)}.yaml" for override in overrides}
            groups = [override for override, file in named.items() if file.is_file()]
            defaults: Any = OmegaConf.to_container(hydra.compose(command, overrides=groups))
        key = unknown[1]
        values = [o.partition("=")[2] for o in overrides if o.lstrip("+").partition("=")[0] == key]
        raise unknown_option(schema, defaults, key, *values[-1:]) from None


def _no_such_file(file: str, names: Sequence[str]) -> UserError:
    """Return the error for a choice that conf/ has no file for.

    Args:
        file: the group and the name that was chosen.
        names: those that the group has.
    """
    if file.startswith("hydra/launcher/submitit"):
        return UserError("hydra/launcher=slurm needs hydra-submitit-launcher", advice="pip install 'unetseg[slurm]'")
    folders = [str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()]
    group = max((folder for folder in folders if file.startswith(f"{folder}/")), key=len, default="")
    name = file.removeprefix(f"{group}/")
    if group == "data" and is_own(name):
        return UserError(
            f"data={name} is not accepted",
            accepted=f"a kind of data: {', '.join(names)}",
            advice=f"data=own data.source={name} 'data.classes=[background,foreground]'",
        )
    if group == "data" and "/" in name:
        return UserError(
            f"data={name} is not accepted",
            accepted=f"a kind of data: {', '.join(names)}",
            advice=(f"data=folder data.root={name}, for pictures and masks of your own", f"data=pets data.root={name}"),
        )
    nearest = nearest_first(name, list(names))
    meant = "folder" if (group, name) == ("data", "null") else nearest[0] if nearest else ""
    advice = f"{group}={meant}" if meant else "--help"
    return UserError(f"{group or 'config'}={name} is not accepted", accepted=", ".join(nearest), advice=advice)


def plain_values(options: DictConfig, schema: type[Schema]) -> dict[str, Any]:
    """Return composed options, resolved, as plain dicts, lists, strings and numbers."""
    try:
        values: Any = OmegaConf.to_container(options, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "an option"
        known: Any = OmegaConf.to_container(options)
        accepted = describe(schema, known).get(key, "a value")
        raise UserError(f"{key} is not given", accepted=accepted, advice=f"{key}=...") from None
    return _with_data_file(values)


def _with_data_file(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"data": data_file.complete(values["data"])} if isinstance(values.get("data"), dict) else values


def _composed_like_an_earlier(command: str, overrides: list[str]) -> dict[str, Any] | None:
    """Return options as plain values, without what a data.yaml says, where they are Hydra's but for single values.

    Hydra takes a tenth of a second. It is asked once for each choice of files; the values of single options are put in
    here, one after the other, as Hydra does. None: only Hydra knows what these overrides mean, or what is wrong.
    """
    chosen, single = [], []
    for override in parse(overrides):
        key, text = str(override.key_or_group), str(override.input_line)
        if (CONF / key).is_dir() and override.type == OverrideType.CHANGE:
            chosen.append(text)
        elif (
            override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)
            and override.package is None
            and not override.is_sweep_override()
            and re.fullmatch(r"[a-z]\w*(\.\w+)*", key)
            and key.partition(".")[0] != "hydra"
            and not {"$", "?"} & {*text}  # it may refer to another option, or be no value yet
        ):
            single.append((key.split("."), override.value(), override.type))
        else:
            return None
    files = frozenset((str(file), file.stat().st_mtime_ns) for file in CONF.rglob("*.yaml"))
    template = _template(command, tuple(chosen), files)
    if template is None:
        return None
    options = copy.deepcopy(template)
    for (*sections, name), value, kind in single:
        section: Any = options
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        known = isinstance(section, dict) and (name in section or kind == OverrideType.FORCE_ADD)
        if not known or isinstance(value, dict) or isinstance(section.get(name), dict):
            return None
        section[name] = value
    return None if "???" in str(options) else options


@functools.lru_cache(64)
def _template(command: str, chosen: tuple[str, ...], files: frozenset[tuple[str, int]]) -> dict[str, Any] | None:
    """Return what Hydra composes of these choices of files, as plain values; None where it refuses them.

    With `files`, those of conf/ and the times of their last changes, an edited file is read anew.
    """
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(command, overrides=[*chosen])
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def _parses(override: str) -> bool:
    try:
        parse([override])
    except UserError:
        return False
    return True


def parse(overrides: list[str]) -> list[Any]:
    """Return overrides as Hydra's parser reads them, or raise a UserError."""
    try:
        return _parser().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(str(error), accepted="KEY=VALUE", advice="--help") from None


_parser = functools.cache(OverridesParser.create)
