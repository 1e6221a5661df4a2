"""The typed schema of the commands that take what a training has left: evaluate, report, predict, export and demo."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from unetseg.huggingface import PREFIX
from unetseg.names import MECHANISMS
from unetseg.options.data_schema import Folder, HuggingFace, OwnSource, Pets, Synthetic
from unetseg.options.messages import one_of, rejected
from unetseg.options.section import Section, Text, Trust


def _existing_checkpoint(value: str) -> str:
    if not Path(value).exists():
        raise rejected("a checkpoint file or a run folder that exists", "checkpoint=runs/NAME/checkpoints/best.ckpt")
    return value


ExistingCheckpoint = Annotated[
    Text,
    AfterValidator(_existing_checkpoint),
    Field(description="a checkpoint of unetseg.train, or its run folder"),
]


class Evaluate(Section):
    """The options of python -m unetseg.evaluate."""

    checkpoint: ExistingCheckpoint
    data: Annotated[Pets | Folder | HuggingFace | Synthetic | OwnSource, Field(discriminator="name")]
    split: Literal["train", "val", "test", "all"] = Field(description="part of the data: train | val | test | all")
    accelerator: Text = Field(description="auto | cpu | gpu ..., as Lightning's Trainer takes it")
    lesion: bool = Field(description="true: cut every subset of the long skips, by zeros, means and other images")
    shift: bool = Field(description="true: noise, speckle, blur, contrast, brightness and JPEG at five strengths each")
    freeu: list[float] | None = Field(
        description="[b,s]: weigh half the deep channels by b, by structure, and the skips' low frequencies by s, at "
        "each level and at all (FreeU, Si et al. 2024); null"
    )
    mechanism: list[str] = Field(
        description="some of [similarity (CKA), rank, reuse (weights), spectra] of what meets at each fusion; "
        "landscape (of the loss), sharpness (of it, along random directions: quicker), shattering (of gradients), "
        "hellinger (from the training pictures), oscillation (of norms)"
    )
    gradient: bool = Field(description="true: by how many residual branches of a ResNet the gradient of the loss comes")
    tolerance: float = Field(ge=0, description="pixels by which a surface may be off for NSD")
    trust: Trust
    output: Text | None = Field(description="folder for the results; null: evaluation/... in the run folder")

    @field_validator("freeu")
    @classmethod
    def _freeu(cls, value: list[float] | None) -> list[float] | None:
        if value is None or (len(value) == 2 and value != [1, 1] and all(0 <= factor < 1e3 for factor in value)):
            return value
        raise rejected("null, or two numbers, [b,s], from 0 to below 1000, that are not both 1", "freeu=[1.2,0.9]")

    @field_validator("mechanism")
    @classmethod
    def _mechanism(cls, value: list[str]) -> list[str]:
        return [one_of(name, MECHANISMS) for name in value]


class Report(Section):
    """The options of python -m unetseg.report."""

    runs: Text = Field(description="folder with run folders somewhere below it")
    output: Text | None = Field(description="folder for report.html and report.md; null: report/ in `runs`")
    wandb: bool = Field(description="true: make a W&B Report of it as well")
    plan: float | None = Field(gt=0, lt=1, description="say how many seeds and images would show this difference")
    pooled: bool = Field(description="true: take the spread over seeds as the same for all settings, which shows more")
    trust: Trust

    @field_validator("runs")
    @classmethod
    def _runs(cls, value: str) -> str:
        if not Path(value).is_dir():
            raise rejected("a folder that exists, with run folders below it", "runs=runs")
        return value


def _existing_model(value: str) -> str:
    if not (value and Path(value).exists()) and not value.startswith(("wandb:", PREFIX)):
        raise rejected(
            "a checkpoint, a run folder, an exported file or a folder of save_pretrained that exists, "
            "hf:USER/NAME[@REVISION], or wandb:ENTITY/PROJECT/NAME:ALIAS",
            "checkpoint=runs/NAME/checkpoints/best.ckpt",
        )
    return value


def _some_pictures(value: str, info: ValidationInfo) -> str:
    exists = bool(value) and Path(value).exists()  # "" is the working folder to Path
    if not exists and "{channel}" not in value and not glob.glob(value, recursive=True):
        raise rejected("a picture or a folder that exists, or a pattern of which some do", f"{info.field_name}=FOLDER")
    return value


SomePictures = Annotated[Text, AfterValidator(_some_pictures)]


class Predict(Section):
    """The options of python -m unetseg.predict."""

    checkpoint: Annotated[Text, AfterValidator(_existing_model)] = Field(
        description="a checkpoint of unetseg.train, its run folder, an exported file, or a folder of save_pretrained, "
        "also as hf:USER/NAME[@REVISION]"
    )
    images: SomePictures = Field(
        description="a picture or volume, a folder of them, or a pattern: 'photos/**/*.jpg', '{name}_{channel}.tif'"
    )
    output: Text = Field(description="folder for the masks and predictions.csv; what it holds is kept")
    overlay: bool = Field(description="true: also the pictures with the mask drawn, in overlay/")
    probability: bool = Field(description="true: also the probabilities, HxWxC float16, in probability/NAME.npy")
    overwrite: bool = Field(description="true: predict again what was predicted already")
    tile: int | None = Field(
        ge=0,
        multiple_of=32,
        description="null: as in training: pictures fitted into a square, above 16 megapixels tiles of 512, "
        "or tiles as large as crops; N: tiles of NxN at the picture's own resolution; 0: a square up to 200 megapixels",
    )
    overlap: int | None = Field(
        ge=0, description="pixels over which tiles are blended, at most half a tile; null: 64, or half a tile"
    )
    tta: bool = Field(description="true: mean over the picture and its mirror image")
    batch_size: int = Field(ge=1, description="tiles that the model gets at once")
    precision: Literal["float32", "bfloat16"] = Field(description="float32 | bfloat16")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(description="auto (a GPU if there is one) | cpu | gpu")
    runtime: Literal["onnxruntime", "openvino"] = Field(
        description="of an .onnx: onnxruntime | openvino (its extra), the faster one in int8"
    )
    trust: bool = Field(
        description="true: open a .pt2, or import the classes of somebody's own that a checkpoint names: programs that "
        "may do anything with your rights"
    )

    @field_validator("output")
    @classmethod
    def _output(cls, value: str) -> str:
        if Path(value).exists() and not Path(value).is_dir():
            raise rejected("a folder, new or not", "output=predictions")
        return value

    @model_validator(mode="after")
    def _overlap_fits(self) -> Predict:
        most = (self.tile or 0) // 2
        if self.tile and self.overlap is not None and self.overlap > most:
            raise rejected(f"overlap={self.overlap} is too much: at most half a tile, {most}", f"overlap={most // 2}")
        return self


class Export(Section):
    """The options of python -m unetseg.export."""

    checkpoint: ExistingCheckpoint
    output: Text = Field(description="FILE.onnx or FILE.pt2")
    overwrite: bool = Field(description="true: replace a file that is there")
    int8: SomePictures | None = Field(
        description="a picture, folder or pattern: an .onnx whose convolutions are in 8-bit integers, the ranges of "
        "which are measured on these pictures, such as some of the training's; null: float32"
    )
    trust: Trust


class Demo(Section):
    """The options of python -m unetseg.demo."""

    checkpoint: ExistingCheckpoint
    trust: Trust
    port: int = Field(ge=0, le=65535, description="port of the page on this machine; 0: any free one")
