"""Fusions of a user's own, right ones and wrong ones, for test_own_classes.py."""

import pathlib

import torch
from torch import nn

from unetseg.model.skips import Fusion

with open(pathlib.Path(__file__).with_name("imported"), "a") as file:
    file.write("imported\n")


class Gated(Fusion):
    """The deep features plus the skip's, which fewer channels have gated."""

    def __init__(self, deep_channels, skip_channels, flow="both", gradient=1.0, reduction=4):
        super().__init__(deep_channels, skip_channels, flow, gradient)
        between = max(1, skip_channels // reduction)
        self.gate = nn.Sequential(nn.Conv2d(skip_channels, between, 1), nn.ReLU(), nn.Conv2d(between, deep_channels, 1))

    def fuse(self, deep, skip):
        return deep * torch.sigmoid(self.gate(skip))


class Maximum(Fusion):
    """The larger of both; the skip's mean over its channels stands for it."""

    def fuse(self, deep, skip):
        return torch.maximum(deep, skip.mean(1, keepdim=True))


class Whole(Maximum):
    is_whole_without = False


class Narrow(Maximum):
    def fuse(self, deep, skip):
        return deep[:, :1]


class Square(Maximum):
    def __init__(self, deep_channels, skip_channels, **named):
        super().__init__(deep_channels, skip_channels, **named)
        if deep_channels != skip_channels:
            raise ValueError("the widths differ")


class Failing(Maximum):
    def fuse(self, deep, skip):
        return deep + skip


class NoFusion(nn.Module):
    pass
