"""Short skips: by which way the gradient of a residual block's input came, by the addition or by the residual branch.

In a residual block H = F(x) + x (He et al. 2016) the gradient of the input is dL/dx = dL/dH (dF/dx + 1). The residual
branch reads a view of x, and a tensor hook on it sees g_residual; g_identity is the rest. Where x is added after a
projection P, both P and F read views of x, so that a long skip that leaves at the same tensor is not counted.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unetseg.gradients.blocks import stages_of
from unetseg.gradients.passes import BackwardPasses, Split, products, split_metrics

RESIDUAL, PROJECTION = 0, 1
LAYER = r"^(.*\.)?layer([1-9])\."
"""The start of a block's name in a ResNet, whose layers are its stages."""


class ShortSkips:
    """Splits the gradient at the input of every residual block of an encoder.

    A block is a module with a `conv1`, which begins the residual branch, and a `downsample`, which is the projection or
    None: the ones of torchvision, timm and segmentation-models-pytorch.

    Args:
        encoder: has the blocks, or has none.
        precision: of the sums.

    Attributes:
        blocks: by their names, such as encoder1.0, in forward order.
        sums: Bx4 sums of `products`, of g and g_residual for each of the B blocks.
    """

    def __init__(self, encoder: nn.Module, precision: torch.dtype):
        self.blocks = residual_blocks(encoder)
        device = next(encoder.parameters()).device
        self.sums = torch.zeros(len(self.blocks), 4, dtype=precision, device=device)
        self.passes: BackwardPasses
        self._splits = [
            Split(sums, products, parts=2, others=False) if is_projected(block) else Split(sums, products)
            for sums, block in zip(self.sums, self.blocks.values(), strict=True)
        ]
        self._inputs: dict[int, weakref.ref[Tensor]] = {}
        self._reached: set[int] = set()

    def watch(self, passes: BackwardPasses) -> list[RemovableHandle]:
        """Set the hooks that split the gradients of these backward passes, and return their handles."""
        self.passes = passes
        handles = []
        for row, block in enumerate(self.blocks.values()):
            handles.append(block.register_forward_pre_hook(partial(self._on_input, row)))
            handles.append(block.conv1.register_forward_pre_hook(partial(self._on_branch, row, RESIDUAL)))
            if is_projected(block):
                handles.append(block.downsample.register_forward_pre_hook(partial(self._on_branch, row, PROJECTION)))
        return handles

    def metrics(self, sums: Tensor) -> dict[str, dict[str, float]]:
        """Return the numbers of each block that a gradient can reach, see `Record`, from the sums over all ranks."""
        columns = split_metrics(sums.cpu().double(), "residual", "identity")
        return {
            name: {
                **{metric: float(values[row]) for metric, values in columns.items()},
                "projected": float(is_projected(block)),
            }
            for row, (name, block) in enumerate(self.blocks.items())
            if row in self._reached
        }

    def _on_input(self, row: int, block: nn.Module, inputs: tuple[Tensor, Any]) -> tuple[Any, ...] | None:
        """Remember the input x of a block; without a projection the block gets a view of it, which it alone reads.

        With a projection it gets x itself: gradients are added in the order of the readers, and x may leave by a long
        skip, too. One more view would change that order, and with it the last bit of the sum.
        """
        x, *others = inputs
        if not torch.is_grad_enabled() or not x.requires_grad:
            return None
        if not is_projected(block):
            x = x.view_as(x)
        self._inputs[row] = weakref.ref(x)
        return (x, *others)

    def _on_branch(self, row: int, part: int, branch: nn.Module, inputs: tuple[Tensor, Any]) -> tuple[Any, ...] | None:
        """Hand a view of x to a branch of its block."""
        x, *others = inputs
        if not torch.is_grad_enabled() or not x.requires_grad:
            return None
        if row not in self._inputs or self._inputs[row]() is not x:
            if torch._C._current_graph_task_id() >= 0 and x.is_leaf:
                self.passes.refusal = (
                    "a residual block is recomputed from a copy of its input, which parts its branches from it: give "
                    "torch.utils.checkpoint use_reentrant=False"
                )
            return None  # else it is no branch that begins with x, as in blocks that normalise first
        self._reached.add(row)
        return (self.passes.watch(self._splits[row], x, part), *others)


def residual_blocks(encoder: nn.Module) -> dict[str, Any]:
    """Return the residual blocks of an encoder in forward order, by their stage and index: encoder1.0, ..."""
    blocks = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(getattr(module, "conv1", None), nn.Module) and hasattr(module, "downsample")
    }
    if all(re.match(LAYER, name) for name in blocks):
        return {re.sub(LAYER, r"encoder\2.", name): module for name, module in blocks.items()}
    stage_of = {id(weight): stage for stage, weights in stages_of(encoder).items() for weight in weights}
    index: Counter[str] = Counter()
    named = {}
    for module in blocks.values():
        stage = stage_of[id(next(module.parameters()))]
        named[f"{stage}.{index[stage]}"] = module
        index[stage] += 1
    return named


def is_projected(block: Any) -> bool:
    """Return whether a residual block adds a projection of its input."""
    return isinstance(block.downsample, nn.Module) and not isinstance(block.downsample, nn.Identity)  # timm's RegNet
