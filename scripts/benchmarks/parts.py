"""A training step divided among the blocks of its net: the time of each, its operations and its least memory traffic.

A block begins in the forward pass where the first of its modules does, and in the backward pass where the gradient of
its output is whole. So every moment of a step belongs to one part, and the parts add up to the step. What has no
weights of its own (a pooling) counts for the block before it, but for what lies within a module of the next (a decoder
block's upsampling).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

FORWARD, BACKWARD = "forward", "backward"
Part = tuple[str, str]
"""A block, or loss, optimizer or other, and FORWARD or BACKWARD."""


class Parts:
    """Reads something that grows, a clock or a counter, wherever a step passes from one part to the next.

    Args:
        model: whose forward pass is divided.
        blocks: the parameters of each block.
        read: returns what is read.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, Sequence[nn.Parameter]], read: Callable[[], Any]):
        self.read = read
        self.readings: list[tuple[Part, Any]] = []
        self.block = ""
        block_of = {id(weight): block for block, weights in blocks.items() for weight in weights}
        self.of_one_block: list[tuple[nn.Module, str]] = []
        for module in model.modules():
            own = {block_of[id(weight)] for weight in module.parameters()}
            if len(own) == 1:
                self.of_one_block.append((module, own.pop()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the model's modules during the block."""

        def on_input(block: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if block != self.block:
                self.enter(block, next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)))

        handles = [module.register_forward_pre_hook(partial(on_input, block)) for module, block in self.of_one_block]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, block: str, tensor: Tensor) -> None:
        """Begin a part whose input is `tensor`, the output of the part before it."""
        if tensor.requires_grad:
            before = self.block
            tensor.register_hook(lambda gradient: self.readings.append(((before, BACKWARD), self.read())))
        self.block = block
        self.readings.append(((block, FORWARD), self.read()))

    def differences(self, between: Callable[[Any, Any], Any]) -> dict[Part, Any]:
        """Return what each part added up to since the last call; the last one begun has only ended the one before."""
        sums: dict[Part, Any] = defaultdict(int)
        for (part, first), (_, after) in zip(self.readings[:-1], self.readings[1:], strict=True):
            sums[part] = sums[part] + between(first, after)
        self.readings.clear()
        return dict(sums)


class Traffic(TorchDispatchMode):
    """Counts the bytes that convolutions and matrix products read and write, each tensor once.

    It is the least of a step whose other operations are fused with these: nothing is read twice, and normalisation,
    activation, upsampling and concatenation cost no traffic of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Call the operation."""
        results = operation(*arguments, **(named or {}))
        if operation._overloadpacket in flop_registry:
            tensors = [leaf for leaf in tree_leaves((arguments, named, results)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return results


@contextmanager
def counted() -> Iterator[Callable[[], np.ndarray]]:
    """Yield a function that returns the floating-point operations and the least bytes since the block began."""
    with FlopCounterMode(display=False) as counter, Traffic() as traffic:
        yield lambda: np.array([counter.get_total_flops(), traffic.bytes], dtype=float)
