"""A user's own pictures and masks."""

import itertools

import numpy as np
import pytest
from PIL import Image

from unetseg.data import folder
from unetseg.data.masks import INVALID, read_mask
from unetseg.data.sources import find
from unetseg.data.survey import survey
from unetseg.errors import UserError
from unetseg.names import IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train


@pytest.fixture
def own(tmp_path):
    """Twenty pictures in three formats, with masks of the values 0, 1, 2."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(20):
        suffix = ("jpg", "png", "TIF")[i % 3]
        Image.fromarray(np.full((10, 12, 3), i, np.uint8)).save(tmp_path / f"images/p{i:02}.{suffix}")
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12) % 3).save(tmp_path / f"masks/p{i:02}.png")
    return tmp_path


def options(root, *overrides: str):
    three = "data.classes=[sky,tree,road]"
    return compose("train", Train, ["data=folder", f"data.root={root}", three, *overrides]).data


def looked_at(root, *overrides: str, how: str = "headers"):
    return survey(find(options(root, *overrides).model_dump(), 0), how)


def names(collection):
    return {split: [e.name for e in examples] for split, examples in collection.splits.items()}


def test_ratios_split_every_picture_once_the_same_for_the_same_seed(own):
    first, again, other = (names(find(options(own, f"data.split_seed={s}").model_dump(), 0)) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert {split: len(part) for split, part in first.items()} == {"train": 14, "val": 3, "test": 3}
    assert sorted(itertools.chain(*first.values())) == [f"p{i:02}" for i in range(20)]


def test_split_files_decide_and_may_name_files(own):
    for split, part in (("train", "p00\np01.png\n"), ("val", "p02\n"), ("test", "p03\n\n")):
        (own / f"{split}.txt").write_text(part)
    collection = find(options(own).model_dump(), 0)
    assert names(collection) == {"train": ["p00", "p01"], "val": ["p02"], "test": ["p03"]}
    assert not any(survey(collection, "headers").unreadable.values())


def test_a_split_that_no_list_names_is_drawn_from_train_or_from_the_rest(own):
    (own / "test.txt").write_text("p03\np01\n")
    collection = find(options(own).model_dump(), 0)
    rest = names(collection)
    assert rest["test"] == ["p03", "p01"]
    assert sorted([*rest["train"], *rest["val"]]) == sorted({f"p{i:02}" for i in range(20)} - {"p01", "p03"})
    assert "train (15), val (3): drawn from the pictures in no list" in collection.notes[0]
    (own / "train.txt").write_text("".join(f"p{i:02}\n" for i in range(10, 20)))
    collection = find(options(own).model_dump(), 0)
    split = names(collection)
    assert (len(split["train"]), len(split["val"]), split["test"]) == (8, 2, ["p03", "p01"])
    assert not {*split["train"], *split["val"]} & {f"p{i:02}" for i in range(10)}
    assert "val (2): drawn from train" in collection.notes[0]


def test_a_picture_in_two_splits_is_refused(own):
    for split in ("train", "val", "test"):
        (own / f"{split}.txt").write_text("p00\n")
    with pytest.raises(UserError, match=r"p00 stands in train\.txt and in val\.txt"):
        find(options(own).model_dump(), 0)


@pytest.mark.parametrize("absent", ["/p99", "/etc/p99.png", "//p99"])
def test_a_listed_path_that_begins_at_the_root_stays_in_the_folder(own, absent):
    for split, name in (("train", "p00"), ("val", "p01"), ("test", absent)):
        (own / f"{split}.txt").write_text(f"{name}\n")
    (example,) = find(options(own).model_dump(), 0).splits["test"]
    assert example.image.is_relative_to(own / "images")


@pytest.mark.parametrize("line", [".", "..", "./", "images/", "/", "//", "images/..", ". p00"])
def test_a_line_that_names_no_file_is_an_absent_picture(own, line):
    for split, name in (("train", "p00"), ("val", "p01"), ("test", line)):
        (own / f"{split}.txt").write_text(f"{name}\n")
    assert "but test.txt lists it" in str(looked_at(own).unreadable["test"][0])


def test_a_listed_picture_or_a_mask_that_is_absent_is_named(own):
    for split, name in (("train", "p00"), ("val", "p01"), ("test", "p99")):
        (own / f"{split}.txt").write_text(f"{name}\n")
    assert "p99 does not exist, but test.txt lists it" in str(looked_at(own).unreadable["test"][0])
    (own / "masks/p00.png").unlink()
    error = str(looked_at(own).unreadable["train"][0])
    assert "p00.png does not exist" in error
    assert "masks holds p0" in error, "what lies there"


def test_too_few_pictures_for_three_splits_are_refused(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    with pytest.raises(UserError, match=r"leaves the (train|val|test) split empty \(0 pictures"):
        find(options(tmp_path).model_dump(), 0)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="lacks images, masks"):
        find(options(tmp_path).model_dump(), 0)


def test_mask_values_are_classes_and_the_ignored_one_is_not():
    table = folder.value_table(3, 9).table
    assert table[:4].tolist() == [0, 1, 2, INVALID]
    assert table[9] == IGNORE


def test_masks_of_two_classes_may_be_written_as_0_and_255(tmp_path):
    for values, ignored, classes in (
        ([0, 255], None, [0, 1]),
        ([0, 1], None, [0, 1]),
        ([0, 255, 1], 255, [0, IGNORE, 1]),
        ([0, 255, 1], 1, [0, 1, IGNORE]),
    ):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "m.png")
        assert read_mask(tmp_path / "m.png", folder.value_table(2, ignored)).tolist() == [classes]
    with pytest.raises(UserError, match="1 and 255: which is the foreground"):
        read_mask(tmp_path / "m.png", folder.value_table(2, None))


def test_palette_and_bilevel_masks_give_their_indices(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png", folder.value_table(3, None)).tolist() == [[0, 1, 2]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png", folder.value_table(2, None)).tolist() == [[1, 0]]
