"""The typed schema of every option of every command: what each means and what it accepts.

Imports neither torch nor Lightning: a wrong option fails within a second. Defaults live in conf/ only; a field's
description is what `--help` prints.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from unetseg.names import (
    ENCODERS,
    FLOWS,
    IGNORED,
    LARGEST_SIZE,
    LEVELS,
    PETS_ROOT,
    RESNETS,
    SKIPS,
    class_names,
    has_gradient,
)
from unetseg.options.messages import dose_per_level, format_value, one_of, one_or_per_level, rejected
from unetseg.options.trainer import check_trainer

Text = Annotated[str, Strict(False)]
"""A text of the user's own, which may look like a number: a class may be called 0, a folder 2024."""


class Section(BaseModel):
    """A group of options; unknown keys are errors and values don't change after validation.

    A value is of its option's own type: true is no number, "3" and 3.0 are no whole numbers, 1 is not true.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        strict=True,
        coerce_numbers_to_str=True,
    )


class Model(Section):
    """The U-Net."""

    encoder: str = Field(description="ResNet or DenseNet of smp: resnet18 ... 152, densenet121 ... 201")
    weights: Text | None = Field(description="imagenet (downloaded by smp) | null | PATH of a .pth or .safetensors")
    strict_weights: bool = Field(description="false: of a file of weights take what fits, also of another encoder's")
    skip: str | list[str] = Field(
        description="long skips: concat | add | attention | placebo | none, or one per level, finest first"
    )
    skip_flow: str | list[str] = Field(
        description="both | forward (no gradient) | backward (no features), or one per level, finest first"
    )
    skip_gradient: float | list[float] = Field(
        description="what the gradient that comes back by a long skip is multiplied with: 0 (as skip_flow=forward) ... "
        "1 (as both) or more, or one number per level, finest first"
    )
    auxiliary: bool = Field(
        description="true: while training a head on each level's encoder features predicts the mask, too (deep "
        "supervision): a gradient for the encoder without any skip"
    )
    match_parameters: bool = Field(description="true: scale the decoder to the parameters of skip=concat, within 1 %")
    short_skips: bool = Field(description="false: a ResNet without the additions inside it")
    normalisation: Literal["batch", "none"] = Field(description="none: no batch normalisation, in a ResNet's U-Net")
    initialisation: Literal["he", "glorot"] = Field(description="random weights: he | glorot (before He et al. 2015)")

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder(cls, value: object) -> str:
        return one_of(value, ENCODERS)

    @field_validator("skip", mode="before")
    @classmethod
    def _skip(cls, value: object) -> str | list[str]:
        return one_or_per_level(value, SKIPS, "model.skip")

    @field_validator("skip_flow", mode="before")
    @classmethod
    def _skip_flow(cls, value: object) -> str | list[str]:
        return one_or_per_level(value, FLOWS, "model.skip_flow")

    @field_validator("skip_gradient", mode="before")
    @classmethod
    def _skip_gradient(cls, value: object) -> float | list[float]:
        return dose_per_level(value, "model.skip_gradient")

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: str | None) -> str | None:
        accepted = "imagenet, null, or the path of an encoder's state dict that exists and ends in .pth or .safetensors"
        file = Path(value or "imagenet")
        if value not in (None, "imagenet") and (file.suffix not in (".pth", ".safetensors") or not file.is_file()):
            raise rejected(accepted, "null")
        return value

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
    def _variants(self) -> Model:
        whole = self.short_skips and self.normalisation == "batch"
        if not whole and self.encoder not in RESNETS:
            raise rejected(
                f"for short_skips=false, normalisation=none: {', '.join(RESNETS)}; a DenseNet is made of short skips",
                "model.encoder=resnet50",
            )
        if self.weights is not None and not (whole and self.initialisation == "he"):
            raise rejected(
                "model.weights=null with short_skips=false, normalisation=none or initialisation=glorot",
                "model.weights=null",
            )
        return self


def _existing_folder(value: str) -> str:
    if not Path(value).is_dir():
        raise rejected("a folder that exists", "data=synthetic, which needs no data, or another data.root=FOLDER")
    return value


def _existing_checkpoint(value: str) -> str:
    if not Path(value).exists():
        raise rejected("a checkpoint file or a run folder that exists", "checkpoint=runs/NAME/checkpoints/best.ckpt")
    return value


ExistingFolder = Annotated[Text, AfterValidator(_existing_folder)]
ExistingCheckpoint = Annotated[
    Text,
    AfterValidator(_existing_checkpoint),
    Field(description="a checkpoint of unetseg.train, or its run folder"),
]


class Data(Section):
    """The options that every data set has."""

    size: int = Field(ge=32, le=LARGEST_SIZE, description="side in pixels of the square that pictures are resized to")
    batch_size: int = Field(ge=1, description="pictures per step and device")
    workers: int = Field(ge=0, le=256, description="loader processes; 0 loads in the training process")
    augment: bool = Field(description="random flip, scale, rotation and colour while training")
    cache: Literal["auto", "none", "ram", "disk", "device"] = Field(description="auto | none | ram | disk | device")
    global_batch_size: int | None = Field(ge=1, description="pictures per step over all devices; null: what comes out")
    range: list[float] | None = Field(
        description="[low,high]: the values of more than 8 bits that become black and white; null: 0 and 65535"
    )
    check: Literal["full", "headers", "none"] = Field(
        description="what is read before training: full (every mask) | headers (sizes) | none"
    )

    @field_validator("range")
    @classmethod
    def _range(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (len(value) != 2 or not value[0] < value[1]):
            raise rejected("two numbers, the lower one first, or null", "data.range=[0,4095]")
        return value


class Trimaps(Data):
    """The options of sets in the layout of Oxford-IIIT Pet."""

    target: Literal["pet", "trimap"] = Field(description="classes: pet (two) | trimap (three)")
    border: Literal["pet", "background", "ignore"] = Field(
        description="target=pet: what trimap value 3 (boundary) counts as: pet | background | ignore"
    )
    validation: Literal["every_10th"] | float = Field(
        description="every_10th line of trainval, or a share of it (0..0.5) stratified by breed and drawn with `seed`"
    )

    @field_validator("validation", mode="before")
    @classmethod
    def _validation(cls, value: object) -> object:
        if value == "every_10th" or (isinstance(value, float) and 0 < value <= 0.5):
            return value
        raise rejected("every_10th, or a share above 0 and up to 0.5", "every_10th")


class Pets(Trimaps):
    """Oxford-IIIT Pet."""

    name: Literal["pets"] = Field(description="pets | folder | synthetic")
    root: ExistingFolder | None = Field(description=f"folder of images/, annotations/; null: {PETS_ROOT}, downloaded")


class Synthetic(Trimaps):
    """Generated animals in the layout of Oxford-IIIT Pet."""

    name: Literal["synthetic"] = Field(description="pets | folder | synthetic")
    root: Text = Field(description="folder under which generated sets are kept")
    train_images: int = Field(ge=10, description="pictures generated for training and validation")
    test_images: int = Field(ge=1, description="pictures generated for the test")
    similarity: float = Field(ge=0, le=1, description="0..1 moves the animals' texture to the background's")
    generator_seed: int = Field(ge=0, description="seed of the generator; `seed` does not change the pictures")


class Folder(Data):
    """A user's own pictures and masks."""

    name: Literal["folder"] = Field(description="pets | folder | synthetic")
    root: ExistingFolder = Field(description="folder with images/ and masks/; train.txt, val.txt, test.txt if wanted")
    images: str | None = Field(
        description="pattern of the pictures below the root, such as {split}/{name}_sat.jpg; null: images/{name}.*"
    )
    masks: str | None = Field(
        description="pattern of the masks; one that ends in .json is LabelMe's with {name}, COCO's without; null: "
        "masks/{name}.*"
    )
    classes: list[Text] = Field(
        min_length=2, max_length=254, description="names of the mask values 0, 1, ...; null: those of `values`"
    )
    values: dict[str, int | str | list[int | str]] | None = Field(
        description='the mask values or colours of each class: {background:0,road:[1,255],ignore:"#ff0000"}'
    )
    threshold: float | None = Field(description="mask values above it are class 1, the others class 0")
    instances: bool | None = Field(
        description="true: a picture has many masks, one an object; data.masks fits them all"
    )
    ignore_index: int | None = Field(ge=0, le=255, description="mask value that is left out of loss and metrics")
    group: str | None = Field(
        description="pattern of the pictures' names with {group}, such as {group}_slice*: pictures of one group are "
        "never in two splits, and are the units of intervals"
    )
    ratios: list[float] = Field(description="shares of train, validation and test where nothing says the split")
    split_seed: int = Field(ge=0, description="seed of that split; `seed` does not change it")
    stratify: bool = Field(description="true: each split gets its share of the pictures with each class")
    folds: int | None = Field(
        ge=2, description="divide the pictures into so many parts, one of which is the test split"
    )
    fold: int = Field(ge=0, description="which of them, from 0; an axis of a sweep: data.fold=0,1,2,3,4")

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, value: list[float]) -> list[float]:
        if len(value) != 3 or min(value) <= 0 or abs(sum(value) - 1) > 1e-6:
            raise rejected("three positive shares that sum to 1", "[0.7,0.15,0.15]")
        return value

    @field_validator("group")
    @classmethod
    def _group(cls, value: str | None) -> str | None:
        if value is not None and "{group}" not in value:
            raise rejected("a pattern with {group} in it, and * for the rest", "data.group='{group}_*'")
        return value

    @field_validator("values")
    @classmethod
    def _values(cls, value: Any) -> Any:
        accepted = "for each class, and for ignore, a whole number, a colour as #rrggbb, or a list of either"
        entries = [one for own in (value or {}).values() for one in (own if isinstance(own, list) else [own])]
        colours = [isinstance(entry, str) for entry in entries]
        wrong = [e for e in entries if isinstance(e, str) and not re.fullmatch("#[0-9a-fA-F]{6}", e)]
        if wrong or len({*colours}) > 1 or len({str(e).lower() for e in entries}) < len(entries) or len(entries) > 254:
            raise rejected(f"{accepted}, each once", "data.values={background:0,vessel:255,ignore:128}")
        return value

    @model_validator(mode="after")
    def _mask_values_fit(self) -> Folder:
        if self.threshold is not None and (len(self.classes) != 2 or self.values or self.ignore_index is not None):
            raise rejected("data.threshold with two classes, without data.values and data.ignore_index", "--help")
        if self.values and self.ignore_index is not None:
            raise rejected(f"data.values with {IGNORED}, in place of data.ignore_index", "data.ignore_index=null")
        if self.instances and len(self.classes) != 2:
            raise rejected("data.instances=true with two classes", "data.instances=null")
        if len({*self.classes}) < len(self.classes):
            raise rejected("data.classes with each name once", "--help")
        drawn = (self.masks or "").endswith(".json")
        if drawn and (self.threshold is not None or self.values or self.ignore_index is not None or self.instances):
            raise rejected(
                "data.masks in JSON with data.classes alone; it has no values, threshold, ignore_index or instances",
                "'data.classes=[background,cat,dog]'",
            )
        if self.fold >= (self.folds or 1):
            raise rejected("data.fold from 0 to below data.folds", "data.folds=5")
        return self


DATA: dict[str | None, type[Data]] = {"pets": Pets, "folder": Folder, "synthetic": Synthetic}


class Optimizer(Section):
    """AdamW with a cosine schedule from `lr` to 0."""

    lr: float = Field(gt=0, description="learning rate at the start, for steps of data.batch_size pictures")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        description="what lr is multiplied by where steps are k times as large: none 1 | linear k | sqrt k^0.5"
    )
    weight_decay: float = Field(ge=0, description="decoupled weight decay")


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
    project: Text = Field(min_length=1, description="W&B project")
    entity: Text | None = Field(description="W&B user or team; null: the key's own")
    images: bool = Field(description="false: no pictures of the validation, only numbers and figures of them")
    log_model: bool = Field(description="true: upload best.ckpt as an artifact, when online")


class Train(Section):
    """The options of python -m unetseg.train."""

    model: Model
    data: Annotated[Pets | Folder | Synthetic, Field(discriminator="name")]
    loss: Literal["dice", "bce", "bce_dice", "cross_entropy"] = Field(
        description="dice | bce | bce_dice | cross_entropy"
    )
    optimizer: Optimizer
    trainer: dict[str, Any] = Field(description="arguments of Lightning's Trainer, unchanged")
    logger: Literal["wandb", "csv", "none"] = Field(
        description="wandb | csv | none; metrics.csv is written whatever is chosen"
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
    sweep: dict[str, Text] = Field(description="an experiment's axes in Hydra's comma syntax: --multirun, ablate")

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
    def _loss_fits_classes(self) -> Train:
        classes = class_names(self.data.model_dump())
        if self.loss in ("bce", "bce_dice") and len(classes) > 2:
            raise rejected(f"loss={self.loss} with two classes; dice or cross_entropy with {len(classes)}", "loss=dice")
        return self


class Ablate(Train):
    """The options of python -m unetseg.ablate."""

    jobs: int = Field(ge=1, description="runs at once; the visible GPUs are shared out among them")


class Evaluate(Section):
    """The options of python -m unetseg.evaluate."""

    checkpoint: ExistingCheckpoint
    data: Annotated[Pets | Folder | Synthetic, Field(discriminator="name")]
    split: Literal["train", "val", "test", "all"] = Field(description="part of the data: train | val | test | all")
    accelerator: Text = Field(description="auto | cpu | gpu ..., as Lightning's Trainer takes it")
    lesion: bool = Field(description="true: cut every subset of the long skips, by zeros, means and other images")
    gradient: bool = Field(description="true: by how many residual branches of a ResNet the gradient of the loss comes")
    output: Text | None = Field(description="folder for the results; null: evaluation/... in the run folder")


class Report(Section):
    """The options of python -m unetseg.report."""

    runs: Text = Field(description="folder with run folders somewhere below it")
    output: Text | None = Field(description="folder for report.html and report.md; null: report/ in `runs`")
    wandb: bool = Field(description="true: make a W&B Report of it as well")
    plan: float | None = Field(gt=0, lt=1, description="say how many seeds and images would show this difference")
    pooled: bool = Field(description="true: take the spread over seeds as the same for all settings, which shows more")

    @field_validator("runs")
    @classmethod
    def _runs(cls, value: str) -> str:
        if not Path(value).is_dir():
            raise rejected("a folder that exists, with run folders below it", "runs=runs")
        return value


def _existing_model(value: str) -> str:
    if not Path(value).exists() and not value.startswith("wandb:"):
        raise rejected(
            "a checkpoint, a run folder or an exported file that exists, or wandb:ENTITY/PROJECT/NAME:ALIAS",
            "checkpoint=runs/NAME/checkpoints/best.ckpt",
        )
    return value


class Predict(Section):
    """The options of python -m unetseg.predict."""

    checkpoint: Annotated[Text, AfterValidator(_existing_model)] = Field(
        description="a checkpoint of unetseg.train, its run folder, or an exported file"
    )
    images: Text = Field(description="a picture, a folder of pictures, or a pattern such as 'photos/**/*.jpg'")
    output: Text = Field(description="folder for the masks and predictions.csv; what it holds is kept")
    overlay: bool = Field(description="true: also the pictures with the mask drawn, in overlay/")
    probability: bool = Field(description="true: also the probabilities, HxWxC float16, in probability/NAME.npy")
    overwrite: bool = Field(description="true: predict again what was predicted already")
    tile: int | None = Field(
        ge=0,
        multiple_of=32,
        description="null: pictures are squashed to the model's size, above 16 megapixels tiles of 512; "
        "N: tiles of NxN at the picture's own resolution; 0: squashed up to 200 megapixels",
    )
    overlap: int = Field(ge=0, description="pixels over which tiles are blended, at most half a tile")
    tta: bool = Field(description="true: mean over the picture and its mirror image")
    batch_size: int = Field(ge=1, description="tiles that the model gets at once")
    precision: Literal["float32", "bfloat16"] = Field(description="float32 | bfloat16")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(description="auto (a GPU if there is one) | cpu | gpu")
    trust: bool = Field(description="true: open a .pt2, a program that may do anything with your rights")

    @field_validator("images")
    @classmethod
    def _images(cls, value: str) -> str:
        if not Path(value).exists() and not glob.glob(value, recursive=True):
            raise rejected("a picture or a folder that exists, or a pattern of which some do", "images=FOLDER")
        return value

    @field_validator("output")
    @classmethod
    def _output(cls, value: str) -> str:
        if Path(value).exists() and not Path(value).is_dir():
            raise rejected("a folder, new or not", "output=predictions")
        return value

    @model_validator(mode="after")
    def _overlap_fits(self) -> Predict:
        most = (self.tile or 512) // 2
        if self.overlap > most:
            raise rejected(f"overlap={self.overlap} is too much: at most half a tile, {most}", f"overlap={most // 2}")
        return self


class Export(Section):
    """The options of python -m unetseg.export."""

    checkpoint: ExistingCheckpoint
    output: Text = Field(description="FILE.onnx or FILE.pt2")
    overwrite: bool = Field(description="true: replace a file that is there")


class Demo(Section):
    """The options of python -m unetseg.demo."""

    checkpoint: ExistingCheckpoint
    port: int = Field(ge=0, le=65535, description="port of the page on this machine; 0: any free one")
