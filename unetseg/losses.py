"""Losses over logits; pixels of the class IGNORE take no part."""

from __future__ import annotations

from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.config import IGNORE


class Bce(nn.Module):
    """Binary cross-entropy, the mean over the pixels that count."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits Bx1xHxW and classes BxHxW (0, 1 or IGNORE) to a scalar >= 0."""
        counts = (target != IGNORE).float()
        truth = (target == 1).float()
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
        return (loss * counts).sum() / counts.sum().clamp(min=1)


class CrossEntropy(nn.Module):
    """Cross-entropy over C classes, the mean over the pixels that count."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxCxHxW and classes BxHxW (0 ... C-1 or IGNORE) to a scalar >= 0."""
        total = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")
        return total / (target != IGNORE).sum().clamp(min=1)


class Dice(nn.Module):
    """One minus the Dice coefficient of the batch (smp's), the mean over classes where there are more than two."""

    def __init__(self, classes: int):
        super().__init__()
        self.dice = DiceLoss(BINARY_MODE if classes == 2 else MULTICLASS_MODE, ignore_index=IGNORE)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW (IGNORE included) to a scalar in 0..1."""
        return self.dice(logits, target.long())


class Sum(nn.Module):
    """The sum of losses."""

    def __init__(self, *terms: nn.Module):
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW to the sum of the terms."""
        return sum((term(logits, target) for term in self.terms), start=logits.new_zeros(()))


def make_loss(name: str, classes: int) -> nn.Module:
    """Return the loss of that name: dice | bce | bce_dice | cross_entropy.

    Two classes have one logit; their cross-entropy is the binary one. config.py refuses bce for more classes.
    """
    match name:
        case "dice":
            return Dice(classes)
        case "bce_dice":
            return Sum(Bce(), Dice(classes))
        case "cross_entropy" if classes > 2:
            return CrossEntropy()
        case _:
            return Bce()
