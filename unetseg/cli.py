"""What every door shares: Hydra composes the options, config.py validates them, then the door's work runs.

Exit status: 0 done, 2 the user's input is wrong (a message, no traceback), 1 anything else.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unetseg import launch
from unetseg.accepted import trainer_arguments
from unetseg.config import Halt, Section, Train, UserError
from unetseg.validation import Schema, describe, unknown_option, validate, written

Result = TypeVar("Result")

_PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""Inside the package in a wheel, at the root of a checkout."""

# The run folder is ours: Hydra neither makes one nor changes the working directory. Of a sweep it keeps a record.
QUIET = (
    "hydra.run.dir=.",
    "hydra.sweep.dir=runs/.multirun/${now:%Y-%m-%d_%H-%M-%S}",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)

HELP = {"-h", "--help"}
MULTIRUN = {"-m", "--multirun"}
OUR_FLAGS = HELP | MULTIRUN
"""Other flags, such as --cfg job, are Hydra's own business."""


def run(
    door: str,
    schema: type[Schema],
    work: Callable[[Schema], Result],
    *,
    preflight: Callable[[Schema], None] = lambda options: None,
    preflight_sweep: Callable[[Schema], None] = lambda options: None,
    inherit: Callable[[list[str]], list[str]] = lambda overrides: [],
) -> list[Result]:
    """Compose and validate the options on the command line, then do the work once for each Hydra job.

    Every job's options are validated before the first one starts, so that a sweep doesn't fail in its last cell.

    Args:
        door: name of the config in conf/ and of the module, e.g. `train`.
        schema: the section of config.py that describes the options.
        work: called with the validated options of each job.
        preflight: cheap checks of the world (files, network) before anything heavy is imported.
        preflight_sweep: further ones of the jobs of a Hydra multirun.
        inherit: maps the overrides to further ones that hold where the user says nothing else.

    Returns:
        What `work` returned, a job each. Leaves the process with status 2 on a UserError.
    """
    results: list[Result] = []

    def job(options: DictConfig) -> None:
        try:
            results.append(work(validate(schema, _plain(options, schema))))
        except (UserError, Halt) as error:  # here, because Hydra would say more of it
            _leave(door, error)

    try:
        arguments = [_lenient(argument) for argument in sys.argv[1:]]
        flags = {argument for argument in arguments if argument.startswith("-")}
        foreign = flags - OUR_FLAGS
        overrides = [a for a in arguments if a not in flags and ("=" in a or not foreign)]
        rest = [argument for argument in arguments if argument not in overrides]
        overrides = [_lenient(override) for override in inherit(overrides)] + overrides
        if flags & HELP:
            print(_help(door, schema, OmegaConf.to_container(_composed(door, overrides, schema), resolve=True)))
            return results
        if flags & MULTIRUN:
            overrides = axes(door, schema, overrides) + overrides
        if not foreign:
            jobs = different(door, schema, cells(overrides) if flags else [overrides])
            for options in jobs:
                preflight(options)
                if flags & MULTIRUN:
                    preflight_sweep(options)
        # Hydra wants flags and their values last
        sys.argv[1:] = [*overrides, *(setting for setting in QUIET if setting not in overrides), *rest]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=door)(job)()
        if flags & MULTIRUN and not results:
            print("the launcher ran the jobs in processes of their own: what came out is in their folders")
    except UserError as error:
        if not launch.is_first():
            sys.exit(2)  # the first process says it
        _leave(door, error)
    return results


def plan(
    door: str,
    schema: type[Schema],
    work: Callable[[list[tuple[list[str], Schema]]], Result],
    *,
    preflight: Callable[[Schema], None],
) -> Result | None:
    """Compose and validate every job of the sweep on the command line, then do the work once for all of them.

    Args:
        door: as in `run`, like the next.
        schema: the section of config.py that describes the options.
        preflight: cheap checks of the world.
        work: called with the overrides and the validated options of each job.

    Returns:
        What `work` returned, None after --help. Leaves the process with status 2 on a UserError.
    """
    try:
        flags = HELP & set(sys.argv[1:])
        overrides = [_lenient(argument) for argument in sys.argv[1:] if argument not in OUR_FLAGS]
        if flags:
            print(_help(door, schema, OmegaConf.to_container(_composed(door, overrides, schema), resolve=True)))
            return None
        jobs = cells(axes(door, schema, overrides) + overrides)
        found = different(door, schema, jobs)
        for options in found:
            preflight(options)
        return work(list(zip(jobs, found, strict=True)))
    except UserError as error:
        _leave(door, error)


def _leave(door: str, error: UserError | Halt) -> NoReturn:
    """Print what is wrong and end the process with its status."""
    if isinstance(error, Halt) and not launch.is_first():
        sys.exit(0)  # Lightning kills the first process when another one fails, before it can speak
    # a loader's process wraps its traceback into the message; what the user has to know is the last part
    print(f"unetseg.{door}: {str(error).rpartition('UserError: ')[2].strip()}", file=sys.stderr)
    sys.exit(error.status if isinstance(error, Halt) else 2)


def compose(door: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Return the validated options that conf/<door>.yaml and the overrides make, or raise a UserError."""
    return validate(schema, _plain(_composed(door, overrides, schema), schema))


def cells(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of every cell of a sweep written in Hydra's comma syntax."""
    axes = []
    for override in _parse(overrides):
        values = override.sweep_string_iterator() if override.is_sweep_override() else [None]
        key = override.get_key_element()
        axes.append([override.input_line if value is None else f"{key}={value}" for value in values])
    return [list(cell) for cell in itertools.product(*axes)]


def axes(door: str, schema: type[Section], overrides: list[str]) -> list[str]:
    """Return the experiment's own axes as overrides, but for those that the user sets."""
    given = {override.get_key_element() for override in _parse(overrides)}
    options = _plain(_composed(door, cells(overrides)[0], schema), schema)
    return [f"{key}={values}" for key, values in options.get("sweep", {}).items() if key not in given]


def different(door: str, schema: type[Schema], jobs: list[list[str]]) -> list[Schema]:
    """Return the validated options of each job, or raise a UserError where two would be the same run."""
    found: list[Schema] = []
    for overrides in jobs:
        options = compose(door, schema, overrides)
        if options in found:
            twin = jobs[found.index(options)]
            both = (" ".join(o for o in job if o not in other) for job, other in ((twin, overrides), (overrides, twin)))
            raise UserError(
                f"two runs of the sweep would be the same: {' and '.join(both)}\n"
                "  accepted: a sweep whose runs differ; what comes last holds\n  try: leave one of the axes out"
            )
        found.append(options)
    return found


def given(overrides: list[str]) -> dict[str, str]:
    """Return what each of the overrides sets, without the quotes around it."""
    return {override.get_key_element(): str(override.value()) for override in _parse([_lenient(o) for o in overrides])}


def _lenient(argument: str) -> str:
    """Return an argument as an override of Hydra's.

    A Trainer argument that conf/ doesn't name needs no `+`, and a path with `=` in it, such as that of a sweep's cell,
    no quotes.
    """
    key, equals, value = argument.partition("=")
    known = key.startswith("trainer.") and key.split(".")[1] in trainer_arguments()
    override = f"++{argument}" if known else argument
    escaped = value.replace("'", r"\'")
    quoted = f"{override.partition('=')[0]}='{escaped}'"
    return quoted if equals and not _parses(override) and _parses(quoted) else override


def _parses(override: str) -> bool:
    try:
        _parse([override])
    except UserError:
        return False
    return True


def _parse(overrides: list[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(f"{error}\n  accepted: KEY=VALUE\n  try: --help") from None


def _composed(door: str, overrides: list[str], schema: type[Schema]) -> DictConfig:
    """Return the composed options; Hydra's errors become UserErrors."""
    overrides = [_lenient(override) for override in overrides]
    _parse(overrides)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(door, overrides=overrides)
    except MissingConfigException as error:
        group, _, given = str(error.missing_cfg_file).rpartition("/")
        accepted = ", ".join(error.options or [])
        raise UserError(f"{group or 'config'}={given} is not accepted\n  accepted: {accepted}\n  try: --help") from None
    except HydraException as error:
        if commas := re.match(r"Ambiguous value for argument '(.+?)=(.+)'\n", str(error)):
            key, value = commas.groups()
            raise UserError(
                f"{key}={value} may be the values of several runs, a list, or one value with a comma\n"
                f"  try one of: {key}={value} in a sweep: train --multirun, or ablate\n"
                f"              '{key}=[{value}]'\n              \"{key}='{value}'\""
            ) from None
        match = re.search(r"Could not override '([^']+)'", str(error))
        if match is None:
            raise UserError(f"{error}\n  try: --help") from None
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            defaults: Any = OmegaConf.to_container(hydra.compose(door))
        raise UserError(unknown_option(schema, defaults, match[1])) from None


def _plain(options: DictConfig, schema: type[Schema]) -> dict[str, Any]:
    """Return resolved options as plain dicts, lists, strings and numbers."""
    try:
        return OmegaConf.to_container(options, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or "an option"
        known: Any = OmegaConf.to_container(options)
        accepted = describe(schema, known).get(key, "a value")
        raise UserError(f"{key} is not given\n  accepted: {accepted}\n  try: {key}=...") from None


def _help(door: str, schema: type[Schema], options: Any) -> str:
    """Return the help text: every option with its value as composed and its description."""
    groups = {
        folder.name: sorted(path.stem for path in folder.iterdir()) for folder in CONF.iterdir() if folder.is_dir()
    }
    taken = {"data"} & schema.model_fields.keys() | ({"experiment"} if issubclass(schema, Train) else set())
    several = {"train": " [--multirun]"}.get(door, "")
    lines = [
        f"usage: python -m unetseg.{door} [OPTION=VALUE ...]{several}",
        "",
        *(f"  {group}={' | '.join(names)}" for group, names in groups.items() if group in taken),
        "",
    ]
    for key, text in describe(schema, options).items():
        value: Any = options
        for part in key.split("."):
            value = value.get(part, ...) if isinstance(value, dict) else ...
        if value is not ...:
            lines.append(f"  {f'{key}={written(value)}':40} {text}")
    return "\n".join(lines)
