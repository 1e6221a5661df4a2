"""Batch normalisation as part of the convolution before it.

At inference batch normalisation multiplies each channel by a number and adds one. A convolution can do both itself, so
that the features are read and written once less (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar, cast

from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.densenet import _DenseLayer
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetseg.model.arguments import own_classes
from unetseg.model.segmenter import Segmenter

M = TypeVar("M", bound=nn.Module)

RESNET = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    **{ResNetEncoder: RESNET[:1], BasicBlock: RESNET[:2], Bottleneck: RESNET},
    _DenseLayer: (("conv1", "norm2"),),
}
"""By kind of module the attributes of a convolution and of the normalisation that alone reads its result."""


def is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Return whether a module does what its class does: parametrisations make a class, hooks may do anything."""
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    )


def folded(model: Segmenter) -> Segmenter:
    """Return a copy of a model in eval mode, of the same function but for rounding, with fewer normalisations.

    It folds where no other layer can read the convolution's result: between neighbours of an nn.Sequential, and in
    PAIRS. Other normalisations stay, such as those before a DenseNet's convolutions. A model with a class of somebody's
    own is returned as it is: what that class reads is not known.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> sum(isinstance(module, nn.BatchNorm2d) for module in folded(model).modules())
        0
    """
    if own_classes(cast("dict[str, Any]", model.net.config)):
        return model
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for conv, norm in _pairs(module):
            first, second = getattr(module, conv), getattr(module, norm)
            if is_plain(first, nn.Conv2d) and is_plain(second, nn.BatchNorm2d) and _is_fixed(second):
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    return model.to(memory_format=model.memory_format)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return [*pairwise(module._modules)]  # a module that stands there twice is in named_children once
    return [pair for kind, pairs in PAIRS.items() if isinstance(module, kind) for pair in pairs]


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    """Return whether a normalisation uses the statistics that it has kept, and not those of its input."""
    return norm.track_running_stats and not norm.training
