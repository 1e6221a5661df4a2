"""Data of the user's own: one place checks what his function returns, and says what is wrong."""

import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from unetseg.data import own
from unetseg.data.dataset import Collection, Example
from unetseg.data.masks import MaskValues, stated_values
from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train

NAMES = ("background", "thing")
VALUES = stated_values({"background": 0, "thing": 1})


def examples(folder="set", numbers=range(12)) -> list[Example]:
    return [Example(f"{n:02}", Path(folder, f"{n:02}.png"), Path(folder, f"{n:02}_mask.png"), "") for n in numbers]


def divided(files: list[Example], **splits) -> Collection:
    return Collection(NAMES, VALUES, {"train": files[:8], "val": files[8:10], "test": files[10:], **splits})


def found(monkeypatch, function) -> Collection:
    monkeypatch.setitem(sys.modules, "my_data", SimpleNamespace(find=function))
    return own.find("my_data:find", NAMES, ("train", "val", "test"))


class Mine(Collection):
    def __init__(self):
        super().__init__(NAMES, VALUES, divided(examples()).splits)


@pytest.mark.parametrize(
    "function",
    [
        lambda: divided([replace(e, image=str(e.image), mask=str(e.mask)) for e in examples()]),
        lambda: replace(divided(examples()), splits={n: iter(own) for n, own in divided(examples()).splits.items()}),
        lambda: replace(divided(examples()), classes=[*NAMES]),
        Mine,
    ],
    ids=["texts", "generators", "a list of classes", "a subclass"],
)
def test_a_collection_of_another_form_is_taken_as_if_it_were_ours(monkeypatch, function):
    expected = {split: tuple(own) for split, own in divided(examples()).splits.items()}
    assert found(monkeypatch, function).splits == expected


def test_a_generator_that_fails_is_named_with_its_error(monkeypatch):
    def failing():
        yield examples()[0]
        raise KeyError("patient")

    with pytest.raises(UserError, match=r"my_data:find: train can't be read: KeyError: 'patient' \(test_own\.py, line"):
        found(monkeypatch, lambda: divided(examples(), train=failing()))


def test_an_error_for_the_user_of_a_generator_stays_as_it_is(monkeypatch):
    def failing():
        yield examples()[0]
        raise UserError("no list of patients", accepted="patients.csv")

    with pytest.raises(UserError, match=r"^no list of patients\n  accepted: patients\.csv"):
        found(monkeypatch, lambda: divided(examples(), train=failing()))


def table(dtype=np.uint8, **changes) -> Collection:
    values = VALUES.table.astype(dtype)
    for value, label in changes.items():
        values[int(value.removeprefix("v"))] = label
    return replace(divided(examples()), values=MaskValues(values))


@pytest.mark.parametrize(
    ("collection", "problem"),
    [
        (table(v1=5), r"maps the value 1 to class 5, of 2 classes\n.*0 to 1; 255 .* 254 .*\n  try: .*'thing': 1"),
        (table(np.float32), r"table of its MaskValues is float32 of shape \(256,\)"),
        (table(np.int64), r"table of its MaskValues is int64 of shape \(256,\)"),
        (replace(table(), values=MaskValues(np.array([0, 1, 255], np.uint8))), r"is uint8 of shape \(3,\)"),
        (replace(table(), values=MaskValues([0, 1])), "table of its MaskValues is list"),
        (replace(table(), values=None), "values of its Collection is NoneType"),
        (replace(table(), classes=None), "classes of its Collection is NoneType"),
        (replace(table(), splits=[examples()]), "splits of its Collection is list"),
        (divided(examples(), train=None), "train is NoneType"),
        (divided([replace(e, group=None) for e in examples()]), r"train holds Example\(name='00'.*group=None\)"),
        (divided([replace(e, image=None) for e in examples()]), "train holds .*image=None"),
        (divided([(e.name, e.image, e.mask, "") for e in examples()]), r"train holds \('00'"),
        (divided([replace(e, name="same") for e in examples()]), "two examples named same, in train and in train"),
        (divided(examples(), test=examples()[:3]), "two examples named 00, in train and in test"),
        (divided(examples(), test=[replace(examples()[1], name="x")]), "the picture set/01.png in train and in test"),
        (divided(examples(), val=[]), "no examples of val"),
    ],
)
def test_a_collection_that_would_train_on_something_else_is_refused(monkeypatch, collection, problem):
    with pytest.raises(UserError, match=problem) as error:
        found(monkeypatch, lambda: collection)
    assert str(error.value).startswith("data.source=my_data:find")
    assert "accepted: " in str(error.value)


def test_splits_that_are_drawn_anew_each_time_are_refused(monkeypatch):
    def shuffled(seed=None):
        drawn = examples()
        random.Random(seed).shuffle(drawn)
        return divided(drawn)

    with pytest.raises(UserError, match=r"gives other examples of train, .* when it is called again"):
        found(monkeypatch, shuffled)
    assert found(monkeypatch, lambda: shuffled(0)).splits["train"] != tuple(examples()[:8])


@pytest.mark.parametrize("check", ["full", "none"])
def test_a_value_without_a_class_is_refused_with_the_file(monkeypatch, tmp_path, check):
    for example in examples(tmp_path):
        Image.new("RGB", (64, 64)).save(example.image)
        Image.new("L", (64, 64), 2 if example.name == "11" else 1).save(example.mask)
    monkeypatch.setitem(sys.modules, "my_data", SimpleNamespace(find=lambda: divided(examples(tmp_path))))
    given = ["data=own", "data.source=my_data:find", "data.classes=[background,thing]", "data.size=64"]
    data = compose("train", Train, [*given, "data.workers=0", f"data.check={check}"]).data.model_dump()
    made = make_data(data, 0, trust=True)
    with pytest.raises(UserError, match=r"11_mask\.png has the value 2\n  accepted: 0, 1"):
        read(made)


def read(data):
    data.check()
    return [*data.loader("test")]


def test_the_example_of_the_page_finds_its_pictures(monkeypatch, tmp_path):
    block = re.search(r"```python\n(# my_data\.py\n.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)[1]
    names: dict = {}
    exec(block, names)
    for number in range(10):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / folder / f"{number}.png")
    monkeypatch.setitem(sys.modules, "my_data", SimpleNamespace(**names))
    collection = own.find(f"my_data:find(root={str(tmp_path)!r})", ("background", "vessel"), ("train", "val", "test"))
    assert {split: len(files) for split, files in collection.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert collection.values.table[[0, 1, 2, 128, 255]].tolist() == [0, 1, 254, 255, 1]
