"""Encoder weights from a local file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from unetseg.errors import UserError, first_line

# torchvision's DenseNet files of before 2018 write denselayer1.norm.1.weight for denselayer1.norm1.weight
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class MatchedNames:
    """Which names of a file found their place in the encoder."""

    matched: list[str]
    missing: list[str]
    """Names of the encoder that the file doesn't have, or has in another shape: they keep their random start."""
    unexpected: list[str]
    """Names of the file that the encoder doesn't have, e.g. the classifier's."""

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        lines += [
            f"  {kind}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            for kind, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        return "\n".join(lines)


def load_encoder(encoder: nn.Module, path: str | Path) -> MatchedNames:
    """Load a state dict, plain as torchvision's and smp's are, into an encoder.

    Args:
        encoder: the encoder of a SkipUnet.
        path: a .safetensors file, or a .pth file that torch.load reads with weights_only=True.

    Returns:
        What matched; a name whose shape differs counts as missing.

    Raises:
        UserError: the file can't be read, or not one of its names fits.
    """
    try:
        state = load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        raise UserError(
            f"model.weights={path} can't be read: {first_line(error)}", accepted="a state dict of tensors"
        ) from None
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    own = encoder.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    names = MatchedNames(
        matched=sorted(fitting),
        missing=sorted(own.keys() - fitting.keys()),
        unexpected=sorted(state.keys() - own.keys()),
    )
    if not fitting:
        raise UserError(
            f"model.weights={path} fits no parameter of the encoder ({names})",
            accepted="a state dict of the same encoder, named as torchvision and smp name it",
            advice="the model.encoder that the file was made for",
        )
    # nn.Module's own method: smp's encoders override it without `strict`
    nn.Module.load_state_dict(encoder, fitting, strict=False)
    return names
