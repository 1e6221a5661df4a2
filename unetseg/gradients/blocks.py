"""The blocks of a net: which of its parameters belong together, by the features that they produce.

In an encoder a parameter belongs to the first feature that it has a part in. Where its modules don't say so, that is
read off autograd's graph of one forward pass on the meta device, which computes no numbers: neither the encoder nor a
random generator changes.
"""

from __future__ import annotations

import copy
import re
import warnings
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

UNUSED = "unused"
"""The block of parameters that no feature depends on, such as the last layer of a classifier."""
SIDE = 64
"""Height and width of the image that the graph is made for: two pixels at stride 32."""
_known: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()


def blocks_of(net: Any) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of every block, in forward order; each parameter is in exactly one.

    The stem ends at level 1, encoder1 at level 2, encoder4 at the bottleneck; decoder4 fuses level 4, decoder0 works at
    full resolution. Convolutions between encoder and decoder (VGG's in smp.Unet) are the block `centre`. The stages of
    an encoder other than a ResNet or DenseNet of full depth are those of `stages_of`, where parameters that no feature
    depends on are the block `unused`; an encoder whose stages can't be told is one block, and so is a decoder that is
    not a list of one block a level.
    """
    blocks: dict[str, list[nn.Parameter]] = {}
    features = getattr(net.encoder, "features", None)  # DenseNet's children; others have a method of that name
    children = dict((features if isinstance(features, nn.Module) else net.encoder).named_children())
    stages = {name: f"encoder{name[-1]}" for name in children if re.fullmatch(r"(layer|denseblock)[1-9]", name)}
    if len(stages) > len(net.encoder.out_channels) - 2:  # with smp's encoder_depth < 5 the last ones are not used
        stages = {}
    stage = "stem"
    for name, module in children.items() if stages else ():
        stage = stages.get(name, stage)
        blocks.setdefault(stage, []).extend(module.parameters())
    if not stages:
        blocks = stages_of(net.encoder)
    parts = getattr(net.decoder, "blocks", None)
    centre = (
        list(net.decoder.center.parameters()) if isinstance(getattr(net.decoder, "center", None), nn.Module) else []
    )
    by_level = getattr(net.decoder, "by_level", None)  # of a decoder with several nodes a level
    if isinstance(by_level, list):
        if centre:
            blocks["centre"] = centre
        for level, own in zip(reversed(range(len(by_level))), by_level, strict=True):
            blocks[f"decoder{level}"] = [weight for part in own for weight in part.parameters()]
    elif isinstance(parts, nn.ModuleList) and len([*parts.parameters(), *centre]) == len(
        list(net.decoder.parameters())
    ):
        if centre:
            blocks["centre"] = centre
        for level, block in zip(reversed(range(len(parts))), parts, strict=True):
            blocks[f"decoder{level}"] = list(block.parameters())
    else:
        blocks["decoder"] = list(net.decoder.parameters())
    blocks["head"] = list(net.segmentation_head.parameters())
    if getattr(net, "classification_head", None) is not None:
        blocks["classification_head"] = list(net.classification_head.parameters())
    if sorted(id(w) for weights in blocks.values() for w in weights) != sorted(id(w) for w in net.parameters()):
        raise RuntimeError(f"a parameter of {type(net).__name__} is in no block, or in two: gradients.blocks_of")
    return blocks


def stages_of(encoder: Any) -> dict[str, list[nn.Parameter]]:
    """Return an encoder's parameters by stage: stem, encoder1, ..., unused, those that there are, in forward order.

    The stem ends at the feature of stride 2, encoder1 at that of stride 4, and so on. Where the stages can't be told
    all parameters are one stage, "encoder", and a warning says why.

    Args:
        encoder: maps BxCxHxW to a list of features, [stride 1, stride 2, ...], and has their widths in `out_channels`.
    """
    parameters = dict(encoder.named_parameters())
    if _known.get(encoder, {}).keys() != parameters.keys():
        try:
            _known[encoder] = _stage_names(encoder)
        except Exception as error:  # whatever a stranger's forward pass raises without numbers
            reason = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(
                f"the stages of {type(encoder).__name__} can't be told ({reason}): it is read as one block",
                stacklevel=2,
            )
            _known[encoder] = dict.fromkeys(parameters, "encoder")
    names = _known[encoder]
    numbered = [f"encoder{stage}" for stage in range(1, len(encoder.out_channels) - 1)]
    by_stage = {
        stage: [weight for name, weight in parameters.items() if names[name] == stage]
        for stage in ("encoder", "stem", *numbered, UNUSED)
    }
    return {stage: weights for stage, weights in by_stage.items() if weights}


def _stage_names(encoder: Any) -> dict[str, str]:
    """Return the stage of each parameter by its name; raise where features are missing or the graph can't be made."""
    shadow = _without_numbers(encoder)
    images = torch.zeros(2, getattr(encoder, "_in_channels", encoder.out_channels[0]), SIDE, SIDE, device="meta")
    with torch.enable_grad():
        features = shadow(images)
    if len(features) != len(encoder.out_channels):
        raise ValueError(f"it gives {len(features)} features, and {len(encoder.out_channels)} widths")
    name_of = {id(weight): name for name, weight in shadow.named_parameters()}
    stages: dict[str, str] = {}
    seen: set[Any] = set()
    for level, feature in enumerate(features):
        stage = "stem" if level <= 1 else f"encoder{level - 1}"
        for node in new_nodes(feature, seen):
            if hasattr(node, "variable"):
                stages.setdefault(name_of[id(node.variable)], stage)
    if not stages:
        raise ValueError("none of its parameters has a part in a feature")
    return {name: stages.get(name, UNUSED) for name in name_of.values()}


def _without_numbers(encoder: nn.Module) -> nn.Module:
    """Return a copy on the meta device, in eval mode, all of it trainable and without hooks."""
    memo: dict[int, Any] = {}
    for module in encoder.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
    for weight in encoder.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.is_floating_point())
    for buffer in encoder.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    shadow = copy.deepcopy(encoder, memo)
    return shadow.float().eval()


def new_nodes(tensor: Tensor, seen: set[Any]) -> list[Any]:
    """Return the nodes of autograd's graph that compute a tensor and aren't in `seen`, which is extended."""
    nodes, ahead = [], [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.append(node)
            ahead.extend(before for before, _ in node.next_functions)
    return nodes
