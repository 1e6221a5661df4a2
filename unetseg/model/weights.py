"""Encoder weights from a local file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from unetseg.errors import UserError, first_line
from unetseg.model import archive

# torchvision's DenseNet files of before 2018 write denselayer1.norm.1.weight for denselayer1.norm1.weight
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
CLASSIFIER = ("fc.", "classifier.", "head.", "last_linear.")
"""First letters of the names of layers that a classifier has and an encoder doesn't."""
COUNTER = ".num_batches_tracked"
"""Ending of the names of batch normalisation's counters, which old files lack; they have no effect."""


@dataclass(frozen=True)
class MatchedNames:
    """The names of a file's weights that the encoder has, and those that only one of the two has.

    Examples:
        >>> print(MatchedNames(matched=["conv1.weight"], missing=[], unexpected=["fc.weight"]))
        1 matched, 0 missing, 1 unexpected
          unexpected: fc.weight
    """

    matched: list[str]
    missing: list[str]
    """Names of the encoder that the file doesn't have, or has in another shape: they keep their random start."""
    unexpected: list[str]
    """Names of the file that the encoder doesn't have, e.g. the classifier's."""

    @property
    def are_another_encoders(self) -> bool:
        """Whether more is missing or unexpected than a classifier's own layers and counters."""
        missing = [name for name in self.missing if not name.endswith(COUNTER)]
        return bool(missing) or any(not name.startswith(CLASSIFIER) for name in self.unexpected)

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        lines += [
            f"  {kind}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            for kind, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        return "\n".join(lines)


def load_encoder(encoder: nn.Module, path: str | Path, *, strict: bool = True) -> MatchedNames:
    """Load a state dict, plain as torchvision's and smp's are, into an encoder.

    Args:
        encoder: the encoder of a SkipUnet.
        path: a .safetensors file, or a .pth file that torch.load reads with weights_only=True.
        strict: refuse the weights of another encoder; False loads those that fit, and leaves the others random.

    Returns:
        The names that matched; a name whose shape differs counts as missing.

    Raises:
        UserError: the file can't be read, is of another encoder, or not one of its names fits.
    """
    try:
        state = archive.state_dict(Path(os.path.expanduser(path)))
        archive.check_finite(state)
    except Exception as error:  # damaged bytes make the unpickler fail in many ways
        raise UserError(
            f"model.weights={path} can't be read: {first_line(error)}", accepted="a state dict of tensors"
        ) from None
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    own = encoder.state_dict()
    stem = first_convolution(own)
    if stem in state and state[stem].dim() == 4:
        state[stem] = for_channels(state[stem], own[stem].shape[1])
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    names = MatchedNames(
        matched=sorted(fitting),
        missing=sorted(own.keys() - fitting.keys()),
        unexpected=sorted(state.keys() - own.keys()),
    )
    if not fitting or (strict and names.are_another_encoders):
        fits = "is not of this encoder" if fitting else "fits no parameter of the encoder"
        ways = ("the model.encoder that the file was made for", "model.strict_weights=false, which takes what fits")
        raise UserError(
            f"model.weights={path} {fits}: {names}",
            accepted="a state dict of the same encoder, named as torchvision and smp name it",
            advice=ways if fitting else ways[0],
        )
    # nn.Module's own method: smp's encoders override it without `strict`
    nn.Module.load_state_dict(encoder, fitting, strict=False)
    return names


def first_convolution(encoder: dict[str, Tensor]) -> str:
    """Return the name of the first convolution's weight in an encoder's state dict."""
    return next(name for name, value in encoder.items() if value.dim() == 4)


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution's weight, Ox3xhxw, for so many channels, as smp adapts it; others stay as they are.

    One channel gets the sum over RGB. Several get RGB's weights in turn, times 3 / channels, so that the output keeps
    its size.
    """
    if weight.shape[1] != 3 or channels == 3:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [channel % 3 for channel in range(channels)]] * (3 / channels)
