"""Classes of the user's own, such as a fusion in my_skips.py: named as text, and imported where the user asked for it.

my_skips:Maximum                          a class of a module beside where the command runs, or of a package
{class: my_skips:Gated, reduction: 4}     with keyword arguments
my_skips:Gated(reduction=4)               the same, as config.yaml, checkpoints and reports name it

Importing a module runs its code. What the user types is imported. What a file says, whoever wrote it, is refused before
anything is imported, unless the user gives trust=true.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from unetseg.errors import UserError, first_line
from unetseg.names import LONGEST_CLASS, is_own, nearest_first, shown


@dataclass(frozen=True)
class Address:
    """Where a class is, and its keyword arguments.

    Examples:
        >>> str(Address("my_skips", "Gated", {"reduction": 4}))
        'my_skips:Gated(reduction=4)'
    """

    module: str
    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.module}:{self.name}" + (f"({inside})" if inside else "")


def read(text: str) -> Address:
    """Return what a text names; nothing is imported.

    Raises:
        ValueError: it is no name of a class, or its arguments are no plain values.
    """
    if not is_own(text):
        raise ValueError(f"{text[:80]!r} is no package.module:Class")
    place, _, inside = text.partition("(")
    module, _, name = place.partition(":")
    try:
        call = ast.parse(f"f({inside}" if inside else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("its arguments are no NAME=VALUE")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(arguments) < len(call.keywords) or not _is_plain(arguments):
            raise ValueError("its arguments are no NAME=VALUE")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"the arguments of {text[:80]!r} are no plain values, NAME=VALUE") from None
    return Address(module, name, arguments)


def written(value: Any) -> str:
    """Return the text of a class that is given as text or as a table with `class` and its arguments.

    Raises:
        ValueError: it is neither.

    Examples:
        >>> written({"class": "my_skips:Gated", "reduction": 4})
        'my_skips:Gated(reduction=4)'
    """
    if not isinstance(value, Mapping):
        return str(read(str(value)))
    own = read(str(value.get("class")))
    given = {str(name): entry for name, entry in value.items() if name != "class"}
    text = str(Address(own.module, own.name, {**own.arguments, **given}))
    if len(text) > LONGEST_CLASS:
        raise ValueError(f"it has more than {LONGEST_CLASS} letters")
    return str(read(text))


def admit(named: Mapping[str, str], place: object, trust: bool) -> None:
    """Import the classes that a file names, where the user trusts them; nothing is imported otherwise.

    Args:
        named: the option that each class is the value of, by the class.
        place: the file.
        trust: whether the user trusts it.

    Raises:
        UserError: there are such classes and they aren't trusted, or one can't be imported.
    """
    if named and not trust:
        first = next(iter(named))
        raise UserError(
            f"{shown(place)} names the class {shown(first)}: importing it would run the code of {read(first).module}, "
            "which is not done without trust=true",
            accepted="classes that you wrote, or whose author you would let run programs here, with trust=true",
            advice="trust=true",
        )
    for name, option in named.items():
        find(name, option)


def code_of(named: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the source that classes are from, by package.module:Class; nothing is imported for it."""
    code = {}
    for own in map(read, named):
        found = getattr(sys.modules.get(own.module), own.name, None)
        if digest := _digest(_home(found)):
            code[f"{own.module}:{own.name}"] = digest
    return dict(sorted(code.items()))


def say_changed(code: Any, named: Iterable[str], place: object) -> None:
    """Print which of these classes have another source now than when a checkpoint was written.

    Args:
        code: what `code_of` returned then, as the checkpoint says, whose word is not taken for more.
        named: the classes; those that aren't imported are passed over.
        place: the checkpoint.
    """
    for name, digest in code_of(named).items():
        if isinstance(code, dict) and code.get(name, digest) != digest:
            text = f"the source of {shown(name)} has changed since {shown(place)} was written"
            print(f"{text}: it may compute something else", file=sys.stderr)


_SOURCES: dict[str, tuple[Any, str]] = {}
"""By module its spec, which an import or a reload makes anew, and the SHA-256 of the source when it was first seen."""


def _home(found: Any) -> ModuleType | None:
    """Return the module in which a class was defined, which may be another than that which was named."""
    return sys.modules.get(str(getattr(found, "__module__", None)))


def _digest(module: ModuleType | None) -> str | None:
    if module is None:
        return None
    spec, digest = _SOURCES.get(module.__name__, (None, ""))
    if spec is None or spec is not module.__spec__:
        try:
            digest = hashlib.sha256(inspect.getsource(module).encode(errors="surrogateescape")).hexdigest()
        except (OSError, TypeError):  # without a source
            return None
        _SOURCES[module.__name__] = module.__spec__, digest
    return digest


def load(
    text: str,
    option: str,
    base: type | None = None,
    places: Sequence[str] = (),
    keywords: Sequence[str] = (),
) -> Callable[..., Any]:
    """Import a class, or a function, that the user names.

    Args:
        text: its name.
        option: that it is the value of, for messages.
        base: what it must be a subclass of; None: anything that can be called.
        places: what it is given in order when it is built, for messages and a check of its parameters.
        keywords: what it is given by name, beside the text's own arguments.

    Raises:
        UserError: there is no such module or class, its code fails, or it can't be built with these arguments.
    """
    own = read(text)
    found = find(text, option)
    if base is None and not callable(found):
        raise UserError(f"{option}={text}: {own.name} can't be called", accepted="a function or a class")
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{option}={text}: {own.name} is no subclass of {base.__name__}",
            accepted=f"class {own.name}({base.__name__}), with from {base.__module__} import {base.__name__}",
        )
    try:
        signature = inspect.signature(found)
    except ValueError:  # of a function in C
        return found
    try:
        signature.bind(*places, **dict.fromkeys(keywords), **own.arguments)
    except TypeError as error:
        form = ", ".join([*places, *(f"{name}=..." for name in (*keywords, *own.arguments))])
        names = [name for name in signature.parameters if name not in (*places, *keywords)]
        wrong = next((name for name in own.arguments if name not in names), None)
        nearest = nearest_first(wrong, names)[:1] if wrong else []
        raise UserError(
            f"{option}={text}: {own.name}{signature} can't be built as {own.name}({form}): {error}",
            accepted=f"arguments of {own.name} itself: {', '.join(names) or 'none'}",
            advice=[f"{option}={{class: {own.module}:{own.name}, {name}: ...}}" for name in nearest],
        ) from None
    return found


def build(
    text: str,
    option: str,
    base: type | None = None,
    places: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> Any:
    """Import a class and build an object of it; as `load`, with the values by their names.

    Raises:
        UserError: as `load`, or the class itself refuses the values.
    """
    places, keywords = places or {}, keywords or {}
    made = load(text, option, base, [*places], [*keywords])
    try:
        return made(*places.values(), **keywords, **read(text).arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        given = ", ".join(f"{name}={value}" for name, value in {**places, **keywords}.items())
        raise UserError(
            f"{option}={text} can't be built{f' with {given}' if given else ''}: {described(error)}",
            accepted="what the class itself accepts",
            advice="mend the class, or another one",
        ) from error


def described(error: BaseException) -> str:
    """Return an error of the user's code with its type and, where it has one, the line of his file."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = ("<frozen ", str(Path(__file__).parent), *libraries)  # of Python, packages and this one
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def find(text: str, option: str) -> Any:
    """Import a module and return what it has under the name; one beside where the command runs is found, too.

    Raises:
        UserError: there is no such module, its code fails, or it has no such name.
    """
    own, setting, here = read(text), f"{option}={text}", os.getcwd()
    if own.module == "__main__":
        raise UserError(
            f"{setting}: __main__ is the command that runs, not a file of yours",
            accepted="the name of the file that holds the class, without .py",
            advice=f"{option}=my_module:{own.name}",
        )
    if "" not in sys.path and here not in sys.path:  # `unetseg train`, as `python -m unetseg.train` has it
        sys.path.append(here)
    try:
        module = importlib.import_module(own.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{own.module}.".startswith(f"{error.name}."):
            raise _import_fails(own, setting, error) from error
        raise UserError(
            f"{setting}: there is no module {error.name}",
            accepted=f"a module of an installed package, or a file in this folder, {shown(here)}",
            advice=f"the folder that holds {error.name}.py, or PYTHONPATH=FOLDER before the command",
        ) from None
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise _import_fails(own, setting, error) from error
    if not hasattr(module, own.name):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        nearest, file = nearest_first(own.name, names)[:9], getattr(module, "__file__", None)
        likely = f"{option}={own.module}:{nearest[0]}" if nearest else ""
        is_pythons = own.module in sys.stdlib_module_names
        raise UserError(
            f"{setting}: the module {own.module} has no {own.name}{f' ({shown(file)})' if file else ''}",
            accepted=", ".join(nearest) or "a module with classes",
            advice=f"another name of your file, as Python has a module {own.module}" if is_pythons else likely,
        )
    found = getattr(module, own.name)
    _digest(_home(found))  # now: the file may be edited while the process runs what it has imported
    return found


def _import_fails(own: Address, setting: str, error: BaseException) -> UserError:
    return UserError(
        f"{setting}: the import of {own.module} fails: {described(error)}",
        accepted='a module that can be imported; what it does as a program comes below if __name__ == "__main__":',
        advice=f'python -c "import {own.module}", which shows where',
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)  # Python writes inf and nan as names
    return value is None or isinstance(value, bool | int | str)
