"""What an option may be: errors that list the accepted values, the nearest first."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import PydanticCustomError

from unetseg.names import LEVELS, nearest_first


def rejected(accepted: str, advice: str = "") -> PydanticCustomError:
    """Return the error that a validator raises: what would be accepted, and what to try."""
    return PydanticCustomError("rejected", "{accepted}", {"accepted": accepted, "advice": advice})


def one_of(value: object, names: Sequence[str], more: str = "") -> str:
    """Return `value` if it is among `names`; otherwise raise, with the nearest names first."""
    if value in names:
        return str(value)
    ordered = nearest_first(str(value), names)
    raise rejected(f"{', '.join(ordered)}{more}", ordered[0])


def one_or_per_level(value: object, names: Sequence[str], key: str) -> str | list[str]:
    """Return a name or a list of LEVELS names, finest level first."""
    example = [names[-1], *[names[0]] * (LEVELS - 1)]
    more = f"; or one per level, {LEVELS} in all, finest first: {key}=[{','.join(example)}]"
    if not isinstance(value, list | tuple):
        return one_of(value, names, more)
    if len(value) != LEVELS:
        raise rejected(f"{', '.join(names)}{more}", f"[{','.join(example)}]")
    return [one_of(entry, names, more) for entry in value]


@functools.cache
def trainer_arguments() -> tuple[str, ...]:
    """Return the names that Lightning's Trainer accepts, read from its source: importing it takes twelve seconds."""
    root = importlib.util.find_spec("lightning").submodule_search_locations[0]  # type: ignore[union-attr,index]
    tree = ast.parse((Path(root) / "pytorch/trainer/trainer.py").read_text())
    init = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    ours = {"self", "logger", "callbacks", "default_root_dir", "enable_checkpointing", "plugins", "inference_mode"}
    return tuple(a.arg for a in init.args.args + init.args.kwonlyargs if a.arg not in ours)


def written(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(written(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
