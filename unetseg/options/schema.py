"""The typed schema of every option of a training and of a sweep; command_schema.py has the other commands'.

Imports neither torch nor Lightning: a wrong option fails within a second. Defaults live in conf/ only; a field's
description is what `--help` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from unetseg.names import (
    DENSENETS,
    FLOWS,
    FUSED,
    LEVELS,
    LOSSES,
    RESNETS,
    SCALES,
    SHORT_SKIPS,
    SKIPS,
    class_names,
    has_features,
    has_gradient,
    has_stem_skip,
    own_short_skips,
    why_not_withheld,
)
from unetseg.options.data_schema import Folder, HuggingFace, Pets, Synthetic
from unetseg.options.loss import check_loss_for_classes, checked_boundary_weight, checked_class_weights, checked_loss
from unetseg.options.messages import (
    an_encoder,
    dose_per_level,
    format_value,
    one_of,
    one_or_per_level,
    rejected,
    scale_per_level,
)
from unetseg.options.section import Section, Text
from unetseg.options.starting_weights import are_of_a_whole_encoder, check_weights
from unetseg.options.trainer import check_trainer


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
        "all levels, nested (U-Net++) | full (U-Net 3+) | channel (UCTransNet) | permuted (concat of another level's)"
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
    initialisation: Literal["he", "glorot"] = Field(
        description="random weights: he, or what the encoder's authors chose | glorot (before He et al. 2015), in a "
        "ResNet or DenseNet"
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
        return one_or_per_level(value, SKIPS, "model.skip", FUSED)

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
        published = self.weights is not None and are_of_a_whole_encoder(self.weights)
        if published and not (whole and self.initialisation == "he"):
            raise rejected(
                "model.weights=null with other short skips than the encoder's own, normalisation=none or "
                "initialisation=glorot",
                "model.weights=null",
            )
        return self


class Optimizer(Section):
    """The optimizer, and the schedule of its learning rate."""

    name: Text = Field(description="adamw | adam | sgd (Nesterov's momentum, 0.9) | a name of timm.optim, such as lion")
    lr: float = Field(gt=0, description="learning rate at the start, for steps of data.batch_size pictures")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        description="what lr is multiplied by where steps are k times as large: none 1 | linear k | sqrt k^0.5"
    )
    encoder_lr_factor: float = Field(
        gt=0, description="what lr is multiplied by for the encoder; below 1 where it is trained already"
    )
    weight_decay: float = Field(ge=0, description="weight decay: decoupled in adamw, part of the gradient in adam, sgd")
    arguments: dict[str, Any] | None = Field(
        description="further arguments of the optimizer's class, such as {momentum:0.95}; or null"
    )
    schedule: Literal["cosine", "poly", "one_cycle", "constant", "plateau"] = Field(
        description="of lr over all steps: cosine (to 0) | poly (to 0, power 0.9) | one_cycle (up from lr/25, then "
        "to 0) | constant | plateau (a tenth of it after `patience` validations without a better val/iou)"
    )
    warmup_epochs: float = Field(ge=0, description="epochs in which lr rises to its full value; one_cycle's 0 is 30 %")
    patience: int = Field(ge=0, description="validations that plateau waits for a better val/iou")
    ema: float | None = Field(
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is scored and saved, such as 0.99; null",
    )

    @field_validator("arguments")
    @classmethod
    def _arguments(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        own = {"lr", "weight_decay", "params"} & set(value or {})
        if own:
            raise rejected("arguments without lr and weight_decay, which are options of their own", "optimizer.lr=...")
        return value


class Gradients(Section):
    """The gradient flow."""

    every_n_steps: int = Field(ge=0, description="steps between two readings of the gradient flow; 0: none at all")
    routes: Literal["exits", "none"] = Field(
        description="exits: read as well by which exit of the encoder, a level's long skip or the bottleneck, the "
        "gradient of its weights came, and by which of its short or dense skips that of its features | none"
    )
    routes_every_n_steps: int = Field(ge=1, description="steps between two readings of the routes, which cost more")


class Checkpoint(Section):
    """When last.ckpt is written besides the end of each epoch; best.ckpt follows every validation."""

    every_n_minutes: float | None = Field(gt=0, description="minutes between two writes of last.ckpt; null: never")
    every_n_steps: int | None = Field(ge=1, description="steps between two writes of last.ckpt; null: never")


class Guards(Section):
    """What is done when something goes wrong."""

    nonfinite_loss: Literal["stop", "skip"] = Field(
        description="a batch whose loss is NaN or inf: stop | skip (no step is taken; it is named and counted)"
    )
    unreadable_image: Literal["stop", "skip"] = Field(description="a file that can't be read: stop | skip (left out)")


class Wandb(Section):
    """Weights & Biases, read when logger=wandb."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        description="auto (online only with a key) | online | offline | disabled"
    )
    project: Text = Field(min_length=1, description="W&B project; with logger=mlflow the experiment")
    entity: Text | None = Field(description="W&B user or team; null: the key's own")
    images: bool = Field(
        description="false: no pictures of the validation, only numbers and figures of them; for each logger"
    )
    log_model: bool = Field(description="true: upload best.ckpt as an artifact, when online")


class Train(Section):
    """The options of python -m unetseg.train."""

    model: Model
    data: Annotated[Pets | Folder | HuggingFace | Synthetic, Field(discriminator="name")]
    loss: str | dict[str, float | dict[str, float]] = Field(
        description=f"{' | '.join(LOSSES)}, or a sum: a table of names and weights, in quotes: "
        "'loss={dice:1,focal:0.5}', also with parameters: 'loss={tversky:{alpha:0.3,beta:0.7}}'"
    )
    class_weights: Literal["balanced"] | list[float] | None = Field(
        description="null | balanced (the fewer pixels a class has in the training masks, the more they count) | a "
        "number for each class: what its pixels count in the losses of pixels, and with three classes and more what it "
        "counts in dice, jaccard, tversky and mcc"
    )
    boundary_weight: float | None = Field(
        description="null | what pixels between two objects that touch count more in the losses of pixels: 10 in "
        "Ronneberger et al. 2015"
    )
    optimizer: Optimizer
    early_stopping: int | None = Field(
        ge=1, description="validations without a better val/iou after which a training ends; null: it runs to its end"
    )
    find_lr: bool = Field(
        description="true: try learning rates over 100 steps, draw the loss over them, suggest one and train nothing"
    )
    trainer: dict[str, Any] = Field(description="arguments of Lightning's Trainer, unchanged")
    logger: Literal["wandb", "tensorboard", "mlflow", "csv", "none"] = Field(
        description="wandb | tensorboard | mlflow | csv | none; metrics.csv is written whatever is chosen"
    )
    wandb: Wandb
    gradients: Gradients
    checkpoint: Checkpoint
    guards: Guards
    channels_last: bool = Field(description="memory layout with channels innermost: faster on CPUs and GPUs")
    compile: bool = Field(description="torch.compile: the first step takes a minute or more; needs a C++ compiler")
    seed: int = Field(ge=0, lt=2**32, description="seed of weights, order and augmentation")
    name: Text | None = Field(description="name of the run folder; null: made of the options and the time")
    output: Text = Field(description="folder that holds the run folders")
    resume: Text | None = Field(description="run folder of a training that was stopped: go on from its last.ckpt")
    allow_changes: list[Text] = Field(description="options that may differ from those the resumed run began with")
    dry_run: bool = Field(
        description="true: look at the data as a training would, build the model, say what would be trained, and stop: "
        "nothing is trained and no run folder made"
    )
    sweep: dict[str, Text] = Field(description="an experiment's axes in Hydra's comma syntax: --multirun, ablate")

    @field_validator("loss", mode="before")
    @classmethod
    def _loss(cls, value: object) -> str | dict[str, float | dict[str, float]]:
        return checked_loss(value)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights(cls, value: object) -> str | list[float] | None:
        return checked_class_weights(value)

    @field_validator("boundary_weight", mode="before")
    @classmethod
    def _boundary_weight(cls, value: object) -> float | None:
        return checked_boundary_weight(value)

    @field_validator("trainer")
    @classmethod
    def _trainer(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_trainer(value)
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and (not value or "/" in value or value in (".", "..")):
            raise rejected("a plain folder name without '/'; the folder above it is `output`", "null")
        return value

    @field_validator("resume")
    @classmethod
    def _resume(cls, value: str | None) -> str | None:
        if value is not None and not (Path(value) / "config.yaml").is_file():
            raise rejected("the run folder of a training that was stopped: it holds a config.yaml", "null")
        return value

    @model_validator(mode="after")
    def _probes_read_whole_weights(self) -> Train:
        if str(self.trainer.get("strategy")).startswith(("fsdp", "deepspeed")) and self.gradients.every_n_steps:
            raise rejected(
                "trainer.strategy=ddp; with others, which share the weights out, no gradient probes",
                "gradients.every_n_steps=0",
            )
        return self

    @model_validator(mode="after")
    def _shuffled_pictures_are_several(self) -> Train:
        kinds = self.model.skip if isinstance(self.model.skip, list) else [self.model.skip]
        if "shuffled" in kinds and self.data.batch_size == 1 and self.data.global_batch_size is None:
            raise rejected("data.batch_size=2 or more with skip=shuffled, to exchange features", "data.batch_size=8")
        return self

    @model_validator(mode="after")
    def _thawed_weights_are_whole(self) -> Train:
        sharded = str(self.trainer.get("strategy")).startswith(("fsdp", "deepspeed"))
        if sharded and not isinstance(self.model.freeze_encoder, bool):
            raise rejected("trainer.strategy=ddp with model.freeze_encoder=EPOCHS", "model.freeze_encoder=true")
        return self

    @model_validator(mode="after")
    def _schedule_fits_length(self) -> Train:
        optimizer, epochs = self.optimizer, self.trainer.get("max_epochs") or 0
        if optimizer.schedule == "plateau" and optimizer.warmup_epochs:
            raise rejected("optimizer.warmup_epochs=0 with schedule=plateau", "optimizer.warmup_epochs=0")
        if 0 < epochs <= optimizer.warmup_epochs:
            raise rejected(
                f"optimizer.warmup_epochs below trainer.max_epochs, {epochs}",
                f"optimizer.warmup_epochs={epochs / 10:g}",
            )
        waiting = optimizer.schedule == "plateau" or self.early_stopping is not None
        if waiting and self.trainer.get("limit_val_batches") == 0:
            raise rejected(
                "validations, for which early_stopping and schedule=plateau wait", "trainer.limit_val_batches=1.0"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_classes(self) -> Train:
        classes = class_names(self.data.model_dump())
        check_loss_for_classes(self.loss, classes, self.class_weights, self.boundary_weight)
        return self


class Ablate(Train):
    """The options of python -m unetseg.ablate."""

    jobs: int = Field(ge=1, description="runs at once; the visible GPUs are shared out among them")
    search: Literal["optuna"] | None = Field(
        description="null: each combination is run | optuna: options given as choices, range(...), interval(...) or "
        "tag(log,interval(...)) are searched for the best val/iou"
    )
    trials: int | None = Field(ge=1, description="trials of a search; null without one")

    @model_validator(mode="after")
    def _trials_are_a_searchs(self) -> Ablate:
        if (self.search is None) != (self.trials is None):
            raise rejected("search=optuna with trials=N, or neither", "search=optuna trials=50")
        return self

    @model_validator(mode="after")
    def _trains(self) -> Ablate:
        for option in ("dry_run", "find_lr"):
            if getattr(self, option):
                raise rejected(
                    f"{option}=false; for each of a sweep's runs it is one of train",
                    f"python -m unetseg.train --multirun, the same options and {option}=true",
                )
        return self
