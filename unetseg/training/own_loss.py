"""A loss of the user's own class, tried before it is trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetseg import classes as own_classes
from unetseg.errors import UserError
from unetseg.model.trial import build_tried, try_out
from unetseg.names import IGNORE

OPTION = "loss"
"""What names it."""


def check_loss(loss: str) -> None:
    """Raise a UserError where a class of the user's own can't be imported, or built as a loss is."""
    own_classes.load(loss, OPTION, nn.Module)


def own_loss(loss: str, classes: int) -> nn.Module:
    """Return a loss of the user's own class, which has been tried.

    The class is an nn.Module, built with its own arguments alone. It maps logits BxKxHxW float and classes BxHxW uint8,
    IGNORE included, to a scalar that has a gradient, which is zero at the pixels of IGNORE. A subclass of Loss sums
    over the processes of a run. Its parameters are optimised with the network's.

    Raises:
        UserError: it is not so.
    """
    setting = f"{OPTION}={loss}"
    advice = f"counts = target != {IGNORE}; the cost of each pixel times counts, divided by counts.sum()"

    def inputs() -> list[Tensor]:
        logits = torch.randn(2, 1 if classes == 2 else classes, 16, 12)
        target = torch.arange(logits[:, 0].numel()).remainder(classes + 1).view(2, 16, 12)
        target[target == classes] = IGNORE
        return [logits, target.to(torch.uint8)]

    def attempt(built: nn.Module) -> None:
        for is_training in (True, False):
            check(built.train(is_training))

    def check(built: nn.Module) -> None:
        logits, target = inputs()
        try:
            of_logits, _ = try_out(built, setting, [logits, target], ())
        except UserError as error:
            if f"{IGNORE} is out of bounds" in str(error):  # as torch's cross-entropy says it
                raise UserError(f"{setting} counts pixels of {IGNORE}", accepted=ignored, advice=advice) from error
            raise
        at_ignored = None if of_logits is None else of_logits.movedim(1, -1)[target == IGNORE]
        if at_ignored is not None and at_ignored.any():
            raise UserError(f"{setting} counts pixels of {IGNORE}", accepted=ignored, advice=advice)

    ignored = f"a loss that leaves out target == {IGNORE}, the pixels that are ignored: their gradient is zero"
    built: nn.Module = build_tried(loss, OPTION, nn.Module, {}, {}, attempt, inputs)
    return built
