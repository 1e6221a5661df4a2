"""A model's answers in an evaluation: of squares, or of whole pictures in tiles where it was trained on crops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from unetseg.data.pictures import ArrayPicture
from unetseg.data.tiling import OVERLAP, argmax, enlarge_bands, predict_tiles
from unetseg.data.view import View
from unetseg.errors import Halt
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

    Raises:
        Halt: a logit is NaN or infinite.
    """
    if view.crop is None:
        logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        classes = class_map(logits)
    else:
        logits, classes = _of_tiles(model, images, view.crop, size, batch_size)
    if not logits.isfinite().all():  # such a pixel would get a class, and the class a score
        raise Halt(
            "the model's outputs for some pictures are NaN or inf: no score is counted\n"
            "  its weights or its sums are too large for the number format\n"
            "  try: precision 32-true or bf16-mixed instead of 16-mixed; else train with a smaller optimizer.lr"
        )
    return logits, classes


def _of_tiles(
    model: nn.Module, images: Tensor, tile: int, size: tuple[int, int], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the logits and class maps of one whole picture, 1xDxhxw."""

    def predict(tiles: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(images.device).permute(0, 3, 1, 2)
        return probabilities(model(batch).float()).cpu().numpy()

    picture = ArrayPicture(np.ascontiguousarray(images[0].permute(1, 2, 0).cpu().numpy()))
    bands = predict_tiles(picture, predict, tile=tile, overlap=min(OVERLAP, tile // 2), batch_size=batch_size)
    if (picture.height, picture.width) != size:
        bands = enlarge_bands(bands, *size)
    whole = np.concatenate(list(bands))
    classes = torch.from_numpy(argmax(whole)[None]).to(images.device)
    least = torch.finfo(torch.float32).tiny
    logs = torch.from_numpy(whole.transpose(2, 0, 1)[None]).to(images.device).clamp(min=least).log()
    return (logs[:, 1:] - logs[:, :1] if whole.shape[2] == 2 else logs), classes
