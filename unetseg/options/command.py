"""What every command shares: options from the command line, checks of all runs, then the work.

Exit status: 0 done, 2 the user's input is wrong (a message, no traceback), 75 stopped on request and able to continue,
SIGINT itself after Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf

import unetseg
from unetseg import launch
from unetseg.errors import INTERRUPTED, Halt, UserError
from unetseg.names import shown
from unetseg.options.choices import choices
from unetseg.options.compose import (
    CONF,
    as_override,
    compose,
    compose_config,
    compose_runs,
    experiment_axes,
    plain_values,
    runs_of,
)
from unetseg.options.help import help_text
from unetseg.options.output import FULL, shown_lines
from unetseg.options.section import Section
from unetseg.options.space import edges, is_search
from unetseg.options.validation import Schema, known_options, likeliest, validate

Result = TypeVar("Result")

# The run folder is ours: Hydra neither makes one nor changes the working directory. It keeps a record of a sweep.
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
VERSION = {"-V", "--version"}
OUR_FLAGS = HELP | MULTIRUN | VERSION
HYDRAS_FLAGS = {
    *("-c", "--cfg", "-p", "--package", "-i", "--info", "--resolve", "-r", "--run", "--hydra-help"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-sc", "--shell-completion"),
    "--experimental-rerun",
}
"""Flags that Hydra handles, such as --cfg job."""
BY_A_PATH = {"checkpoint": "checkpoint=", "runs": "runs=", "data.root": "data=folder data.root="}
"""Options that are likely meant by the path of a file or folder alone, and how they are written."""
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def run(
    command: str,
    schema: type[Schema],
    work: Callable[..., Result],
    *,
    together: bool = False,
    preflight: Callable[[Schema], None] = lambda options: None,
    preflight_sweep: Callable[[Schema], None] = lambda options: None,
    inherit: Callable[[list[str]], Schema | None] = lambda overrides: None,
    about: str | None = None,
) -> list[Result]:
    """Compose and validate the options on the command line, then do the work.

    The options of all runs of a sweep are validated before the first one starts, so that a sweep doesn't fail late.

    Args:
        command: name of the config in conf/ and of the module, e.g. `train`.
        schema: the section of schema.py that describes the options.
        work: called with the validated options, once for each run of a Hydra multirun.
        together: the options are always a sweep or a search, and `work` is called once, with a list of the overrides
            and the options of each run, and with all overrides as they were given.
        preflight: cheap checks (files, network) before anything heavy is imported.
        preflight_sweep: further checks of the runs of a Hydra multirun.
        inherit: maps overrides to the options of an earlier run, changed by them, which don't go through Hydra again;
            None where there is no such run.
        about: the module's docstring, with which --help begins: a line on what the command is for, and examples.

    Returns:
        What `work` returned, one entry a call. A UserError ends the process with status 2.
    """
    results: list[Result] = []

    def one_run(options: DictConfig) -> None:
        with exit_on_error(f"unetseg.{command}"):  # here, because Hydra would print a traceback
            results.append(work(validate(schema, plain_values(options, schema))))

    protect_output()
    with exit_on_error(f"unetseg.{command}"):
        arguments = [as_override(argument) for argument in sys.argv[1:]]
        flags = {argument for argument in arguments if argument.startswith("-")}
        if flags & VERSION:
            print(f"unetseg {unetseg.__version__}")
            return results
        check_flags(command, schema, arguments)
        multirun = bool(flags & MULTIRUN)
        hydra_flags = flags - OUR_FLAGS
        overrides = [a for a in arguments if a not in flags and ("=" in a or not hydra_flags)]
        check_words(command, schema, overrides)
        rest = [argument for argument in arguments if argument not in overrides]

        def check(options_of_runs: list[Schema]) -> None:
            for options in options_of_runs:
                preflight(options)
                if multirun:
                    preflight_sweep(options)

        runs = runs_of(overrides) if multirun else [overrides]
        inherited = [options for options in map(inherit, runs) if options is not None]
        if inherited:
            if hydra_flags or len(inherited) < len(runs):
                raise UserError(f"{' '.join(sorted(hydra_flags)) or 'some runs'} with the options of another run")
            if flags & HELP:
                print(help_text(command, schema, inherited[0].model_dump(), about))
                return results
            check(inherited)
            return [work(options) for options in inherited]
        if flags & HELP:
            config = compose_config(command, schema, overrides)
            print(help_text(command, schema, OmegaConf.to_container(config, resolve=True), about))
            return results
        sweep = together or multirun
        searched = together and is_search(overrides)
        if sweep and not searched:
            overrides = experiment_axes(command, schema, overrides) + overrides
        if any(override.endswith("hydra/launcher=slurm") for override in overrides) and not shutil.which("sbatch"):
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch on the PATH",
                accepted="a machine of a SLURM cluster",
                advice="the same without it, or python -m unetseg.ablate jobs=N",
            )
        if together or not hydra_flags:
            runs = edges(overrides) if searched else runs_of(overrides) if sweep else [overrides]
            options_of_runs = compose_runs(command, schema, runs)
            check(options_of_runs)
            if multirun:
                _check_names(options_of_runs)
            if together:
                return [work(list(zip(runs, options_of_runs, strict=True)), overrides)]
        # Hydra wants flags and their values last
        sys.argv[1:] = [*overrides, *(setting for setting in QUIET if setting not in overrides), *rest]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(one_run)()
        if sweep and not results:
            print("the launcher ran the jobs in processes of their own: what came out is in their folders")
    return results


def options_of(
    command: str,
    schema: type[Schema],
    overrides: list[str],
    *,
    preflight: Callable[[Schema], None] = lambda options: None,
    inherit: Callable[[list[str]], Schema | None] = lambda overrides: None,
) -> Schema:
    """Return the validated and checked options of one run that is called from Python; the arguments are those of `run`.

    Raises:
        UserError: an option is wrong.
    """
    inherited = inherit(overrides)
    options = compose(command, schema, overrides) if inherited is None else inherited
    preflight(options)
    return options


def sweep_of(
    command: str, schema: type[Schema], overrides: list[str], *, preflight: Callable[[Schema], None]
) -> list[tuple[list[str], Schema]]:
    """Return the overrides and the options of each run of a sweep, or at the edges of a search's space.

    Otherwise as `options_of`.
    """
    searched = is_search(overrides)
    runs = edges(overrides) if searched else runs_of([*experiment_axes(command, schema, overrides), *overrides])
    options_of_runs = compose_runs(command, schema, runs)
    for options in options_of_runs:
        preflight(options)
    return list(zip(runs, options_of_runs, strict=True))


def check_words(command: str, schema: type[Section], words: list[str]) -> None:
    """Raise a UserError for a word that is no OPTION=VALUE; a `~OPTION`, by which Hydra removes one, has no value."""
    for word in words:
        if "=" in word or word.startswith("~"):
            continue
        values = choices(command)
        of_value = [f"{option}={word}" for option, accepted in values.items() if word in accepted]
        of_path = [f"{start}{word}" for option, start in BY_A_PATH.items() if option in values and os.path.exists(word)]
        meant = likeliest(word, known_options(schema))
        advice = [*of_path, *of_value, f"{meant}=..." if meant else "--help"][0]
        raise UserError(f"{shown(word)} is not an option of {command}", accepted=_accepted(command), advice=advice)


def _accepted(command: str) -> str:
    return "OPTION=VALUE, and --help, --version" + (", --multirun" if command == "train" else "")


def check_flags(command: str, schema: type[Section], arguments: list[str]) -> None:
    """Raise a UserError for a flag that neither we nor Hydra have: `--epochs 3` is trainer.max_epochs=3 here."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = argument.partition("=")
        if not flag.startswith("-") or flag in OUR_FLAGS | HYDRAS_FLAGS:
            continue
        if not equals and "=" not in following and not following.startswith("-"):
            value = following
        meant = likeliest(flag.lstrip("-").replace("-", "_"), known_options(schema))
        raise UserError(
            f"{flag} is not a flag of {command}",
            accepted=_accepted(command),
            advice=f"{meant}={value or '...'}" if meant else "--help",
        )


def _check_names(runs: list[Any]) -> None:
    """Raise a UserError where two runs of a sweep would have one folder."""
    names = [name for name in (getattr(options, "name", None) for options in runs) if name is not None]
    if twins := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"name={twins[0]} would be the folder of {names.count(twins[0])} runs",
            accepted="a name for each run, or none",
            advice=f"output=runs/{twins[0]} without name, which holds a folder for each run",
        )


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
    """End the process with a message on an error that concerns the user, and by SIGINT after Ctrl-C."""
    try:
        yield
    except (UserError, Halt) as error:
        _exit(program, error)
    except KeyboardInterrupt:
        _exit(program, Halt("stopped", INTERRUPTED))
    except OSError as error:
        if error.errno not in UNWRITABLE | FULL:
            raise
        problem = f"{error.filename or 'a file'} can't be read or written: {error.strerror}"
        if error.errno in FULL:
            _exit(program, Halt(f"{problem}\n  try: make room, then the same command"))
        _exit(program, UserError(problem, accepted="files and folders that may be", advice="another folder"))


def _exit(program: str, error: UserError | Halt) -> NoReturn:
    """Print what is wrong and end the process with the error's status."""
    if isinstance(error, UserError) and not launch.is_first():
        sys.exit(2)  # the first process prints it
    if isinstance(error, Halt) and not launch.is_first():
        sys.exit(0)  # where another process fails, Lightning kills the first one before it can print
    # a loader's process wraps its traceback into the message; the last part is for the user
    text = str(error).rpartition("UserError: ")[2].strip()
    print(shown_lines(f"{program}: {text}"), file=sys.stderr)
    if isinstance(error, Halt) and error.status == INTERRUPTED:
        launch.die_of_ctrl_c()
    sys.exit(error.status if isinstance(error, Halt) else 2)


class TolerantStream:
    r"""An output stream that escapes letters that its encoding lacks, and drops text once its reader is gone.

    A print must not end a training whose terminal is gone. Other attributes are those of the wrapped stream.

    Examples:
        >>> TolerantStream(sys.stdout).write("epoch 1\n")
        epoch 1
        8
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it where the reader is gone; return its length."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def protect_output() -> None:
    """Replace standard output and error by tolerant streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # this process was started with it closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif not isinstance(stream, TolerantStream):
            setattr(sys, name, TolerantStream(stream))
