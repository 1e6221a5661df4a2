"""A model that is easily computed by hand, and checkpoints that needn't be trained."""

from pathlib import Path

import cv2
import numpy as np
import torch
from conftest import TINY

from unetseg.data.view import View


class Brightness:
    """The probability of class 1 is the mean brightness over (2 radius + 1)^2 pixels; beyond the border all is black.

    Attributes:
        shapes: of the batches that it was given.
    """

    classes = ("dark", "bright")
    view = View(64)

    def __init__(self, radius: int = 0):
        self.radius = radius
        self.shapes: list[tuple[int, ...]] = []

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 to Bx2xHxW float32."""
        self.shapes.append(images.shape)
        side = 2 * self.radius + 1
        grey = [image.astype(np.float32).mean(-1) / 255 for image in images]
        mean = np.stack([cv2.blur(plane, (side, side), borderType=cv2.BORDER_CONSTANT) for plane in grey])
        return np.stack([1 - mean, mean], axis=1)


def save_untrained(path: Path, *overrides: str) -> Path:
    """Write a checkpoint as training does, of random weights that don't call everything one class."""
    from unetseg.model import Segmenter, checkpoint
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.training import build

    options = compose("train", Train, [*TINY, "model.encoder=resnet18", *overrides])
    torch.manual_seed(0)
    model = Segmenter(weights=None, **build.segmenter_arguments(options))
    state = {f"{checkpoint.PREFIX}{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"hyper_parameters": build.hyper_parameters(options), "state_dict": state}, path)
    return path
