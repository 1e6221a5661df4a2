"""A training step on resident tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unetseg.model import Segmenter
from unetseg.training.build import best_precision
from unetseg.training.losses import make_loss


def batch(size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images, Bx3xSxS uint8, and masks, BxSxS uint8, as the loader would."""
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return images, torch.randint(0, 2, (batch_size, size, size), dtype=torch.uint8)


def stepper(model: Segmenter, images: torch.Tensor, masks: torch.Tensor) -> Callable[[], None]:
    """Return a function that takes one training step in the best number format of the device that all are on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    criterion = make_loss("dice", 2)
    device = images.device.type
    mixed = best_precision(device) == "bf16-mixed"

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            logits = model(images)
        optimizer.zero_grad()
        criterion(logits.float(), masks).backward()
        optimizer.step()

    return step
