"""From a checkpoint to the model that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unetseg.errors import UserError, first_line
from unetseg.model.segmenter import Segmenter

PREFIX = "model."
"""Of the Segmenter's names in the state dict: it is the attribute `model` of the LightningModule."""


def load(path: str | Path) -> tuple[Segmenter, dict[str, Any]]:
    """Load a checkpoint of unetseg.train, or the best one of a run folder.

    Returns:
        The model, in eval mode on the CPU, and the checkpoint's hyper-parameters.

    Raises:
        UserError: the file can't be read safely, or is no checkpoint of unetseg.
    """
    path = Path(path)
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    last = file.with_name("last.ckpt")
    if path.is_dir() and not file.exists() and last.exists():
        print(f"{file} is not there, as no validation has run: taking last.ckpt")
        file = last
    if not file.is_file():
        raise UserError(f"checkpoint={path} holds no checkpoints/best.ckpt", accepted="a run folder or a .ckpt file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        known = content["hyper_parameters"]
        weights = {name.removeprefix(PREFIX): w for name, w in content["state_dict"].items() if name.startswith(PREFIX)}
        model = Segmenter(weights=None, **known["model"])
        model.load_state_dict(weights)
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        raise UserError(
            f"{file} can't be loaded: {first_line(error)}", accepted="a checkpoint that unetseg.train has written"
        ) from None
    return model.eval(), known
