"""The typed schema of the network: the options of section `model`, see schema.py for the others'."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from unetseg.names import (
    DENSENETS,
    FLOWS,
    FUSED,
    LEVELS,
    OWN_CLASS,
    RESNETS,
    SCALES,
    SHORT_SKIPS,
    SKIPS,
    has_features,
    has_gradient,
    has_stem_skip,
    own_short_skips,
    why_not_looks_linear,
    why_not_withheld,
)
from unetseg.options.messages import (
    an_encoder,
    dose_per_level,
    format_value,
    one_of,
    one_of_own,
    one_or_per_level,
    rejected,
    scale_per_level,
)
from unetseg.options.section import Section, Text
from unetseg.options.starting_weights import are_of_a_whole_encoder, check_weights


class Model(Section):
    """The U-Net."""

    encoder: str = Field(
        description="an encoder of smp (resnet34, densenet121, efficientnet-b0, vgg16_bn, mit_b0, ...) or tu-NAME of a "
        "model of timm with stages (tu-convnext_tiny, ...)"
    )
    weights: Text | None = Field(
        description="imagenet (downloaded by smp or timm) | null | PATH of an encoder's .pth or .safetensors | RUN, "
        "CKPT, a folder of save_pretrained or hf:USER/NAME[@REVISION]: the whole network where it fits; encoder:RUN, "
        "...: its encoder alone"
    )
    strict_weights: bool = Field(description="false: of a file of weights take what fits, also of another encoder's")
    freeze_encoder: bool | int = Field(
        description="true: the encoder's weights and statistics stay as they start | N: in the first N epochs | false"
    )
    skip: str | list[str] = Field(
        description="long skips: concat | add | attention | multiply | respath (MultiResUNet) | scse (smp's) | "
        "placebo | shuffled (in training another picture's features) | none, or one per level, finest first; or, of "
        "all levels, nested (U-Net++) | full (U-Net 3+) | channel (UCTransNet) | permuted (concat of another level's); "
        "or a fusion of your own, package.module:Class or {class: package.module:Class, ARGUMENT: VALUE}"
    )
    decoder: str | None = Field(
        description="null: the one that model.skip asks for | package.module:Class, one of your own"
    )
    skip_flow: str | list[str] = Field(
        description="both | forward (no gradient) | backward (no features), or one per level, finest first"
    )
    skip_gradient: float | list[float] = Field(
        description="what the gradient that comes back by a long skip is multiplied with: 0 (as skip_flow=forward) ... "
        "1 (as both) or more, or one number per level, finest first"
    )
    skip_scale: str | float | list[float] = Field(
        description="what a long skip's features are multiplied with: 1, a number above 0, or one per level, finest "
        "first | kappa: 0.7^(level - 1) | learned: a small network's factor for each channel (ScaleLong)"
    )
    auxiliary: bool = Field(
        description="true: while training a head on each level's encoder features predicts the mask, too (deep "
        "supervision): a gradient for the encoder without any skip"
    )
    deep_supervision: bool = Field(
        description="true: while training a head on each of the decoder's blocks predicts the mask, too; of nested on "
        "the nodes of level 1, of full on each node and the bottleneck"
    )
    stem_skip: bool = Field(
        description="true: a long skip of stride 1 as well, level 0: the picture itself, fused as level 1's features"
    )
    match_parameters: bool = Field(description="true: scale the decoder to the parameters of skip=concat, within 1 %")
    short_skips: bool | Literal["add", "concat"] = Field(
        description="true: the encoder's own | add, concat: a ResNet that concatenates, a DenseNet that adds | false: "
        "neither"
    )
    normalisation: Literal["batch", "none"] = Field(description="none: no batch normalisation, in a ResNet's U-Net")
    initialisation: Literal["he", "glorot", "looks_linear"] = Field(
        description="random weights: he, or what the encoder's authors chose | glorot (before He et al. 2015), in a "
        "ResNet or DenseNet | looks_linear (Balduzzi et al. 2017), in a ResNet with short_skips=false or concat"
    )

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder(cls, value: object) -> str:
        return an_encoder(value)

    @field_validator("short_skips", mode="before")
    @classmethod
    def _short_skips(cls, value: object, info: ValidationInfo) -> bool | str:
        if isinstance(value, bool):
            return value
        way = one_of(value, SHORT_SKIPS, ", true, false")
        return True if way == own_short_skips(info.data.get("encoder", "")) else way

    @field_validator("skip", mode="before")
    @classmethod
    def _skip(cls, value: object) -> str | list[str]:
        return one_or_per_level(value, SKIPS, "model.skip", FUSED, own=True)

    @field_validator("decoder", mode="before")
    @classmethod
    def _decoder(cls, value: object) -> str | None:
        return None if value is None else one_of_own(value, f"null, or {OWN_CLASS}")

    @field_validator("skip_flow", mode="before")
    @classmethod
    def _skip_flow(cls, value: object) -> str | list[str]:
        return one_or_per_level(value, FLOWS, "model.skip_flow")

    @field_validator("skip_gradient", mode="before")
    @classmethod
    def _skip_gradient(cls, value: object) -> float | list[float]:
        return dose_per_level(value, "model.skip_gradient")

    @field_validator("skip_scale", mode="before")
    @classmethod
    def _skip_scale(cls, value: object) -> str | float | list[float]:
        return scale_per_level(value, SCALES, "model.skip_scale")

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: str | None) -> str | None:
        if value is not None:
            check_weights(value)
        return value

    @field_validator("freeze_encoder", mode="before")
    @classmethod
    def _freeze_encoder(cls, value: object) -> bool | int:
        if isinstance(value, int) and (isinstance(value, bool) or value >= 1):
            return value
        raise rejected("false, true, or the number of the first epochs, 1 or more", "true")

    @model_validator(mode="after")
    def _flow_is_the_kinds(self) -> Model:
        kinds, flows = (v if isinstance(v, list) else [v] * LEVELS for v in (self.skip, self.skip_flow))
        levels = [(kind, flow, why_not_withheld(kind, flow)) for kind, flow in zip(kinds, flows, strict=True)]
        if reasons := {kind: reason for kind, _, reason in levels if reason}:
            fitting = ["both" if reason else flow for _, flow, reason in levels]
            accepted = ", ".join(f"{kind} ({reason})" for kind, reason in reasons.items())
            raise rejected(
                f"skip_flow=both or forward at each level whose skip is {accepted}",
                f"model.skip_flow={format_value(fitting if len({*fitting}) > 1 else fitting[0])}",
            )
        return self

    @model_validator(mode="after")
    def _dose_has_a_gradient(self) -> Model:
        kinds, flows, doses = (
            value if isinstance(value, list) else [value] * LEVELS
            for value in (self.skip, self.skip_flow, self.skip_gradient)
        )
        levels = zip(kinds, flows, doses, strict=True)
        fitting = [dose if has_gradient(str(kind), str(flow)) else 1.0 for kind, flow, dose in levels]
        if fitting != doses:
            raise rejected(
                "skip_gradient=1 at each level whose skip is placebo or none, or whose skip_flow is not both: there is "
                "no gradient of the skip to multiply",
                f"model.skip_gradient={format_value(fitting)}",
            )
        return self

    @model_validator(mode="after")
    def _frozen_encoder_has_no_gradient(self) -> Model:
        if self.freeze_encoder is True:
            doses = self.skip_gradient if isinstance(self.skip_gradient, list) else [self.skip_gradient]
            if any(dose != 1 for dose in doses):
                raise rejected(
                    "skip_gradient=1 with freeze_encoder=true: no gradient reaches the encoder", "model.skip_gradient=1"
                )
            if self.auxiliary:
                raise rejected(
                    "auxiliary=false with freeze_encoder=true: its heads would teach the encoder, which stays as it is",
                    "model.auxiliary=false",
                )
        return self

    @model_validator(mode="after")
    def _scale_has_features(self) -> Model:
        kinds, flows = (value if isinstance(value, list) else [value] * LEVELS for value in (self.skip, self.skip_flow))
        carry = [has_features(str(kind), str(flow)) for kind, flow in zip(kinds, flows, strict=True)]
        named = isinstance(self.skip_scale, str)
        scales = self.skip_scale if isinstance(self.skip_scale, list) else [self.skip_scale] * LEVELS
        fitting = [scale if there else 1.0 for scale, there in zip(scales, carry, strict=True)]
        if (not any(carry)) if named else fitting != scales:
            raise rejected(
                "skip_scale=1 at each level whose skip is placebo or none, or whose skip_flow is backward: there are "
                "no features to multiply",
                f"model.skip_scale={'1' if named else format_value(fitting)}",
            )
        return self

    @model_validator(mode="after")
    def _own_decoder_has_levels(self) -> Model:
        kinds = self.skip if isinstance(self.skip, list) else [self.skip]
        whole = next((kind for kind in kinds if kind in SKIPS and kind not in FUSED), None)
        if self.decoder is not None and (self.stem_skip or whole):
            wrong = f"model.skip={whole}, a decoder itself" if whole else "model.stem_skip=true"
            raise rejected(f"model.decoder=null with {wrong}", "model.decoder=null")
        return self

    @model_validator(mode="after")
    def _stem_skip_is_of_a_kind(self) -> Model:
        finest = self.skip[0] if isinstance(self.skip, list) else self.skip
        if self.stem_skip and not has_stem_skip(finest):
            raise rejected(
                "stem_skip=false with skip=none at level 1, whose kind it has, and with nested, full, channel and "
                "permuted",
                "model.stem_skip=false",
            )
        return self

    @model_validator(mode="after")
    def _variants(self) -> Model:
        whole = self.short_skips is True and self.normalisation == "batch"
        if self.normalisation == "none" and self.encoder not in RESNETS:
            raise rejected(
                f"for normalisation=none: {', '.join(RESNETS)}; a layer of a DenseNet begins with its normalisation, "
                "and what the other encoders would be without it is not defined",
                "model.encoder=resnet50",
            )
        if self.short_skips is not True and self.encoder not in RESNETS + DENSENETS:
            raise rejected(
                f"for short_skips={format_value(self.short_skips)}: {', '.join(RESNETS + DENSENETS)}; what the other "
                "encoders would be with other short skips is not defined",
                "model.encoder=resnet50",
            )
        if self.initialisation == "glorot" and self.encoder not in RESNETS + DENSENETS:
            raise rejected(
                f"for initialisation=glorot: {', '.join(RESNETS + DENSENETS)}; other encoders have starts of their "
                "own, and layers that are no plain convolutions",
                "model.encoder=resnet50",
            )
        if self.initialisation == "looks_linear":
            kinds = self.skip if isinstance(self.skip, list) else [self.skip]
            others = self.stem_skip or self.match_parameters
            wanted, instead = why_not_looks_linear(self.encoder, self.short_skips, kinds, self.skip_scale, others)
            if wanted:
                raise rejected(f"for initialisation=looks_linear: {wanted}", f"model.{instead}")
        published = self.weights is not None and are_of_a_whole_encoder(self.weights)
        if published and not (whole and self.initialisation == "he"):
            raise rejected(
                "model.weights=null with other short skips than the encoder's own, normalisation=none or "
                "another initialisation than he",
                "model.weights=null",
            )
        return self


class ModelOfSweep(Model):
    """The U-Net of a sweep's run, which may have begun: then it needs nothing of what its first weights came from."""

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: str | None) -> str | None:
        return value  # preflight.start looks for it where a run begins
