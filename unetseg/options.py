"""The typed schema of the doors beside train; see config.py for the rest and how it is meant."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from unetseg.accepted import rejected
from unetseg.config import ExistingCheckpoint, Folder, Pets, Section, Synthetic, Train


class Ablate(Train):
    """The options of python -m unetseg.ablate."""

    jobs: int = Field(ge=1, description="runs at once; the visible GPUs are shared out among them")


class Evaluate(Section):
    """The options of python -m unetseg.evaluate."""

    checkpoint: ExistingCheckpoint = Field(description="a checkpoint of unetseg.train, or its run folder")
    data: Annotated[Pets | Folder | Synthetic, Field(discriminator="name")]
    split: Literal["train", "val", "test"] = Field(description="part of the data: train | val | test")
    accelerator: str = Field(description="auto | cpu | gpu ..., as Lightning's Trainer takes it")
    lesion: bool = Field(description="true: cut every subset of the long skips, by zeros, means and other images")
    output: str | None = Field(description="folder for the results; null: evaluation/... in the run folder")


class Report(Section):
    """The options of python -m unetseg.report."""

    runs: str = Field(description="folder with run folders somewhere below it")
    output: str | None = Field(description="folder for report.html and report.md; null: report/ in `runs`")
    wandb: bool = Field(description="true: make a W&B Report of it as well")

    @field_validator("runs")
    @classmethod
    def _runs(cls, value: str) -> str:
        if not Path(value).is_dir():
            raise rejected("a folder that exists, with run folders below it", "runs=runs")
        return value


def _existing_model(value: str) -> str:
    if not Path(value).exists() and not value.startswith("wandb:"):
        raise rejected("a checkpoint, a run folder or an exported file that exists, or wandb:ENTITY/PROJECT/NAME:ALIAS",
                       "checkpoint=runs/NAME/checkpoints/best.ckpt")  # fmt: skip
    return value


class Predict(Section):
    """The options of python -m unetseg.predict."""

    checkpoint: Annotated[str, AfterValidator(_existing_model)] = Field(
        description="a checkpoint of unetseg.train, its run folder, or an exported file"
    )
    images: str = Field(description="a picture, a folder of pictures, or a pattern such as 'photos/**/*.jpg'")
    output: str = Field(description="folder for the masks and predictions.csv; what it holds is kept")
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

    checkpoint: ExistingCheckpoint = Field(description="a checkpoint of unetseg.train, or its run folder")
    output: str = Field(description="FILE.onnx or FILE.pt2")
    overwrite: bool = Field(description="true: replace a file that is there")


class Demo(Section):
    """The options of python -m unetseg.demo."""

    checkpoint: ExistingCheckpoint = Field(description="a checkpoint of unetseg.train, or its run folder")
    port: int = Field(ge=0, le=65535, description="port of the page on this machine; 0: any free one")
