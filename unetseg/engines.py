"""Engines: whatever maps pictures to probabilities of classes, behind one interface.

Legend: B pictures, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from unetseg.config import UserError
from unetseg.model import Segmenter
from unetseg.model.segmenter import probabilities

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """A trained network in some runtime.

    Attributes:
        classes: names of the C classes.
        size: side of the square that pictures had in training and in every score of the model.
    """

    classes: tuple[str, ...]
    size: int

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB, any H and W from 32 on, to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        ...


class TorchEngine:
    """A Segmenter on a device.

    Args:
        model: in eval mode; it is moved to the device.
        classes: names of the classes.
        size: see Engine.
        device: "auto" (an accelerator if there is one), or whatever torch.device takes: "cpu", "cuda", "cuda:1".
        precision: float32 | bfloat16; bfloat16 runs the convolutions in it and gives float32 probabilities.

    Raises:
        UserError: a device that isn't there, an unknown precision.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        classes: tuple[str, ...],
        size: int,
        device: str = "auto",
        precision: str = "float32",
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision} is not accepted\n  accepted: {', '.join(PRECISIONS)}")
        self.classes = classes
        self.size = size
        self.device = the_device(device)
        self.dtype = PRECISIONS[precision]
        try:
            self.model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device
            raise UserError(f"device={device} can't be used: {error}\n  try: device=cpu") from None

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(batch)
        return probabilities(logits.float()).cpu().numpy()


def the_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the accelerator, the CPU where there is none."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name} is not accepted\n  accepted: auto, cpu, cuda, cuda:1, ...") from None
