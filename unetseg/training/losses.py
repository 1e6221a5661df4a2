"""Losses over logits; pixels of the class IGNORE take no part.

Each is a ratio of sums over a batch. While training, the sums run over the batches of all processes, so that the loss
and, with DDP, its gradient are those of one process with the joined batch. In evaluation, where one process may have a
batch more than another, the sums are those of this process, and no process waits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg.names import IGNORE
from unetseg.training.distributed import sum_over_processes


class Loss(nn.Module):
    """A loss from sums over the batch: of all processes in train mode, of this process in eval mode."""

    def sum_over_batch(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Return this process's sums, of one shape and dtype, or those of all processes."""
        return sum_over_processes(torch.stack(sums)).unbind() if self.training else sums


class Bce(Loss):
    """Binary cross-entropy, the mean over the pixels that count.

    Examples:
        >>> Bce()(torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [1, 255]]])).item()  # log 2
        0.6931471824645996
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits Bx1xHxW and classes BxHxW (0, 1 or IGNORE) to a scalar >= 0."""
        counts = (target != IGNORE).to(logits.dtype)
        truth = (target == 1).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
        total, pixels = self.sum_over_batch((loss * counts).sum(), counts.sum())
        return total / pixels.clamp(min=1)


class CrossEntropy(Loss):
    """Cross-entropy over C classes, the mean over the pixels that count.

    Examples:
        >>> CrossEntropy()(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 255]]])).item()  # log 4
        1.3862943649291992
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxCxHxW and classes BxHxW (0 ... C-1 or IGNORE) to a scalar >= 0."""
        loss = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")
        total, pixels = self.sum_over_batch(loss, (target != IGNORE).sum().to(loss.dtype))
        return total / pixels.clamp(min=1)


class Dice(Loss):
    """One minus the soft Dice coefficient 2 sum(p t) / (sum(p) + sum(t)) of the batch (Milletari et al. 2016, V-Net).

    p are probabilities, t is 1 on the class's pixels. The mean over C > 2 classes; a class that the batch does not
    show counts as 0. The operations are those of smp's DiceLoss, and so are the values to the last bit.

    Examples:
        >>> target = torch.tensor([[[0, 1], [1, 1]]])
        >>> Dice()(torch.where(target == 1, 50.0, -50.0)[:, None], target).item()  # a perfect prediction
        0.0
    """

    EPS = 1e-7

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW (K = 1: two classes) and classes BxHxW (IGNORE included) to a scalar in 0..1."""
        target = target.unsqueeze(1)
        if logits.shape[1] == 1:
            probability, truth = F.logsigmoid(logits).exp(), target == 1
        else:
            labels = torch.arange(logits.shape[1], device=target.device).view(1, -1, 1, 1)
            probability, truth = logits.log_softmax(1).exp(), target == labels
        p, t = (probability * (target != IGNORE)).flatten(2), truth.to(logits.dtype).flatten(2)
        sums = p.sum((0, 2)), t.sum((0, 2)), torch.linalg.vector_norm(p - t, ord=1, dim=(0, 2))
        predicted, true, apart = self.sum_over_batch(*sums)
        overlap = (predicted + true - apart) / 2  # sum(p t), as t is 0 or 1
        wrong, missed = predicted - overlap, true - overlap
        dice = overlap / (overlap + wrong / 2 + missed / 2).clamp_min(self.EPS)
        return ((1 - dice) * (true > 0)).mean()


class Sum(nn.Module):
    """The sum of losses.

    Examples:
        >>> loss = Sum(Bce(), Dice())
        >>> logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [1, 1]]])
        >>> bool(loss(logits, target) == Bce()(logits, target) + Dice()(logits, target))
        True
    """

    def __init__(self, *terms: nn.Module):
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW to the sum of the terms."""
        return sum((term(logits, target) for term in self.terms), start=logits.new_zeros(()))


def make_loss(name: str, classes: int) -> nn.Module:
    """Return the loss of that name: dice | bce | bce_dice | cross_entropy.

    Two classes have one logit; their cross-entropy is the binary one. schema.py refuses bce for more classes.
    """
    match name:
        case "dice":
            return Dice()
        case "bce_dice":
            return Sum(Bce(), Dice())
        case "cross_entropy" if classes > 2:
            return CrossEntropy()
        case _:
            return Bce()
