"""Commands called from Python: `unetseg.train("model.skip=none", data="synthetic", seed=0)`.

There is one form. Strings are options as on the command line, so that what --help, the README or an error says works
here as well. Keywords are the options without a dot in their name; their values are taken as they are.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from unetseg import launch
from unetseg.errors import INTERRUPTED, Halt, UserError
from unetseg.options.settings import TABLES, override

Option = str | int | float | bool | os.PathLike[str] | Sequence[str] | Mapping[str, Any] | None
"""What a keyword may be; None is the command line's null."""


class CallableModule(ModuleType):
    """A module that can be called: `unetseg.train` is the module of a command and a function as well.

    Importing a submodule sets it as an attribute of its package, over a function of that name, so the module itself has
    to be what is called. A command's module sets its own class to this one at its end, as Python's data model has it
    ("Customizing module attribute access"), and `python -m unetseg.train` and `from unetseg.train import main` work as
    with any module. Type checkers are told of the function by unetseg/__init__.py.
    """

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the module's function `call`."""
        return self.call(*arguments, **keywords)

    @property
    def __signature__(self) -> inspect.Signature:
        """Return the signature that `help` and notebooks show."""
        return inspect.signature(self.call)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Pickle the module by its name, so that it can be the work of another process."""
        return importlib.import_module, (self.__name__,)


def overrides_of(strings: Sequence[str], keywords: Mapping[str, Option], example: str) -> list[str]:
    """Return options given in Python as on the command line.

    Args:
        strings: such as "model.skip=none".
        keywords: such as seed=0.
        example: an option that the command takes, for an error's advice: "data=synthetic".

    Raises:
        UserError: a string is no option, or a keyword's value can't be written on the command line.

    Examples:
        >>> overrides_of(["model.skip=none"], {"seed": 0, "name": None, "output": "my runs"}, "")
        ['model.skip=none', 'seed=0', 'name=null', 'output="my runs"']
    """
    for string in strings:
        if not isinstance(string, str) or "=" not in string or string.startswith("-"):
            raise UserError(
                f"{string!r} is not an option",
                accepted='options as on the command line ("model.skip=none"), and those without a dot as keywords',
                advice=f'"{example}"',
            )
    plain = {key: _plain(key, value) for key, value in keywords.items()}
    given = [
        f"{key}={value}" if isinstance(value, str) and _is_word(value) else override(key, value)
        for key, value in plain.items()
    ]
    return [*strings, *given]


def _is_word(text: str) -> bool:
    """Return whether a text is one on the command line, too, without quotes."""
    return bool(re.fullmatch(r"[A-Za-z][\w./-]*", text)) and text.lower() not in ("true", "false", "null", "nan", "inf")


def _plain(key: str, value: Any) -> Any:
    """Return a keyword's value as plain text, number, truth value, None, list of texts, or table."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str | os.PathLike):  # a Run is the path of its folder
        return os.path.expanduser(os.fspath(value))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(key, entry) for entry in value]
    if isinstance(value, Mapping) and key in TABLES:
        return {str(name): dict(entry) if isinstance(entry, Mapping) else entry for name, entry in value.items()}
    is_section = isinstance(value, Mapping) and value
    raise UserError(
        f"{key}={value!r} is not accepted",
        accepted="a text, a number, True, False, None, a path, or a list of texts",
        advice=f'"{key}.{next(iter(value))}=...", a string for each option of a section' if is_section else "",
    )


def stop_at_once() -> None:
    """End a run after a second Ctrl-C, but not the notebook that it runs in."""
    raise Halt("stopped at once", INTERRUPTED)


@contextmanager
def interruptible(command: str, overrides: Sequence[str]) -> Iterator[None]:
    """Let a command's work be called from Python, and be stopped like any function.

    What it records as its command is the one that does the same. An interruption is a KeyboardInterrupt, whatever
    Lightning or this package make of Ctrl-C: what follows in a notebook's cell is not run.

    Args:
        command: name of the command's module.
        overrides: the options.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with launch.recorded_as(["python", "-m", f"unetseg.{command}", *overrides]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message='install "ipywidgets"')  # Rich's, at each bar in a notebook
            yield
    except UserError as error:  # here --help is no option
        text = str(error)
        raise UserError(re.sub("try: --help$", f"try: python -m unetseg.{command} --help", text, flags=re.M)) from None
    except Halt as error:
        if error.status != INTERRUPTED:
            raise
        raise KeyboardInterrupt(str(error)) from None
    except SystemExit as error:  # by which Lightning ends a test that is interrupted
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt("stopped") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
