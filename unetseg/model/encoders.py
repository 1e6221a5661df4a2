"""Encoders: smp's and timm's as they are, or one with other short skips or without its normalisation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn

from unetseg.errors import UserError, first_line
from unetseg.model.short_skips import RESIDUAL, replace_dense_blocks
from unetseg.names import DENSENETS, LEVELS, RESNETS, TIMM, nearest_first, own_short_skips

DEPTH = LEVELS + 1
"""Encoder stages; the deepest has no long skip, its features enter the decoder."""
SIDE = 64
"""Side of the picture on which an encoder's features are looked at; those with a fixed size get their own."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's RGB in 0..1, with which most encoders were trained."""
_HALF = (0.5, 0.5, 0.5)
_OF_DPN = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
_OWN = {name: (_HALF, _HALF) for name in encoders if name.startswith(("inception", "xception", "timm-tf_efficient"))}
_OWN |= {name: _OF_DPN for name in encoders if name.startswith("dpn")}
"""Mean and standard deviation where they are others, as smp 0.3.4 and pretrainedmodels 0.7.4, which it is made of, have
them; later versions of smp download them. All of its encoders take RGB in 0..1."""


def normalisation_of(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and the standard deviation of RGB in 0..1 with which an encoder was trained; else ImageNet's.

    Examples:
        >>> normalisation_of("resnet18") == (MEAN, STD), normalisation_of("xception")[0]
        (True, (0.5, 0.5, 0.5))
    """
    model = name.removeprefix(TIMM)
    if name.startswith(TIMM) and timm.models.is_model_pretrained(model):
        known: Any = timm.models.get_pretrained_cfg(model)
        return tuple(known.mean), tuple(known.std)
    return _OWN.get(name, (MEAN, STD))


def make_encoder(
    name: str, *, in_channels: int, weights: str | None, short_skips: bool | str = True, normalisation: str = "batch"
) -> nn.Module:
    """Return an encoder that maps BxCxHxW to the features [input, stride 2, ..., stride 32].

    One that begins with stride 4, as transformers do, has 0 channels at stride 2. What no feature depends on, such as
    a classifier's last convolution, is frozen: distributed training would wait for its gradient.

    Args:
        name: an encoder of smp, or `tu-` and the name of a model of timm.
        in_channels: C.
        weights: "imagenet", with timm the model's own, or None.
        short_skips: True for its own; False for none; "add" or "concat", see `unetseg.model.short_skips`.
        normalisation: "batch", or "none" for identities in place of ResNet's batch normalisations.

    Raises:
        UserError: it is unknown, has no such weights, or its features are none that a U-Net can take.
        ValueError: another encoder than a ResNet or DenseNet with other short skips, or than a ResNet without
            normalisation; weights with either.
    """
    if short_skips == own_short_skips(name):
        short_skips = True
    if short_skips is True and normalisation == "batch":
        _check_name(name, weights)
        encoder = _get(name, in_channels, weights)
        if name not in RESNETS + DENSENETS:
            _check_features(encoder, name)
        return encoder
    if weights is not None:
        raise ValueError("downloaded weights are those of the whole encoder, with its short skips and normalisation")
    if name not in RESNETS + DENSENETS:
        raise ValueError(f"{name} can't have other short skips than its own, only {', '.join(RESNETS + DENSENETS)} can")
    if name in DENSENETS:
        if normalisation == "none":
            raise ValueError(
                f"{name} can't be built without normalisation, only {', '.join(RESNETS)} can: every layer of a "
                "DenseNet begins with it"
            )
        encoder = get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=None)
        replace_dense_blocks(encoder, adds=short_skips == "add")
        return encoder
    arguments = copy.deepcopy(encoders[name]["params"])  # smp's own table stays as it is
    if short_skips is not True:
        arguments["block"] = RESIDUAL[short_skips][arguments["block"]]
    if normalisation == "none":
        arguments["norm_layer"] = nn.Identity
    with torch.random.fork_rng(devices=[]):
        encoder = encoders[name]["encoder"](depth=DEPTH, **arguments)
        encoder.set_in_channels(in_channels, pretrained=False)
    # the weights that the whole encoder draws from the same seed, so that the two differ only by what was changed
    whole = get_encoder(name, in_channels=in_channels, depth=DEPTH, weights=None).state_dict()
    own = encoder.state_dict()
    encoder.load_state_dict({key: whole.get(key, value) for key, value in own.items()})
    return encoder


def has_picture_first(encoder: nn.Module) -> bool:
    """Return whether the first of an encoder's features is the picture; in a VGG its own convolutions have made it."""
    return not getattr(encoder, "_is_vgg_style", isinstance(encoder, VGGEncoder))


def check_side(encoder: nn.Module, name: str, side: int) -> None:
    """Raise a UserError where an encoder doesn't take pictures of side x side, as one with a fixed grid."""
    try:
        _features(encoder, side)
    except Exception as error:  # each architecture has errors of its own
        raise UserError(
            f"model.encoder={name} doesn't take pictures of {side}x{side}: {first_line(error)}",
            accepted="an encoder and a size (data.size, or data.crop) that fit each other",
            advice=f"data.size={own_side(encoder)}, or model.encoder={TIMM}convnext_tiny, which takes any size",
        ) from None


def _check_name(name: str, weights: str | None) -> None:
    model = name.removeprefix(TIMM)
    of_timm = name.startswith(TIMM)
    names = [*timm.list_models(), *timm.list_pretrained()] if of_timm else [*encoders]
    if model not in names:
        near = [f"{TIMM if of_timm else ''}{known}" for known in nearest_first(model, names)[:5]]
        raise UserError(
            f"model.encoder={name} is unknown to {'timm ' + timm.__version__ if of_timm else 'smp'}",
            accepted=f"{', '.join(near)}, ...",
            advice=f"model.encoder={near[0]}",
        )
    published = timm.models.is_model_pretrained(model) if of_timm else weights in encoders[name]["pretrained_settings"]
    if weights is not None and not published:
        others = "" if of_timm else f", but {', '.join(encoders[name]['pretrained_settings'])}"
        raise UserError(
            f"model.weights={weights}: {'timm' if of_timm else 'smp'} has no such weights of {name}{others}",
            accepted="an encoder with ImageNet weights, null, or a file of the encoder's weights",
            advice="model.weights=null, which starts from random weights",
        )


def _get(name: str, in_channels: int, weights: str | None) -> nn.Module:
    """Return smp's encoder; raise a UserError where timm can't make one of a model."""
    arguments = {"in_channels": in_channels, "depth": DEPTH}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`timm-` encoders are deprecated", DeprecationWarning)
        if not name.startswith(TIMM):
            return get_encoder(name, weights=weights, **arguments)
        try:
            with torch.random.fork_rng(devices=[], enabled=weights is not None):
                encoder = get_encoder(name, weights=None, **arguments)
        except Exception as error:  # each architecture has errors of its own
            raise _no_encoder(name, _other_strides(name) or first_line(error)) from None
        return encoder if weights is None else get_encoder(name, weights=True, **arguments)


def _other_strides(name: str) -> str:
    """Return the strides of a model's features in words; empty where timm doesn't tell them, or where they fit."""
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name.removeprefix(TIMM), features_only=True)
        strides = model.feature_info.reduction()
    except Exception:  # each architecture has errors of its own
        return ""
    fits = {4, 8, 16, 32} <= {*strides}
    return "" if fits else f"its features have strides of {', '.join(map(str, dict.fromkeys(strides)))}"


def _check_features(encoder: nn.Module, name: str) -> None:
    """Freeze what no feature depends on; raise a UserError where the features are not of strides 1, 2 or 4, ..., 32."""
    for side in (SIDE, own_side(encoder)):
        try:
            features = _features(encoder, side)
            break
        except Exception as error:  # each architecture has errors of its own
            reason = first_line(error)
    else:
        raise _no_encoder(name, reason)
    sizes = [max(feature.shape[-2:]) for feature in features]
    widths = [feature.shape[1] for feature in features]
    fits = len(sizes) == DEPTH + 1 and all(abs(size - side / 2**level) < 1 for level, size in enumerate(sizes))
    if not fits or widths != [*encoder.out_channels]:  # type: ignore[misc]
        raise _no_encoder(
            name, f"of a picture of {side}x{side} its features have sides of {', '.join(map(str, sizes))}"
        )
    used, ahead = set(), [feature.grad_fn for feature in features]
    seen = set(ahead)
    while ahead:  # autograd's graph, down to the weights
        node = ahead.pop()
        used.add(id(getattr(node, "variable", None)))
        before = {below for below, _ in getattr(node, "next_functions", ())} - seen
        seen |= before
        ahead += before
    for weight in encoder.parameters():
        weight.requires_grad_(id(weight) in used)


def _features(encoder: nn.Module, side: int) -> list[Tensor]:
    """Return the features of a black picture, 1xCxSxS; neither the encoder nor a random generator changes."""
    weight, was_training = next(encoder.parameters()), encoder.training
    channels = getattr(encoder, "_in_channels", 3)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        features = encoder.eval()(torch.zeros(1, channels, side, side, dtype=weight.dtype, device=weight.device))
    encoder.train(was_training)
    return list(features)


def own_side(encoder: nn.Module) -> int:
    """Return the side of the pictures that a model of timm was made for."""
    return getattr(getattr(encoder, "model", None), "pretrained_cfg", {}).get("input_size", (3, SIDE, SIDE))[-1]  # type: ignore[no-any-return]


def _no_encoder(name: str, reason: str) -> UserError:
    return UserError(
        f"model.encoder={name} can't be the encoder of a U-Net: {reason}",
        accepted="a model with features of strides 2 (or from 4), ..., 32, see docs/encoders.md",
        advice=f"model.encoder={TIMM}convnext_tiny",
    )
