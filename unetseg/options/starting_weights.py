"""What `model.weights` may name, by the look of it: nothing is read."""

from __future__ import annotations

from pathlib import Path

from unetseg.huggingface import ADDRESS, is_model_folder
from unetseg.names import ENCODER_ONLY
from unetseg.options.messages import rejected

OF_ENCODERS = (".pth", ".safetensors")
"""Endings of files that hold an encoder's state dict."""
ACCEPTED = (
    "imagenet, null, or the path of an encoder's state dict (.pth, .safetensors), of a run folder, of a .ckpt of "
    "unetseg.train or of a folder of unetseg.save_pretrained, that exists, or hf:USER/NAME[@REVISION]; with encoder: "
    "before it the encoder alone"
)


def check_weights(value: str) -> None:
    """Raise an error of the schema where a value of `model.weights` names nothing to start from.

    Examples:
        >>> check_weights("imagenet"), check_weights("encoder:hf:owner/name@v1")
        (None, None)
    """
    if not may_be_there(value):
        raise rejected(ACCEPTED, "null")


def may_be_there(value: str) -> bool:
    """Return whether this names what can be downloaded, or a file or folder that exists."""
    place = value.removeprefix(ENCODER_ONLY)
    path = Path(place)
    is_file = path.suffix in (*OF_ENCODERS, ".ckpt") and path.is_file()
    is_run = any((path / "checkpoints" / name).is_file() for name in ("best.ckpt", "last.ckpt"))
    return value == "imagenet" or bool(ADDRESS.fullmatch(place)) or is_file or is_run or is_model_folder(path)


def are_of_a_whole_encoder(value: str) -> bool:
    """Return whether these are weights of an encoder as published: with short skips and normalisation."""
    return value == "imagenet" or value.endswith(OF_ENCODERS)
