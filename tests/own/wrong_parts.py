"""Fusions, decoders and losses that each break a rule of docs/extending.md, and right ones, for test_trials.py."""

import random
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from unetseg.model.decoder import Decoder
from unetseg.model.skips import Concat, passages


class Swallowing(Concat):
    def __init__(self, deep_channels, skip_channels, flow, gradient):
        super().__init__(deep_channels, skip_channels)


class Forward(Concat):
    def forward(self, deep, skip):
        return self.fuse(deep, skip)


class Scaled(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.scale = nn.Conv2d(skip_channels, skip_channels, 1)


class InPlace(Concat):
    def fuse(self, deep, skip):
        return super().fuse(deep, skip.mul_(0.5))


class Unit(Concat):
    def fuse(self, deep, skip):
        return super().fuse(deep, skip / skip.norm(dim=1, keepdim=True))


class Product(Concat):
    def fuse(self, deep, skip):
        return super().fuse(deep, skip) * skip.mean(1, keepdim=True)


class Drawn(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.register_buffer("signs", torch.randn(skip_channels, 1, 1).sign(), persistent=False)

    def fuse(self, deep, skip):
        return super().fuse(deep, self.signs * skip)


class Spare(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.spare = nn.Conv2d(skip_channels, skip_channels, 1)


class Listed(Concat):
    """Its layers are in a list, where torch doesn't find them."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.layers = {"first": [nn.Conv2d(skip_channels, skip_channels, 1)]}

    def fuse(self, deep, skip):
        return super().fuse(deep, self.layers["first"][0](skip))


class ListedTensor(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.signs = [torch.randn(skip_channels, 1, 1).sign()]

    def fuse(self, deep, skip):
        return super().fuse(deep, self.signs[0] * skip)


class TrainingOnly(Concat):
    """What it draws is used in training alone."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.kept = torch.randn(skip_channels, 1, 1)

    def fuse(self, deep, skip):
        return super().fuse(deep, self.kept * skip if self.training else skip)


class Growing(Concat):
    """Its skip grows with a count of the training's steps, a number of Python."""

    steps = 0

    def fuse(self, deep, skip):
        self.steps += self.training
        return super().fuse(deep, skip * min(1, self.steps / 4))


class Started(Concat):
    """Its first batch sets a buffer; that it has come is a flag of Python."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.register_buffer("first", torch.zeros(()))
        self.has_started = False

    def fuse(self, deep, skip):
        if not self.has_started:
            self.first.copy_(skip.detach().mean())
            self.has_started = True
        return super().fuse(deep, skip - self.first)


class Sparse(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.mixed = torch.randn(skip_channels, skip_channels).to_sparse()

    def fuse(self, deep, skip):
        return super().fuse(deep, torch.einsum("bchw,dc->bdhw", skip, self.mixed.to_dense()))


class InPlaceBehind(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.layer = nn.Conv2d(skip_channels, skip_channels, 1)

    def fuse(self, deep, skip):
        gate = torch.sigmoid(self.layer(skip))
        return super().fuse(deep, gate.mul_(2))


class Leaving(Concat):
    def fuse(self, deep, skip):
        raise SystemExit("bye")


class Extra(Concat):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Hooked(Concat):
    """The older weight_norm keeps a weight that is computed, so that the layer can't be copied."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.layer = nn.utils.weight_norm(nn.Conv2d(skip_channels, skip_channels, 1))

    def fuse(self, deep, skip):
        return super().fuse(deep, self.layer(skip))


class DropPath(Concat):
    """The skip is left out at times, by Python's random numbers and NumPy's; the deep path's gain begins at zero."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.gain, self.own = nn.Parameter(torch.zeros(1)), np.random.default_rng()

    def fuse(self, deep, skip):
        if self.training:
            skip = skip * (random.random() < 0.5) * np.random.rand() * self.own.random()  # noqa: NPY002
        return super().fuse(self.gain * deep, skip)


class Tied(Concat):
    """Two layers have one weight."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.first, self.second = (nn.Conv2d(skip_channels, skip_channels, 1) for _ in range(2))
        self.second.weight = self.first.weight

    def fuse(self, deep, skip):
        return super().fuse(deep, self.second(self.first(skip)))


class Enclosed(Concat):
    """What it draws is in a function, and does something where a weight is not zero, as it is at first."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        drawn = torch.randn(skip_channels, 1, 1)
        self.times_drawn = lambda skip: drawn * skip
        self.gain = nn.Parameter(torch.zeros(1))

    def fuse(self, deep, skip):
        return super().fuse(deep, skip + self.gain * self.times_drawn(skip))


class Lazy(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.layer = nn.LazyConv2d(skip_channels, 1)


class Late(Concat):
    def fuse(self, deep, skip):
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(skip.shape[1], 1, 1))
        return super().fuse(deep, self.gain * skip)


class Allowed(Concat):
    """Layers that are also in a list, weights that torch computes at each call, a constant, drop-out, statistics."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.first, self.drop = nn.Conv2d(skip_channels, skip_channels, 1), nn.Dropout(0.5)
        self.layers = [self.first, self.drop]
        self.normed = nn.Sequential(
            nn.utils.spectral_norm(nn.Conv2d(skip_channels, skip_channels, 1)),
            parametrizations.weight_norm(nn.Conv2d(skip_channels, skip_channels, 1)),
            nn.BatchNorm2d(skip_channels),
        )
        self.window = [torch.hann_window(3)]

    def fuse(self, deep, skip):
        for layer in [*self.layers, self.normed]:
            skip = layer(skip)
        return super().fuse(deep, skip * self.window[0].sum() + 0.1 * torch.rand_like(skip))


class Placed(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.places = nn.Parameter(torch.zeros(1, skip_channels, 16, 12))

    def fuse(self, deep, skip):
        return super().fuse(deep, skip + self.places)


class Counting(Concat):
    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.factor = torch.linspace(0, 1, 3).tolist()[1]


class Blurred(Concat):
    """Right: its filter is made by torch.nn.init, and its gate starts closed."""

    def __init__(self, deep_channels, skip_channels, **passed):
        super().__init__(deep_channels, skip_channels, **passed)
        self.register_buffer("filter", nn.init.constant_(torch.empty(skip_channels, 1, 3, 3), 1 / 9), persistent=False)
        self.gate = nn.Conv2d(skip_channels, skip_channels, 1)
        nn.init.constant_(self.gate.bias, -6.0)

    def fuse(self, deep, skip):
        smooth = F.conv2d(skip, self.filter, padding=1, groups=len(self.filter))
        return super().fuse(deep, torch.sigmoid(self.gate(smooth)) * smooth)


class Mirrored(Decoder):
    """Right: a subclass with a forward of its own, and a layer that begins as zeros."""

    def __init__(self, encoder_channels, channels, **passed):
        super().__init__(encoder_channels, channels, **passed)
        self.last = nn.Conv2d(channels[-1], channels[-1], 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, features):
        decoded = super().forward(features).flip(-1)
        return decoded + self.last(decoded)


class Deaf(Decoder):
    def __init__(self, encoder_channels, channels, skip, flow, gradient, normalisation):
        super().__init__(encoder_channels, channels, skip, ["both"] * len(flow), [1.0] * len(flow), normalisation)


class Bypass(nn.Module):
    def __init__(self, encoder_channels, channels, skip, flow, gradient, normalisation):
        super().__init__()
        self.fusions = passages(encoder_channels, flow, gradient)
        self.conv = nn.Conv2d(encoder_channels[1], channels[-1], 1)

    def forward(self, features):
        return F.interpolate(self.conv(features[1]), features[0].shape[-2:])


class TargetInPlace(nn.Module):
    def forward(self, logits, target):
        target[target == 255] = 0
        return ((logits[:, 0] - target) ** 2).mean()


class LogitsInPlace(nn.Module):
    def forward(self, logits, target):
        return (logits.sigmoid_()[:, 0] * (target == 1)).mean()


class Counts255(nn.Module):
    def forward(self, logits, target):
        return F.binary_cross_entropy_with_logits(logits[:, 0], target.clamp(max=1).float())


class OutOfBounds(nn.Module):
    def forward(self, logits, target):
        return F.cross_entropy(logits, target.long())


class Infinite(nn.Module):
    def forward(self, logits, target):
        return (logits[:, 0] * (target == 1)).sum() / 0


class Learned(nn.Module):
    """A loss with a weight that training changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, logits, target):
        cost = F.softplus(logits[:, 0]) * (target != 255)
        return self.weight.square() * cost.mean()


class Ignoring(Decoder):
    """It has fusions of one kind, whatever `skip` says."""

    def __init__(self, encoder_channels, channels, skip, **passed):
        super().__init__(encoder_channels, channels, skip=["concat"] * len(skip), **passed)


class ListOfFusions(nn.Module):
    """Its fusions are in a list, where skip_scale=learned would put weights that nobody finds."""

    def __init__(self, encoder_channels, channels, skip, flow, gradient, normalisation):
        super().__init__()
        self.fusions = [*passages(encoder_channels, flow, gradient)]
        self.conv = nn.Conv2d(encoder_channels[1], channels[-1], 1)

    def forward(self, features):
        return F.interpolate(self.conv(self.fusions[0](features[1], features[1])), features[0].shape[-2:])


class InTraining(Learned):
    """A loss whose weight matters in training alone, as an uncertainty does (Kendall et al. 2018)."""

    def forward(self, logits, target):
        return super().forward(logits, target) if self.training else (logits[:, 0] * (target != 255)).square().mean()


class Counts255InTraining(nn.Module):
    def forward(self, logits, target):
        return (logits[:, 0] * ((target != 255) | self.training)).square().mean()


class Coarsest(Decoder):
    """Its fusions are in the order of its blocks, the coarsest level first."""

    @property
    def fusions(self):
        return [block.fusion for block in self.blocks[: len(super().fusions)]]


class Beside(Decoder):
    """Level 1 enters beside its fusion, by a gain that begins at zero."""

    def __init__(self, encoder_channels, channels, **passed):
        super().__init__(encoder_channels, channels, **passed)
        self.gain = nn.Parameter(torch.zeros(()))
        self.lateral = nn.Conv2d(encoder_channels[1], channels[-1], 1)

    def forward(self, features, with_nodes=False):
        beside = F.interpolate(self.lateral(features[1]), features[0].shape[-2:])
        return super().forward(features) + self.gain * beside


class BesideWithoutGradient(Beside):
    def forward(self, features, with_nodes=False):
        beside = F.interpolate(self.lateral(features[1].detach()), features[0].shape[-2:])
        return Decoder.forward(self, features) + (1 + self.gain) * beside


class Before(Beside):
    """A layer changes the features before their fusion."""

    def __init__(self, encoder_channels, channels, **passed):
        Decoder.__init__(self, encoder_channels, channels, **passed)
        self.layer = nn.Conv2d(encoder_channels[1], encoder_channels[1], 1)

    def forward(self, features, with_nodes=False):
        return Decoder.forward(self, [features[0], self.layer(features[1]), *features[2:]])
