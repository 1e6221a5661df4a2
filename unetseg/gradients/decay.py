"""What weight decay alone makes of a weight: a step is told apart from it, as decay moves weights without any gradient.

Decoupled decay (Loshchilov and Hutter 2019, AdamW) multiplies a weight w by 1 - lr * weight_decay, apart from its
gradient. Decay that is added to the gradient as weight_decay * w (SGD's, Adam's) goes through the optimizer's averages,
and can't be told apart from the gradient's own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

_NAMES = ("AdamW", "Adafactor", "Muon")
DECOUPLED = tuple(getattr(torch.optim, name) for name in _NAMES if hasattr(torch.optim, name))  # Muon since 2.9
"""Optimizers of torch whose decay is always apart from the gradient; that of others is told by their groups."""


@dataclass(frozen=True)
class Decay:
    """The decoupled decay of one step, rounded as torch.optim rounds it.

    Args:
        lr: learning rate, a number or a tensor with one entry.
        weight_decay: of the optimizer.
        way: how the step is taken: "fused" (a kernel for all of it, which reads lr in float64), "foreach" or "single".
        skipped: a tensor with one entry that is 1 where the gradients were inf and the kernel took no step, else 0.

    Examples:
        >>> Decay(lr=0.5, weight_decay=0.5)(torch.tensor([4.0, -2.0]))
        tensor([ 3.0000, -1.5000])
    """

    lr: float | Tensor
    weight_decay: float
    way: str = "single"
    skipped: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """Return what the decay alone makes of the weight, in its own dtype."""
        decayed = weight.detach().clone()
        if self.way == "foreach":  # on a CPU it rounds the factor to the weight's dtype, and mul_ does not
            torch._foreach_mul_([decayed], 1 - self.lr * self.weight_decay)
        elif self.way == "single":
            decayed.mul_(1 - self.lr * self.weight_decay)
        else:
            lr = self.lr.double() if isinstance(self.lr, Tensor) else self.lr
            if weight.is_cuda:  # PyTorch's fused_adam_utils.cuh: w -= lr * weight_decay * w
                exact = weight.detach().double()
                decayed.copy_(exact - lr * self.weight_decay * exact)
            else:
                decayed.mul_(1 - lr * self.weight_decay)
        return decayed if self.skipped is None else torch.where(self.skipped > 0, weight, decayed)


def decay_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Decay | None:
    """Return the decoupled decay of the step that an optimizer has just taken; None if it has none.

    Args:
        optimizer: asked in a hook after its step.
        group: one of its param_groups.
    """
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, DECOUPLED))
    if not decoupled or not group.get("weight_decay"):
        return None
    lr = group["lr"]
    return Decay(
        lr=lr.detach().clone() if isinstance(lr, Tensor) else lr,
        weight_decay=group["weight_decay"],
        way=next((way for way in ("fused", "foreach") if group.get(way)), "single"),
        skipped=getattr(optimizer, "found_inf", None),  # GradScaler's, while a fused optimizer takes a step
    )
