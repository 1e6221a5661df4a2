"""A model's answers in an evaluation: of squares, or of whole pictures in tiles where it was trained on crops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from unetseg.data.pictures import ArrayPicture
from unetseg.data.tiling import OVERLAP, argmax, enlarge_bands, predict_tiles
from unetseg.data.view import View
from unetseg.model.segmenter import class_map, probabilities


def answer(
    model: nn.Module, images: Tensor, view: View, size: tuple[int, int], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return a model's logits and class maps for the images of a batch.

    Args:
        model: maps BxDxhxw to logits BxKxhxw.
        images: BxDxSxS; where the view has crops, one whole picture as the view scales it, 1xDxhxw.
        view: how the model sees pictures.
        size: H and W of the masks.
        batch_size: tiles at once.

    Returns:
        float32 logits, BxKxHxW, and classes, BxHxW uint8. Those of a whole picture are what prediction gives: the
        blended probabilities of its tiles, of which the logits are the logarithms.
    """
    if view.crop is None:
        logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        return logits, class_map(logits)

    def predict(tiles: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(images.device).permute(0, 3, 1, 2)
        return probabilities(model(batch).float()).cpu().numpy()

    picture = ArrayPicture(np.ascontiguousarray(images[0].permute(1, 2, 0).cpu().numpy()))
    sizes = {"tile": view.crop, "overlap": min(OVERLAP, view.crop // 2), "batch_size": batch_size}
    bands = predict_tiles(picture, predict, **sizes)
    if (picture.height, picture.width) != size:
        bands = enlarge_bands(bands, *size)
    whole = np.concatenate(list(bands))
    classes = torch.from_numpy(argmax(whole)[None]).to(images.device)
    least = torch.finfo(torch.float32).tiny
    logs = torch.from_numpy(whole.transpose(2, 0, 1)[None]).to(images.device).clamp(min=least).log()
    return (logs[:, 1:] - logs[:, :1] if whole.shape[2] == 2 else logs), classes
