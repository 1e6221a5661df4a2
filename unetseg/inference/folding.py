"""Batch normalisation as part of the convolution before it.

At inference batch normalisation multiplies each channel by a number and adds one. A convolution can do both itself, so
that the features are read and written once less (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

import copy
from itertools import pairwise

from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.densenet import _DenseLayer
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetseg.model.segmenter import Segmenter

RESNET = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    **{ResNetEncoder: RESNET[:1], BasicBlock: RESNET[:2], Bottleneck: RESNET},
    _DenseLayer: (("conv1", "norm2"),),
}
"""By kind of module the attributes of a convolution and of the normalisation that alone reads its result."""


def folded(model: Segmenter) -> Segmenter:
    """Return a copy of a model in eval mode, of the same function but for rounding, with fewer normalisations.

    It folds where no other layer can read the convolution's result: between neighbours of an nn.Sequential, and in
    PAIRS. Other normalisations stay, such as those before a DenseNet's convolutions.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> sum(isinstance(module, nn.BatchNorm2d) for module in folded(model).modules())
        0
    """
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for conv, norm in _pairs(module):
            first, second = getattr(module, conv), getattr(module, norm)
            if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d:
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    return model.to(memory_format=model.memory_format)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return [*pairwise(name for name, _ in module.named_children())]
    return [pair for kind, pairs in PAIRS.items() if isinstance(module, kind) for pair in pairs]
