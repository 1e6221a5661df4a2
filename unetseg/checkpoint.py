"""Checkpoints: what they say of themselves, in plain dicts, and how a model is made of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unetseg.config import Train, UserError, class_names
from unetseg.model import Segmenter

PREFIX = "model."
"""Of the Segmenter's names in the state dict: it is the attribute `model` of the LightningModule."""


def hyper_parameters(options: Train) -> dict[str, Any]:
    """Return what a checkpoint carries: dicts, lists, strings and numbers only, so that weights_only=True loads it."""
    return {
        "model": segmenter_arguments(options),
        "classes": list(class_names(options.data)),
        "data": options.data.model_dump(),
        "loss": options.loss,
        "seed": options.seed,
    }


def segmenter_arguments(options: Train) -> dict[str, Any]:
    """Return the arguments of Segmenter; the encoder's first weights are not part of what a model is."""
    return {
        **options.model.model_dump(exclude={"weights"}),
        "classes": len(class_names(options.data)),
        "channels_last": options.channels_last,
    }


def load(path: str | Path) -> tuple[Segmenter, dict[str, Any]]:
    """Load a checkpoint of unetseg.train, or the best one of a run folder.

    Returns:
        The model, in eval mode on the CPU, and the checkpoint's hyper-parameters.

    Raises:
        UserError: the file can't be read safely, or is no checkpoint of unetseg.
    """
    path = Path(path)
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"checkpoint={path} holds no checkpoints/best.ckpt\n  accepted: a run folder or a .ckpt file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        known = content["hyper_parameters"]
        weights = {name.removeprefix(PREFIX): w for name, w in content["state_dict"].items() if name.startswith(PREFIX)}
        model = Segmenter(weights=None, **known["model"])
        model.load_state_dict(weights)
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} can't be loaded: {reason}\n  accepted: a checkpoint that unetseg.train has written"
        ) from None
    return model.eval(), known
