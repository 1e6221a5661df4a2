"""What every command shares: options from the command line, checks of all runs, then the work.

Exit status: 0 done, 2 the user's input is wrong (a message, no traceback), 1 anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf

from unetseg import launch
from unetseg.errors import Halt, UserError
from unetseg.options.compose import CONF, as_override, compose_runs, composed, experiment_axes, plain, runs_of
from unetseg.options.messages import written
from unetseg.options.output import shown_lines
from unetseg.options.schema import Section, Train
from unetseg.options.validation import Schema, describe, validate

Result = TypeVar("Result")

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
    command: str,
    schema: type[Schema],
    work: Callable[..., Result],
    *,
    together: bool = False,
    preflight: Callable[[Schema], None] = lambda options: None,
    preflight_sweep: Callable[[Schema], None] = lambda options: None,
    inherit: Callable[[list[str]], Schema | None] = lambda overrides: None,
) -> list[Result]:
    """Compose and validate the options on the command line, then do the work.

    The options of every run of a sweep are validated before the first one starts, so that it doesn't fail in its last.

    Args:
        command: name of the config in conf/ and of the module, e.g. `train`.
        schema: the section of schema.py that describes the options.
        work: called with the validated options, once for each run of a Hydra multirun.
        together: the options are always a sweep, and `work` is called once, with a list of the overrides and the
            options of each run.
        preflight: cheap checks of the world (files, network) before anything heavy is imported.
        preflight_sweep: further ones of the runs of a Hydra multirun.
        inherit: maps overrides to the options of another run that they change, which don't go through Hydra again;
            None where there is no other.

    Returns:
        What `work` returned, one entry a call. Leaves the process with status 2 on a UserError.
    """
    results: list[Result] = []

    def one_run(options: DictConfig) -> None:
        results.append(_done(command, lambda options: work(validate(schema, plain(options, schema))), options))

    try:
        arguments = [as_override(argument) for argument in sys.argv[1:]]
        flags = {argument for argument in arguments if argument.startswith("-")}
        of_hydra = flags - OUR_FLAGS
        overrides = [a for a in arguments if a not in flags and ("=" in a or not of_hydra)]
        rest = [argument for argument in arguments if argument not in overrides]
        runs = runs_of(overrides) if flags & MULTIRUN else [overrides]
        inherited = [options for options in map(inherit, runs) if options is not None]
        if inherited:
            if of_hydra or len(inherited) < len(runs):
                raise UserError(f"{' '.join(sorted(of_hydra)) or 'some runs'} with the options of another run")
            if flags & HELP:
                print(_help(command, schema, inherited[0].model_dump()))
                return results
            for options in inherited:
                preflight(options)
                if flags & MULTIRUN:
                    preflight_sweep(options)
            return [_done(command, work, options) for options in inherited]
        if flags & HELP:
            print(_help(command, schema, OmegaConf.to_container(composed(command, schema, overrides), resolve=True)))
            return results
        sweep = together or bool(flags & MULTIRUN)
        if sweep:
            overrides = experiment_axes(command, schema, overrides) + overrides
        if together or not of_hydra:
            runs = runs_of(overrides) if sweep else [overrides]
            options_of_runs = compose_runs(command, schema, runs)
            for options in options_of_runs:
                preflight(options)
                if flags & MULTIRUN:
                    preflight_sweep(options)
            if together:
                return [work(list(zip(runs, options_of_runs, strict=True)))]
        # Hydra wants flags and their values last
        sys.argv[1:] = [*overrides, *(setting for setting in QUIET if setting not in overrides), *rest]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(one_run)()
        if sweep and not results:
            print("the launcher ran the jobs in processes of their own: what came out is in their folders")
    except UserError as error:
        if not launch.is_first():
            sys.exit(2)  # the first process says it
        leave(command, error)
    return results


def _done(command: str, work: Callable[[Any], Result], options: Any) -> Result:
    """Return what the work on some options returns; where it ends early, leave at once: Hydra would say more of it."""
    try:
        return work(options)
    except (UserError, Halt) as error:
        leave(command, error)


def leave(command: str, error: UserError | Halt) -> NoReturn:
    """Print what is wrong and end the process with its status."""
    if isinstance(error, Halt) and not launch.is_first():
        sys.exit(0)  # Lightning kills the first process when another one fails, before it can speak
    # a loader's process wraps its traceback into the message; what the user has to know is the last part
    text = str(error).rpartition("UserError: ")[2].strip()
    print(shown_lines(f"unetseg.{command}: {text}"), file=sys.stderr)
    sys.exit(error.status if isinstance(error, Halt) else 2)


def _help(command: str, schema: type[Section], options: Any) -> str:
    """Return the help text: every option with its value as composed and its description."""
    groups = {
        folder.name: sorted(path.stem for path in folder.iterdir()) for folder in CONF.iterdir() if folder.is_dir()
    }
    taken = {"data"} & schema.model_fields.keys() | ({"experiment"} if issubclass(schema, Train) else set())
    several = {"train": " [--multirun]"}.get(command, "")
    lines = [
        f"usage: python -m unetseg.{command} [OPTION=VALUE ...]{several}",
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
