"""From a checkpoint to the model that it holds."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from unetseg.errors import UserError, first_line
from unetseg.model import archive, arguments
from unetseg.model.segmenter import Segmenter
from unetseg.names import LOSSES

PREFIX = "model."
"""Of the Segmenter's names in the state dict: it is the attribute `model` of the LightningModule."""
LARGEST_SIZE = 16384
"""Pixels of the square that a model was trained on: nothing that a checkpoint says may take all memory."""


def load(path: str | Path) -> tuple[Segmenter, dict[str, Any]]:
    """Load a checkpoint of unetseg.train, or the best one of a run folder.

    Returns:
        The model, in eval mode on the CPU, and the checkpoint's hyper-parameters.

    Raises:
        UserError: the file can't be read safely, is damaged, holds NaN, or is no checkpoint of unetseg.
    """
    file = file_of(path)
    try:
        content = archive.load(file)
        known = hyper_parameters(content)
        model = Segmenter(weights=None, **known["model"])
        weights = {name.removeprefix(PREFIX): w for name, w in content["state_dict"].items() if name.startswith(PREFIX)}
        if not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise ValueError("its weights are no tensors")
        model.load_state_dict(weights)
        archive.check_finite(model.state_dict())
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        raise _unusable(file, error) from None
    return model.eval(), known


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's hyper-parameters alone; as `load` otherwise."""
    file = file_of(path)
    try:
        return hyper_parameters(archive.load(file))
    except Exception as error:
        raise _unusable(file, error) from None


def file_of(path: str | Path) -> Path:
    """Return the file itself, or a run folder's best checkpoint; its last, with a word, where it has no best."""
    path = Path(path)
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (last := file.with_name("last.ckpt")).is_file():
        print(f"{path} holds no best.ckpt; its last.ckpt is taken", file=sys.stderr)
        return last
    if not file.is_file():
        raise UserError(f"checkpoint={path} holds no checkpoints/best.ckpt", accepted="a run folder or a .ckpt file")
    return file


def hyper_parameters(content: Any) -> dict[str, Any]:
    """Return the hyper-parameters among a checkpoint's content.

    Raises:
        ValueError: they are none that training writes.
    """
    known = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(known, dict):
        raise ValueError("it holds no hyper-parameters of unetseg")
    arguments.check(known.get("model"), arguments.SEGMENTER)
    names, data, count = known.get("classes"), known.get("data"), known["model"]["classes"]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its classes are not {count} names")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError("it doesn't say what data it was trained on")
    numbers = {
        "data.size": (data.get("size"), arguments.whole(32, LARGEST_SIZE)),
        "loss": (known.get("loss"), arguments.among(LOSSES)),
        "seed": (known.get("seed"), arguments.whole(0, 2**63)),
        "data.range": (data.get("range"), ("null, or [low, high]", _is_range)),
    }
    for name, (value, (accepted, fits)) in numbers.items():
        if not fits(value):
            raise ValueError(f"{name}={str(value)[:80]!r} is not accepted, but {accepted}")
    return known


def _is_range(value: Any) -> bool:
    if value is None:
        return True
    numbers = isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    return numbers and all(map(math.isfinite, value)) and value[0] < value[1]


def _unusable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} can't be loaded: {first_line(error)}", accepted="a checkpoint that unetseg.train has written"
    )
