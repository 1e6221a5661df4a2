"""What a model costs is counted without keeping any of it."""

import gc
import weakref

import torch
from torch import nn

from unetseg.evaluation.cost import cost


def test_operations_and_memory_are_those_counted_by_hand():
    """Of 3x3 convolutions of 3 to 4 and 4 to 2 channels, at 8x8; kept are the three of their inputs and outputs.

    The picture, in float32, is the input of the first; ReLU keeps its output, the input of the second.
    """
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    found = cost(_Float(net), size=8)
    assert found["parameters"] == 4 * 27 + 4 + 2 * 36 + 2
    assert found["flops"] == 2 * 64 * (4 * 27 + 2 * 36)
    assert found["activation_memory"] == 4 * 64 * (3 + 4)


def test_the_model_can_be_freed_afterwards():
    """A ReLU keeps its own output: with that, the graph of the count, and all weights in it, would stay for good."""
    net = _Float(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    weight = weakref.ref(net.net[0].weight)
    cost(net, size=8)
    del net
    gc.collect()
    assert weight() is None


class _Float(nn.Module):
    """A network of pictures in bytes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images.float())
