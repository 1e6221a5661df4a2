"""A training step on resident tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unetseg.model import Segmenter
from unetseg.training.losses import make_loss
from unetseg.training.precision import MIXED, best_precision

WARM_UP = 2
"""Steps before a clock starts: the first chooses kernels and allocates."""


def best_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def batch(size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images, Bx3xSxS uint8, and masks, BxSxS uint8, on the best device, as the loader would."""
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    masks = torch.randint(0, 2, (batch_size, size, size), dtype=torch.uint8)
    return images.to(best_device()), masks.to(best_device())


def stepper(
    model: Segmenter,
    images: torch.Tensor,
    masks: torch.Tensor,
    enter: Callable[[str, torch.Tensor], object] = lambda part, tensor: None,
    mixed: bool | None = None,
    fused: bool = True,
) -> Callable[[], None]:
    """Return a function that takes one training step on the device that all are on.

    Args:
        model: that is trained.
        images: of each step, as of `batch`.
        masks: likewise.
        enter: is told where what is none of the model's begins, and what goes in: other, loss, optimizer, other.
        mixed: whether convolutions are in bfloat16; None: in the device's best number format.
        fused: whether AdamW has one kernel for all that it does, as ours, or one for each operation.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused, foreach=not fused)
    criterion = make_loss("dice", 2)
    device = images.device.type
    mixed = best_precision(device) == MIXED if mixed is None else mixed

    def step() -> None:
        enter("other", images)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            logits = model(images)
        enter("loss", logits)
        optimizer.zero_grad()
        criterion(logits.float(), masks).backward()
        enter("optimizer", images)
        optimizer.step()
        enter("other", images)

    return step
