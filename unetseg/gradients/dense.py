"""Dense skips: by which later layers the gradient of a layer's output in a dense block came.

In a dense block (Huang et al. 2017) the output of layer l is read by every later layer m, and is a part of the block's
output. So its gradient g is a sum of a term g_m for each reader, and the reuse of l by m is <g_m, g> / <g, g>. The
layers read views of the earlier tensors, and tensor hooks on these see the terms; that of the block's output is the
rest. Huang et al. (Fig. 5) take mean |w| of the weights by which m reads l for the reuse; it is told beside.

Legend: n layers of a block. Source 0 is its input, source l = 1 ... n - 1 the output of layer l. What layer n makes is
read by the block's output alone, so it is no source.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unetseg.gradients.passes import BackwardPasses, Split

OUT = "out"
"""The name of the block's output as a reader."""


class DenseSkips:
    """Splits the gradient of every source in every dense block of an encoder.

    A dense block is a ModuleDict of layers called denselayer1, denselayer2, ..., each of which takes the list of all
    tensors before it and reads it by a 1x1 convolution `conv1`: that of torchvision, timm and
    segmentation-models-pytorch.

    Args:
        encoder: has the blocks, or has none.
        precision: of the sums.

    Attributes:
        sums: of all sources one after the other: <g_m, g> for each later layer m, and <g, g>.
    """

    def __init__(self, encoder: nn.Module, precision: torch.dtype):
        self.blocks = dense_blocks(encoder)
        device = next(encoder.parameters()).device
        sizes = [len(layers) - source + 1 for layers in self.blocks.values() for source in range(len(layers))]
        self.sums = torch.zeros(sum(sizes), dtype=precision, device=device)
        pieces = iter(self.sums.split(sizes))
        self._splits = {
            block: [Split(next(pieces), _reuse, parts=len(layers) - source) for source in range(len(layers))]
            for block, layers in self.blocks.items()
        }
        self._sizes = sizes
        self._weights = mean_weights(encoder)
        self._reached: set[tuple[str, int]] = set()

    def watch(self, passes: BackwardPasses) -> list[RemovableHandle]:
        """Set the hooks that split the gradients of these backward passes, and return their handles."""
        handles = []
        for block, layers in self.blocks.items():
            handles.append(layers.register_forward_pre_hook(_view_of_input))
            for number, layer in enumerate(layers.values(), start=1):
                handles.append(layer.register_forward_pre_hook(partial(self._on_features, passes, block, number)))
        return handles

    def metrics(self, sums: Tensor) -> dict[str, dict[str, float]]:
        """Return the numbers of each block, see `Record`, from the sums over all ranks."""
        pieces = iter(sums.cpu().double().split(self._sizes))
        numbers: dict[str, dict[str, float]] = {}
        for block, layers in self.blocks.items():
            for source in range(len(layers)):
                *terms, total = next(pieces)
                if (block, source) not in self._reached:
                    continue
                shares = torch.stack(terms) / total
                of_block = numbers.setdefault(block, {})
                for later, share in enumerate(shares.tolist(), start=source + 1):
                    of_block[f"reuse_{source}_{later}"] = share
                of_block[f"reuse_{source}_{OUT}"] = float(1 - shares.sum())
            if block in numbers:
                names, means = self._weights[block]
                numbers[block] |= dict(zip(names, means.tolist(), strict=True))
        return numbers

    def _on_features(
        self, passes: BackwardPasses, block: str, number: int, layer: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        """Hand views of the tensors before it to a layer."""
        features, *others = inputs
        if not torch.is_grad_enabled() or not isinstance(features, list) or len(features) != number:
            return None
        views = list(features)
        for source, feature in enumerate(features):
            if feature.requires_grad:
                self._reached.add((block, source))
                views[source] = passes.watch(self._splits[block][source], feature, number - source - 1)
        return (views, *others)


def dense_blocks(encoder: nn.Module) -> dict[str, nn.ModuleDict]:
    """Return the dense blocks of an encoder in forward order, by the name of their stage: encoder1, ..."""
    return {
        _stage(name): module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleDict)
        and len(module)
        and all(re.fullmatch(r"denselayer\d+", key) for key in module)
    }


@torch.no_grad()
def mean_weights(encoder: nn.Module) -> dict[str, tuple[list[str], Tensor]]:
    """Return mean |w| of the 1x1 convolutions by which layers, and the transition after a block, read each source.

    They come with their names, such as weight_3_7, for each dense block.
    """
    transitions = {
        _stage(name.replace("transition", "denseblock")): module.conv
        for name, module in encoder.named_modules()
        # HRNets have parts of that name, too, which are no convolution
        if re.search(r"transition\d$", name) and isinstance(getattr(module, "conv", None), nn.Conv2d)
    }
    tables = {}
    for block, layers in dense_blocks(encoder).items():
        readers: dict[str, Any] = {str(n): layer.conv1 for n, layer in enumerate(layers.values(), start=1)}
        starts = [0, *(convolution.in_channels for convolution in readers.values())]  # of the sources' columns
        if block in transitions:
            readers[OUT] = transitions[block]
        names, means = [], []
        for reader, convolution in readers.items():
            of_columns = convolution.weight.abs().mean((0, 2, 3))
            sources = len(layers) if reader == OUT else int(reader)
            for source in range(sources):
                names.append(f"weight_{source}_{reader}")
                means.append(of_columns[starts[source] : starts[source + 1]].mean())
        tables[block] = names, torch.stack(means)
    return tables


def _view_of_input(block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """Give a dense block a view of its input, which it alone reads."""
    (x,) = inputs
    return (x.view_as(x),) if torch.is_grad_enabled() and x.requires_grad else None


def _reuse(total: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return <g_m, g> for each part g_m, and <g, g>, of vectors."""
    return *(part @ total for part in parts), total @ total


def _stage(name: str) -> str:
    return re.sub(r"^.*?denseblock([1-9])$", r"encoder\1", name)  # of timm: model.features_denseblock1
