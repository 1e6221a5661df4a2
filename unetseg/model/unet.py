"""SkipUnet: an encoder of segmentation-models-pytorch (smp), a U-Net decoder with switchable long skips, a head.

Legend: B batch, C input channels, K output channels, H x W the input's resolution (any, also odd), L = 4 levels;
level l = 1 ... 4 has stride 2^l, and lists over levels are written finest first.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from unetseg.errors import UserError
from unetseg.model import looks_linear
from unetseg.model.controls import make_scales, scales_of
from unetseg.model.decoder import Decoder
from unetseg.model.encoders import has_picture_first, make_encoder
from unetseg.model.hub import HubFolder
from unetseg.model.matching import matched_channels
from unetseg.model.skips import Fusion
from unetseg.model.topologies import make_decoder
from unetseg.names import (
    DENSENETS,
    FLOWS,
    FUSED,
    LEVELS,
    RESNETS,
    SCALES,
    SKIPS,
    has_features,
    has_gradient,
    has_stem_skip,
    is_own,
    nearest_first,
    why_not_looks_linear,
    why_not_withheld,
)


class SkipUnet(nn.Module, HubFolder):
    """A U-Net whose long skips are a switch.

    With skip="concat" it has the state-dict keys of `smp.Unet` and, with the same weights, equal outputs and
    gradients to the last bit. `save_pretrained`, `from_pretrained` and `push_to_hub` are those of smp's models; a
    folder saved with concat also loads as smp.Unet, see `unetseg.model.hub`.

    Args:
        encoder: an encoder of smp, or `tu-` and the name of a model of timm with features of strides 2, ..., 32, or
            from 4. At a level of which it has no features no kind of skip brings anything.
        skip: concat | add | attention | multiply | respath | scse | placebo | shuffled | none, or a list with one kind
            for each of the 4 levels, finest first; or nested (U-Net++) | full (U-Net 3+) | channel (UCTransNet) |
            permuted (concat of another level's features), decoders of all levels. A class of your own, a subclass of
            `unetseg.model.skips.Fusion`, is a kind as well: "package.module:Class" or "package.module:Class(argument=
            4)", which is imported.
        decoder: None for the decoder that `skip` asks for; or a class of your own, as for `skip`, see
            `unetseg.model.own.own_decoder`.
        skip_flow: both | forward | backward, or a list, see `unetseg.model.skips.FLOWS`; without effect for placebo and
            none, which let nothing through. `names.NOT_WITHHELD` says which kinds have no backward, and why.
        skip_gradient: the dose: what the gradient that comes back by a long skip is multiplied with, a finite number
            >= 0 or a list, finest first; the features are as ever. 0 is the flow forward and 1 is both, to the last
            bit; above 1 the skip is heard louder. A negative one would send the encoder up the loss by that path, and
            be no dose of what the skip brings. Other numbers than 1 need a level that has such a gradient: any kind but
            placebo and none, with skip_flow="both".
        skip_scale: what the features that a long skip carries are multiplied with: a number above 0, or a list, finest
            first; "kappa", 0.7^(level - 1), or "learned", of the levels with features, see `unetseg.model.controls`. It
            multiplies the gradient that comes back as well, beside skip_gradient. 1 is the network as it is, to the
            last bit.
        weights: "imagenet" downloads the encoder's weights by smp or timm; None starts from random ones. Files are read
            by `unetseg.model.weights.load_encoder`.
        stem_skip: a long skip of stride 1 as well, level 0: the last block of the decoder gets the input itself, as the
            last layer of fastai's DynamicUnet does (Howard and Gugger 2020), fused by level 1's kind and flow. It adds
            no layer to the encoder, so no gradient comes back by it. Without it the finest long skip has stride 2, as
            in smp.Unet.
        match_parameters: scale the decoder's widths until the network has the parameters of skip="concat", within 1 %.
        short_skips: True for the encoder's own, "add" in a ResNet and "concat" in a DenseNet; the other one of these;
            or False for none, see `unetseg.model.short_skips`.
        normalisation: "batch", or "none" for a ResNet and a decoder without batch normalisation.
        initialisation: random weights by "he" (He et al. 2015: torchvision's and smp's own) or, of every convolution,
            by "glorot" (Glorot and Bengio 2010, normal), which loses half the variance at each ReLU. Encoders other
            than ResNets and DenseNets have starts of their own, and layers that are no plain convolutions: "he" keeps
            these, "glorot" is refused. "looks_linear" (Balduzzi et al. 2017) begins as a linear network but for the
            stem's pooling: a ResNet with short_skips False or "concat", and concat, add, shuffled or none, see
            `unetseg.model.looks_linear`.
        classes: output channels K.
        decoder_channels: widths of the decoder's blocks, coarsest first.
        in_channels: input channels C.

    Raises:
        ValueError: an unknown kind, a list of the wrong length, short skips, a normalisation or an initialisation that
            this encoder can't have, a skip_flow that a level's kind doesn't have, a skip_gradient at a level that has
            no such gradient, a skip_scale at one that carries no features, a stem_skip where level 1 has no long skip
            or one decoder is of all levels.
        UserError: an encoder that is unknown, has no such weights, or no features that a U-Net can take; a stem_skip
            with an encoder whose first features are not the picture (VGG).

    Examples:
        >>> import torch
        >>> net = SkipUnet("resnet18", skip=["none", "concat", "add", "concat"], weights=None, classes=3)
        >>> net(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 3, 64, 96])
    """

    def __init__(
        self,
        encoder: str = "resnet34",
        *,
        skip: str | Sequence[str] = "concat",
        decoder: str | None = None,
        skip_flow: str | Sequence[str] = "both",
        skip_gradient: float | Sequence[float] = 1.0,
        skip_scale: str | float | Sequence[float] = 1.0,
        stem_skip: bool = False,
        match_parameters: bool = False,
        weights: str | None = "imagenet",
        short_skips: bool | str = True,
        normalisation: str = "batch",
        initialisation: str = "he",
        classes: int = 1,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        in_channels: int = 3,
    ):
        super().__init__()
        self.skip = _per_level(skip, SKIPS if isinstance(skip, str) else FUSED, "skip", own=True)
        self.skip_flow = _per_level(skip_flow, FLOWS, "skip_flow")
        for level, (kind, flows) in enumerate(zip(self.skip, self.skip_flow, strict=True), start=1):
            if reason := why_not_withheld(kind, flows):
                raise ValueError(f"skip_flow={flows} at level {level}: skip={kind} doesn't have it: {reason}")
        self.skip_gradient = _doses(skip_gradient, self.skip, self.skip_flow)
        self.skip_scale = _scales(skip_scale, self.skip, self.skip_flow)
        self.own_decoder = decoder
        if decoder is not None and (stem_skip or not {*self.skip} <= {*FUSED} | {*filter(is_own, self.skip)}):
            raise ValueError(f"decoder={decoder} has no stem_skip, and no skip={self.skip[0]}, a decoder of its own")
        self.stem_skip = stem_skip
        if stem_skip and not has_stem_skip(self.skip[0]):
            raise ValueError(
                f"stem_skip with skip={self.skip[0]} at level 1: it would be of that kind, and there is none"
            )
        if initialisation == "glorot" and encoder not in RESNETS + DENSENETS:
            raise ValueError(f"{encoder} has a start of its own: glorot is for {', '.join(RESNETS + DENSENETS)}")
        if initialisation == "looks_linear":
            others = stem_skip or match_parameters
            if wanted := why_not_looks_linear(encoder, short_skips, self.skip, skip_scale, others)[0]:
                raise ValueError(f"initialisation=looks_linear is for {wanted}")
        self.encoder_name = encoder
        self.encoder = make_encoder(
            encoder, in_channels=in_channels, weights=weights, short_skips=short_skips, normalisation=normalisation
        )
        if stem_skip and not has_picture_first(self.encoder):
            raise UserError(
                f"stem_skip with encoder={encoder}, whose first features are its own, and no picture",
                accepted="stem_skip with encoders whose finest features have stride 2 or more, such as resnet18",
                advice="stem_skip=false",
            )
        if initialisation == "glorot":  # before the decoder draws, so that the encoder is the same with every skip kind
            _glorot(self.encoder)
        if initialisation == "looks_linear":
            looks_linear.start_encoder(self.encoder)
        encoder_channels = cast(Sequence[int], self.encoder.out_channels)
        scales = make_scales(encoder_channels[1:-1], self.skip_scale)
        scale, centre = 1.0, encoder.startswith("vgg")  # as smp.Unet has it
        if match_parameters:
            calibrations = sum(p.numel() for part in scales for p in part.parameters())
            decoder_channels, scale = matched_channels(
                self.encoder,
                decoder_channels,
                self.skip,
                normalisation,
                classes,
                calibrations,
                stem_skip,
                centre,
                decoder,
            )
        self.decoder = make_decoder(
            encoder_channels,
            decoder_channels,
            self.skip,
            self.skip_flow,
            self.skip_gradient,
            normalisation,
            scale,
            stem_skip,
            centre,
            decoder,
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, kernel_size=3)
        kept = self._own_weights()
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)
        if initialisation == "glorot":
            _glorot(self.decoder)
            _glorot(self.segmentation_head)
        if initialisation == "looks_linear":
            looks_linear.start_decoder(self.decoder, self.segmentation_head, encoder_channels[-1])
        self.decoder.load_state_dict(kept, strict=False)
        for fusion, own in zip(self.fusions, scales, strict=True):  # last: no initialisation is of these
            fusion.scale = own

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, BxCxHxW float, to logits, BxKxHxW float."""
        return self.decode(self.encoder(images))

    def decode(self, features: Sequence[Tensor], with_nodes: bool = False) -> Any:
        """Map the encoder's features, [input, stride 2, ..., stride 32], to logits, BxKxHxW float.

        With `with_nodes` also return the decoder's features that deep supervision reads, `decoder.node_channels` wide.
        """
        if not with_nodes:
            return self.segmentation_head(self.decoder(features))
        decoded, nodes = self.decoder(features, with_nodes=True)
        return self.segmentation_head(decoded), nodes

    def _own_weights(self) -> dict[str, Tensor]:
        """Return copies of the decoder's weights that stay as their constructor made them.

        They are those of the user's own classes, whose inherited parts of Decoder begin as the U-Net's, and of
        `channel`'s gate, which begins as torch's layers do.
        """
        ours = ("center.", "blocks.") if isinstance(self.decoder, Decoder) else ()
        own = tuple(
            f"{name}."
            for name, part in self.decoder.named_modules()
            if isinstance(part, Fusion) and type(part).__module__ != Fusion.__module__
        )
        return {
            name: weight.clone()
            for name, weight in self.decoder.state_dict().items()
            if name.startswith(own) or (self.own_decoder is not None and not name.startswith(ours))
        }

    @property
    def fusions(self) -> list[Fusion]:
        """The fusion of each level, finest first."""
        return [cast(Fusion, fusion) for fusion in cast(Any, self.decoder).fusions]

    @property
    def fusion_of(self) -> dict[int, Fusion]:
        """The fusion of each level by its number; 0 is that of the stem skip, where there is one."""
        stem = {0: cast(Any, self.decoder).blocks[-1].fusion} if self.stem_skip else {}
        return stem | dict(enumerate(self.fusions, start=1))

    @property
    def why_not_by_level(self) -> str:
        """Why no block merges the deep path with the long skip of its own level alone; empty where each does."""
        whole = [kind for kind in dict.fromkeys(self.skip) if kind not in FUSED and not is_own(kind)]
        if not (self.own_decoder or whole):
            return ""
        setting = f"decoder={self.own_decoder}" if self.own_decoder else f"skip={', '.join(whole)}"
        return f"with {setting} no block merges the deep path with its own level's long skip"


def _glorot(part: nn.Module) -> None:
    """Draw each convolution's weights by its name, so that they are the same whatever other layers there are."""
    seed = int(torch.randint(2**62, ()))
    for name, module in part.named_modules():
        if isinstance(module, nn.Conv2d):
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
            nn.init.xavier_normal_(module.weight, generator=generator)


def _per_level(value: str | Sequence[str], names: Sequence[str], argument: str, own: bool = False) -> list[str]:
    """Return one name a level, finest first; raise a ValueError for another name or number of names.

    With `own` a class of the user's own is a name as well.
    """
    kinds = [value] * LEVELS if isinstance(value, str) else list(value)
    unknown = [kind for kind in kinds if kind not in names and not (own and is_own(kind))]
    if unknown or len(kinds) != LEVELS:
        accepted = ", ".join(nearest_first(str(unknown[0]), names) if unknown else names)
        raise ValueError(f"{argument}={value!r}: accepted are {accepted}, or a list of {LEVELS} of them, finest first")
    return kinds


def _doses(value: float | Sequence[float], skip: Sequence[str], flow: Sequence[str]) -> list[float]:
    """Return skip_gradient as one number a level, finest first; raise a ValueError where one has no meaning."""
    doses = [float(dose) for dose in (value if isinstance(value, Sequence) else [value] * LEVELS)]
    if len(doses) != LEVELS or not all(math.isfinite(dose) and dose >= 0 for dose in doses):
        raise ValueError(f"skip_gradient={value!r}: accepted is a number >= 0, or a list of {LEVELS}, finest first")
    for level, (kind, flows, dose) in enumerate(zip(skip, flow, doses, strict=True), start=1):
        if dose != 1 and not has_gradient(kind, flows):
            raise ValueError(
                f"skip_gradient={dose:g} at level {level}: with skip={kind}, skip_flow={flows} it has to be 1, as "
                "placebo, none and other flows than both have no gradient of the skip to multiply"
            )
    return doses


def _scales(value: str | float | Sequence[float], skip: Sequence[str], flow: Sequence[str]) -> list[float | str]:
    """Return skip_scale as a number or "learned" a level, finest first; raise a ValueError where one has no meaning."""
    scales = scales_of(value) if not isinstance(value, str) or value in SCALES else []
    numbers = [scale for scale in scales if not isinstance(scale, str)]
    if len(scales) != LEVELS or not all(math.isfinite(scale) and scale > 0 for scale in numbers):
        accepted = f"{', '.join(SCALES)}, a number above 0, or a list of {LEVELS} numbers, finest first"
        raise ValueError(f"skip_scale={value!r}: accepted are {accepted}")
    carry = [has_features(kind, flows) for kind, flows in zip(skip, flow, strict=True)]
    if isinstance(value, str) and any(carry):
        scales = [scale if there else 1.0 for scale, there in zip(scales, carry, strict=True)]
    for level, (there, scale) in enumerate(zip(carry, scales, strict=True), start=1):
        if scale != 1 and not there:
            raise ValueError(
                f"skip_scale={value!r} at level {level}: with skip={skip[level - 1]}, skip_flow={flow[level - 1]} it "
                "has to be 1, as there are no features to multiply"
            )
    return scales
