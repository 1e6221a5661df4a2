"""A fusion and a decoder of the user's own class, tried before they are trained.

Legend: B batch, O output channels, H x W resolution; lists over levels are written finest first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unetseg import classes
from unetseg.classes import described
from unetseg.errors import UserError
from unetseg.model.skips import FUSIONS, Fusion
from unetseg.model.trial import build_tried, try_out
from unetseg.names import NOT_WITHHELD, has_features, is_own

SKIP, DECODER = "model.skip", "model.decoder"
"""The options that name them."""
OF_FUSION, TO_FUSION = ("deep_channels", "skip_channels"), ("flow", "gradient")
"""What a fusion is built with, in order and by name."""
OF_DECODER, TO_DECODER = ("encoder_channels", "channels"), ("skip", "flow", "gradient", "normalisation")
"""What a decoder is built with, likewise."""
SIZES = ((16, 12), (7, 24))
"""H and W of the features that a fusion is tried on."""
PICTURES = ((64, 96), (96, 32))
"""H and W of the pictures whose features a decoder is tried on."""


def check_fusion(kind: str) -> None:
    """Raise a UserError where a class of the user's own can't be imported, or built as a Fusion is."""
    classes.load(kind, SKIP, Fusion, OF_FUSION, TO_FUSION)


def check_decoder(decoder: str) -> None:
    """Raise a UserError where a class of the user's own can't be imported, or built as a decoder is."""
    classes.load(decoder, DECODER, nn.Module, OF_DECODER, TO_DECODER)


def own_fusion(kind: str, deep_channels: int, skip_channels: int, flow: str, gradient: float) -> Fusion:
    """Return a fusion of the user's own class, a subclass of Fusion, which has been tried.

    Raises:
        UserError: it doesn't keep to the rules of docs/extending.md.
    """
    widths, setting = (deep_channels, skip_channels), f"{SKIP}={kind}"

    def attempt(fusion: Fusion) -> None:
        _check_way(fusion, setting, flow, gradient)
        if flow == "backward" and not fusion.is_whole_without:
            raise UserError(
                f"skip_flow=backward with {setting}, whose is_whole_without is False: {NOT_WITHHELD['multiply']}",
                accepted="both, forward",
                advice="model.skip_flow=both",
            )
        for size in SIZES:
            inputs = [torch.rand(2, width, *size) for width in widths]
            try_out(fusion.train(), setting, inputs, (2, fusion.out_channels, *size))
        deep, zeros = (torch.zeros(2, width, *size) for width in widths)
        try_out(fusion.eval(), setting, [deep, zeros], (2, fusion.out_channels, *size))
        of_deep, _ = try_out(fusion, setting, [torch.rand_like(deep), zeros], (2, fusion.out_channels, *size))
        if fusion.is_whole_without and not (of_deep is not None and of_deep.any()):
            raise UserError(
                f"{setting} leaves nothing of the deep path where the skip's features are zeros",
                accepted="a class that says so, by is_whole_without = False below its first line",
            )

    given = dict(zip(OF_FUSION, widths, strict=True)), dict(zip(TO_FUSION, (flow, gradient), strict=True))
    fusion: Fusion = build_tried(
        kind, SKIP, Fusion, *given, attempt, lambda: [torch.rand(2, width, *SIZES[0]) for width in widths]
    )
    return fusion


def own_decoder(
    decoder: str,
    encoder_channels: Sequence[int],
    channels: Sequence[int],
    skip: Sequence[str],
    flow: Sequence[str],
    gradient: Sequence[float],
    normalisation: str,
) -> nn.Module:
    """Return a decoder of the user's own class, which has been tried.

    The class is an nn.Module, built as MyDecoder(encoder_channels, channels, skip=..., flow=..., gradient=...,
    normalisation=...) with lists as Decoder has them. It maps the encoder's features, [input, stride 2, ...], to
    Bx(channels[-1])xHxW, and has `fusions`: the Fusion by which each level's features enter, finest first, and of the
    kind that `skip` says, where that is not concat: by concat a class may mean a way of its own. Deep
    supervision also needs `node_channels` and forward(features, with_nodes=True), as of Decoder. A subclass of Decoder
    has all of this.

    Raises:
        UserError: it is not so, or features enter by another way than their fusion.
    """
    setting, levels = f"{DECODER}={decoder}", len(encoder_channels) - 2

    def attempt(built: nn.Module) -> None:
        fusions: Any = getattr(built, "fusions", None)
        if (
            not isinstance(fusions, list | nn.ModuleList)
            or len({*map(id, fusions)}) != levels
            or len(fusions) != levels
            or not {*map(id, fusions)} <= {*map(id, built.modules())}
            or not all(isinstance(fusion, Fusion) for fusion in fusions)
        ):
            raise UserError(
                f"{setting} has no `fusions` of its levels",
                accepted=f"`fusions`: {levels} different objects of unetseg.model.skips.Fusion, finest level first, in "
                "an nn.ModuleList or in modules of its own",
                advice="unetseg.model.skips.passages, which returns one for each level",
            )
        for level, fusion in enumerate(fusions):
            _check_way(fusion, f"{setting}, level {level + 1}", flow[level], gradient[level])
            if encoder_channels[level + 1]:
                _check_kind(fusion, f"{setting}, level {level + 1}", skip[level], flow[level])
        for picture in PICTURES:
            features = _features(encoder_channels, picture)
            try_out(built.train(), setting, [features], (2, channels[-1], *picture))
        try_out(built.eval(), setting, [[*map(torch.zeros_like, features)]], (2, channels[-1], *picture))
        _check_levels(built, [*fusions], encoder_channels, setting)

    given = [*encoder_channels], [*channels]
    passed = [*skip], [*flow], [*gradient], normalisation
    places, keywords = dict(zip(OF_DECODER, given, strict=True)), dict(zip(TO_DECODER, passed, strict=True))
    result: nn.Module = build_tried(
        decoder, DECODER, nn.Module, places, keywords, attempt, lambda: [_features(encoder_channels, PICTURES[0])]
    )
    return result


def _check_levels(built: nn.Module, fusions: Sequence[Fusion], encoder_channels: Sequence[int], setting: str) -> None:
    """Raise a UserError where a decoder's fusions are not given their levels, or features enter beside them."""
    features = _features(encoder_channels, PICTURES[1])
    for level, fusion in enumerate(fusions, start=1):

        def without(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], level: int = level) -> Any:
            deep, skip = [*given, *(named[name] for name in ("deep", "skip") if name in named)]
            if skip.shape != features[level].shape or not torch.equal(skip, features[level]):
                raise UserError(
                    f"{setting} gives its fusions[{level - 1}] something else than the features of level {level}",
                    accepted=f"features[{level}] as an argument of self.fusions[{level - 1}], finest level first",
                )
            return (deep, torch.zeros_like(skip)), {}

        fusion.register_forward_pre_hook(without, with_kwargs=True)  # for good: what is tried is thrown away

    def result() -> Tensor:
        torch.default_generator.manual_seed(0)
        with torch.no_grad():
            return built(features)  # type: ignore[no-any-return]

    expected = result()
    for level in range(1, len(fusions) + 1):
        features[level] = torch.rand_like(features[level])
        if not torch.allclose(expected, result(), rtol=1e-4, atol=1e-6):
            raise UserError(
                f"{setting} takes the features of level {level} by another way than its fusion, so that "
                "skip_flow, skip_gradient and skip_scale would do nothing to them",
                accepted=f"features[{level}] as an argument of self.fusions[{level - 1}] alone",
            )


def check_nodes(built: nn.Module, decoder: str, encoder_channels: Sequence[int]) -> None:
    """Raise a UserError where a decoder of the user's own has not what deep supervision reads, see `own_decoder`."""
    problem, widths = "", getattr(built, "node_channels", None)
    if widths is None:
        problem = "has no `node_channels`"
    else:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                features = _features(encoder_channels, PICTURES[0])
                _, nodes = copy.deepcopy(built).eval()(features, with_nodes=True)
            if [node.shape[1] for node in nodes] != [*widths]:
                problem = f"returns nodes of other widths than node_channels, {', '.join(map(str, widths))}"
        except Exception as error:  # whatever the user's code raises
            problem = f"fails with with_nodes=True: {described(error)}"
    if problem:
        raise UserError(
            f"model.deep_supervision=true: {DECODER}={decoder} {problem}",
            accepted="forward(features, with_nodes=True) that returns the result and a list of features, and "
            "node_channels, their widths",
            advice="model.deep_supervision=false",
        )


def _check_way(fusion: Fusion, setting: str, flow: str, gradient: float) -> None:
    """Raise a UserError where a fusion lets something else through than what is asked."""
    if getattr(fusion.forward, "__func__", None) is not Fusion.forward:
        raise UserError(
            f"{setting}: {type(fusion).__name__} has a forward of its own, in which skip_flow, skip_gradient and "
            "skip_scale would do nothing",
            accepted="fuse(deep, skip), which Fusion.forward calls",
        )
    asked = {"flow": flow, "gradient": gradient}
    for name, value in asked.items():
        if getattr(fusion, name) != value:
            raise UserError(
                f"{setting}: the {name} of {type(fusion).__name__} is {getattr(fusion, name)!s:.40}, not {value}",
                accepted="a class that passes flow and gradient on, as by super().__init__(..., flow, gradient), and "
                "leaves both as they are",
            )
    if type(fusion.scale) is not nn.Identity:
        raise UserError(
            f"{setting}: {type(fusion).__name__} has a `scale` of its own, a name that skip_scale takes",
            accepted="any other name but flow, gradient, scale, out_channels and carries_features",
            advice="self.my_scale = ...",
        )


def _check_kind(fusion: Fusion, setting: str, kind: str, flow: str) -> None:
    """Raise a UserError where a decoder has another fusion than `model.skip` says, by which its run is named."""
    wanted = classes.find(kind, SKIP) if is_own(kind) else FUSIONS[kind]
    if fusion.carries_features != has_features(kind, flow) or not (kind == "concat" or isinstance(fusion, wanted)):
        raise UserError(
            f"{setting}: {type(fusion).__name__} is not model.skip={kind}",
            accepted="a class that takes `skip`, as a subclass of unetseg.model.decoder.Decoder does; or "
            "model.skip=concat, the default, with a class whose levels have a way of their own",
            advice="model.skip=concat",
        )


def _features(encoder_channels: Sequence[int], picture: Sequence[int]) -> list[Tensor]:
    """Return random features of two pictures of HxW, [input, stride 2, ...]."""
    sides = [[side >> level for side in picture] for level in range(len(encoder_channels))]
    return [torch.rand(2, width, *side) for width, side in zip(encoder_channels, sides, strict=True)]
