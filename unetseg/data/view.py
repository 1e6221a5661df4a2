"""How a model sees pictures: the same in training, evaluation and prediction, and kept in its checkpoint.

Legend: H x W pixels of a picture, S side of the square, N side of a crop, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Range = Sequence[float] | None
"""The two values of a picture of more than 8 bits that become black and white; None: 0 and 65535, for 16 bits."""
RGB = 3
"""With so many channels a picture is 8-bit RGB, whatever its file holds; with others its channels are as stored."""
COLOUR = (124, 116, 104)
"""The mean colour of ImageNet."""


@dataclass(frozen=True)
class View:
    """Whole pictures as squares, or crops and tiles of pictures at their own resolution.

    Examples:
        >>> View(256).resized(480, 640), View(256, fit="pad").resized(480, 640), View(crop=128).resized(480, 640)
        ((256, 256), (192, 256), (480, 640))
    """

    size: int = 256
    """S: whole pictures become SxS."""
    fit: str = "squash"
    """squash: a whole picture fills the square; pad: it keeps its shape, and the rest of the square is filled."""
    crop: int | None = None
    """N: the model is trained on crops of NxN and predicts in tiles of NxN; None: it sees whole pictures."""
    scale: float = 1.0
    """Factor by which a picture is resized before it is cropped or cut into tiles."""
    value_range: Range = None
    channels: int = RGB
    mean: Sequence[float] | None = None
    """Of each channel, in the values of the files; None with RGB: the encoder's own."""
    std: Sequence[float] | None = None
    shown: Sequence[int] | None = None
    """The channels that figures show as red, green and blue, or one as grey; None: the first three, or the first."""
    bands: Sequence[str] | None = None
    """The names of the channels, in their order, where each has a file of its own."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> View:
        """Return the view that the data section of a run's options states; older runs state less."""
        names = ("size", "fit", "crop", "scale", "channels", "mean", "std", "shown", "bands")
        stated = {name: data[name] for name in names if data.get(name) is not None}
        return cls(**stated, value_range=data.get("range"))

    @property
    def side(self) -> int:
        """Side of what the model gets in training: N or S."""
        return self.crop or self.size

    @property
    def fill(self) -> Sequence[float]:
        """What lies outside a picture, C values: the mean colour."""
        return COLOUR if self.channels == RGB or self.mean is None else self.mean

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which a picture of H x W is resized, before it is padded or cut."""
        if self.crop is None and self.fit == "squash":
            return self.size, self.size
        factor = self.scale if self.crop is not None else self.size / max(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))
