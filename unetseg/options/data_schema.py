"""The typed schema of the options of each data set: data=pets, folder, hf or synthetic.

A field's description is what `--help` prints.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from unetseg.names import AUGMENTATIONS, IGNORED, LARGEST_SIZE, MOST_CHANNELS, NESTED, PETS_ROOT
from unetseg.options.messages import one_of, one_of_own, rejected
from unetseg.options.section import Section, Text


def _existing_folder(value: str) -> str:
    if not Path(value).is_dir():
        raise rejected("a folder that exists", "data=synthetic, which needs no data, or another data.root=FOLDER")
    return value


def _check_transforms(entries: object, level: int = 1) -> None:
    """Raise an error unless a list has the form of one of albumentations; names and arguments are checked with it."""
    accepted = "[NAME,{NAME:{ARGUMENT:VALUE}}], with `transforms:` of the same form in OneOf, SomeOf, ..."
    example = "[{HorizontalFlip:{p:0.5}}]"
    if not isinstance(entries, list) or not entries:
        raise rejected(f"a list of transforms: {accepted}", example)
    if level > DEEPEST_TRANSFORMS:
        raise rejected(f"at most {DEEPEST_TRANSFORMS} lists of transforms in one another", example)
    for entry in entries:
        named = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(named, dict) or len(named) != 1 or not all(isinstance(name, str) for name in named):
            raise rejected(f"transforms, each with its name: {accepted}", example)
        ((name, arguments),) = named.items()
        if not isinstance(arguments, dict | None) or not all(isinstance(key, str) for key in arguments or {}):
            raise rejected(f"arguments of {name} by their names: {accepted}", example)
        if name in NESTED or "transforms" in (arguments or {}):
            _check_transforms((arguments or {}).get("transforms"), level + 1)


DEEPEST_TRANSFORMS = 3
"""So many lists of transforms may lie in one another; a config.yaml that can be read again is not much deeper."""
NAMES = "pets | folder | hf | synthetic | own"
ExistingFolder = Annotated[Text, AfterValidator(_existing_folder)]


class Data(Section):
    """The options that every data set has."""

    size: int = Field(ge=32, le=LARGEST_SIZE, description="side in pixels of the square that pictures are resized to")
    fit: Literal["squash", "pad"] = Field(
        description="squash (a picture fills the square) | pad (it keeps its shape, the rest is filled and not counted)"
    )
    crop: int | None = Field(
        ge=32,
        le=LARGEST_SIZE,
        multiple_of=32,
        description="N: train on random crops of NxN at the pictures' own resolution, and predict in blended tiles of "
        "NxN, scored at the pictures' own size; null: whole pictures as squares of data.size",
    )
    scale: float = Field(ge=1e-3, le=16, description="factor by which pictures are resized before they are cropped")
    foreground: float = Field(
        ge=0, le=1, description="share of the crops centred on a class that isn't the most frequent one of its picture"
    )
    crops: int | None = Field(
        ge=1, description="crops of each picture in an epoch; null: as many as its area holds, at least one"
    )
    batch_size: int = Field(ge=1, description="pictures per step and device")
    workers: int = Field(ge=0, le=256, description="loader processes; 0 loads in the training process")
    augment: bool | str | list[str | dict[str, Any]] = Field(
        description="how training pictures are changed at random: none (false) | light (true): flip, scale, rotation, "
        "colour | strong | medical: elastic, gamma, no hue | aerial: eight symmetries; or a list of albumentations, "
        "[{HorizontalFlip:{p:0.5}},{Affine:{rotate:[-30,30]}}]"
    )
    cache: Literal["auto", "none", "ram", "disk", "device"] = Field(description="auto | none | ram | disk | device")
    global_batch_size: int | None = Field(ge=1, description="pictures per step over all devices; null: what comes out")
    channels: int | None = Field(
        ge=1,
        le=MOST_CHANNELS,
        description="3 (or null): pictures are 8-bit RGB, whatever the files hold; N: N channels as they are stored",
    )
    range: list[float] | None = Field(
        description="[low,high]: the values of more than 8 bits that become black and white, in RGB; null: 0 and 65535"
    )
    mean: list[float] | None = Field(
        description="of each channel, in the files' values, for RGB in 0..255; null: measured on the training split, "
        "for RGB the encoder's own"
    )
    std: list[float] | None = Field(description="standard deviation of each channel, likewise")
    shown: list[int] | None = Field(
        description="the channels, from 0, that figures show as red, green and blue, or one as grey; null: the first"
    )
    check: Literal["full", "headers", "none"] = Field(
        description="what is read before training: full (every mask) | headers (sizes) | none"
    )

    @field_validator("augment", mode="before")
    @classmethod
    def _augment(cls, value: object) -> object:
        if isinstance(value, list):
            _check_transforms(value)
        elif not isinstance(value, bool):
            one_of(value, AUGMENTATIONS, "; true (light), false (none), or a list of albumentations")
        return value

    @field_validator("range")
    @classmethod
    def _range(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (len(value) != 2 or not value[0] < value[1]):
            raise rejected("two numbers, the lower one first, or null", "data.range=[0,4095]")
        return value

    @model_validator(mode="after")
    def _view_fits(self) -> Data:
        if self.crop is not None and self.fit == "pad":
            raise rejected("data.fit=pad with whole pictures; crops keep the pictures' shape anyway", "data.fit=squash")
        if self.crop is None and self.scale != 1:
            raise rejected("data.scale with data.crop; whole pictures are resized to data.size", "data.scale=1")
        channels = self.channels or 3
        if self.cache == "device" and (self.crop is not None or channels != 3):
            raise rejected("data.cache=device with whole pictures of three channels", "data.cache=auto")
        if self.cache == "device" and self.augment not in (True, False, "none", "light"):
            raise rejected(
                "data.cache=device with data.augment=light or none; the other caches with any", "data.cache=ram"
            )
        if channels != 3 and self.range is not None:
            raise rejected(
                "data.range with data.channels=3; other channels go to the model as stored", "data.range=null"
            )
        if (self.mean is None) != (self.std is None):
            raise rejected("both of data.mean and data.std, or neither", "data.mean=null data.std=null")
        for values in (self.mean or [0.0] * channels, self.std or [1.0] * channels):
            if len(values) != channels:
                raise rejected(f"data.mean and data.std with {channels} numbers each, for data.channels", "--help")
        if min(self.std or [1.0]) <= 0:
            raise rejected("data.std above 0", "--help")
        if channels == 3 and self.mean is not None and not (min(self.mean) >= 0 and 1 < max(self.mean) <= 255):
            raise rejected("data.mean of RGB in 0..255, as the pictures are after they became 8 bits", "data.mean=null")
        if self.shown is not None and (len(self.shown) not in (1, 3) or not set(self.shown) <= {*range(channels)}):
            raise rejected(f"data.shown with one or three channels from 0 to {channels - 1}", "data.shown=null")
        return self


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

    name: Literal["pets"] = Field(description=NAMES)
    root: ExistingFolder | None = Field(description=f"folder of images/, annotations/; null: {PETS_ROOT}, downloaded")


class Synthetic(Trimaps):
    """Generated animals in the layout of Oxford-IIIT Pet."""

    name: Literal["synthetic"] = Field(description=NAMES)
    root: Text = Field(description="folder under which generated sets are kept")
    train_images: int = Field(ge=10, description="pictures generated for training and validation")
    test_images: int = Field(ge=1, description="pictures generated for the test")
    similarity: float = Field(ge=0, le=1, description="0..1 moves the animals' texture to the background's")
    generator_seed: int = Field(ge=0, description="seed of the generator; `seed` does not change the pictures")


class Own(Data):
    """The options of a user's own masks, wherever they lie."""

    classes: list[Text] = Field(
        min_length=2, max_length=254, description="names of the mask values 0, 1, ...; null: those of `values`"
    )
    values: dict[str, int | str | list[int | str]] | None = Field(
        description='the mask values or colours of each class: {background:0,road:[1,255],ignore:"#ff0000"}'
    )
    threshold: float | None = Field(description="mask values above it are class 1, the others class 0")
    ignore_index: int | None = Field(ge=0, le=255, description="mask value that is left out of loss and metrics")
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
    def _mask_values_fit(self) -> Own:
        if self.threshold is not None and (len(self.classes) != 2 or self.values or self.ignore_index is not None):
            raise rejected("data.threshold with two classes, without data.values and data.ignore_index", "--help")
        if self.values and self.ignore_index is not None:
            raise rejected(f"data.values with {IGNORED}, in place of data.ignore_index", "data.ignore_index=null")
        if len({*self.classes}) < len(self.classes):
            raise rejected("data.classes with each name once", "--help")
        if self.fold >= (self.folds or 1):
            raise rejected("data.fold from 0 to below data.folds", "data.folds=5")
        return self


class Folder(Own):
    """A user's own pictures and masks."""

    name: Literal["folder"] = Field(description=NAMES)
    root: ExistingFolder = Field(description="folder with images/ and masks/; train.txt, val.txt, test.txt if wanted")
    images: str | None = Field(
        description="pattern of the pictures below the root, such as {split}/{name}_sat.jpg, or where each channel has "
        "a file {name}_{channel}.tif; null: images/{name}.*"
    )
    bands: list[Text] | None = Field(
        description="the {channel}s to take, in their order, such as [B04,B03,B02]; null: all, red, green and blue "
        "first, the others by their names"
    )
    masks: str | None = Field(
        description="pattern of the masks; one that ends in .json is LabelMe's with {name}, COCO's without; null: "
        "masks/{name}.*"
    )
    instances: bool | None = Field(
        description="true: a picture has many masks, one an object; data.masks fits them all"
    )
    group: str | None = Field(
        description="pattern of the pictures' names with {group}, such as {group}_slice*: pictures of one group are "
        "never in two splits, and are the units of intervals"
    )

    @field_validator("group")
    @classmethod
    def _group(cls, value: str | None) -> str | None:
        if value is not None and "{group}" not in value:
            raise rejected("a pattern with {group} in it, and * for the rest", "data.group='{group}_*'")
        return value

    @model_validator(mode="after")
    def _masks_fit(self) -> Folder:
        if self.instances and len(self.classes) != 2:
            raise rejected("data.instances=true with two classes", "data.instances=null")
        drawn = (self.masks or "").endswith(".json")
        if drawn and (self.threshold is not None or self.values or self.ignore_index is not None or self.instances):
            raise rejected(
                "data.masks in JSON with data.classes alone; it has no values, threshold, ignore_index or instances",
                "'data.classes=[background,cat,dog]'",
            )
        return self


class HuggingFace(Own):
    """A data set of the Hugging Face hub, or of a local folder in one of its formats."""

    name: Literal["hf"] = Field(description=NAMES)
    root: Text = Field(
        description="name of a data set on the Hugging Face hub, such as OWNER/NAME, or a local folder of Parquet, "
        "Arrow or pictures with metadata; its code, if any, is never run"
    )
    config: Text | None = Field(description="which of a data set's configurations; null: its only or default one")
    revision: Text | None = Field(description="branch, tag or commit on the hub; null: the newest")
    image: Text | None = Field(description="column of the pictures; null: found by the columns' types and names")
    mask: Text | None = Field(description="column of the masks, pictures or rows of numbers; null: found likewise")
    group: Text | None = Field(
        description="column of what pictures belong together, such as a patient: pictures of one group are never in "
        "two splits that are drawn, and are the units of intervals"
    )

    @field_validator("root")
    @classmethod
    def _root(cls, value: str) -> str:
        if not Path(value).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value):
            raise rejected("a data set's name on the hub, NAME or OWNER/NAME, or a folder that exists", "OWNER/NAME")
        return value


class OwnSource(Data):
    """What a function of the user's own finds."""

    name: Literal["own"] = Field(description=NAMES)
    source: str = Field(
        description="package.module:function or class of your own that returns a unetseg.data.dataset.Collection; with "
        "arguments {class: package.module:function, ARGUMENT: VALUE}"
    )
    classes: list[Text] = Field(
        min_length=2, max_length=254, description="names of the classes 0, 1, ..., as the Collection has them"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _source(cls, value: object) -> str:
        return one_of_own(value, "package.module:function of your own")


DATA: dict[str | None, type[Data]] = {
    "pets": Pets,
    "folder": Folder,
    "hf": HuggingFace,
    "synthetic": Synthetic,
    "own": OwnSource,
}
