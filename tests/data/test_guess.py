"""python -m unetseg.data: what it says of a folder, and the data.yaml that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import forked
from PIL import Image

from unetseg.data.guess import guess
from unetseg.errors import UserError

CASES = Path(__file__).parents[3] / "shared/cases/own"
RNG = np.random.default_rng(0)


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(array, np.uint8)).save(path)


def fill(root, picture, mask, values=(0, 1), count=8):
    """Write pictures of noise and masks of these values; the patterns have {i} and {split}."""
    for i in range(count):
        split = ("train", "val", "test")[i % 3]
        put(root / picture.format(i=f"p{i:02}", split=split), RNG.integers(0, 256, (16, 16, 3)))
        stored = np.array(values)
        put(root / mask.format(i=f"p{i:02}", split=split), stored[RNG.integers(0, len(stored), (16, 16))])


@pytest.mark.parametrize(
    ("picture", "mask", "patterns"),
    [
        ("images/{i}.jpg", "masks/{i}.png", None),
        ("{i}.jpg", "{i}_mask.png", ("{name}.jpg", "{name}_mask.png")),
        ("{i}.png", "{i}_mask.png", ("{name}.png", "{name}_mask.png")),
        ("images/{i}_sat.jpg", "masks/{i}_mask.png", ("images/{name}_sat.jpg", "masks/{name}_mask.png")),
        ("{split}/{i}.png", "{split}annot/{i}.png", ("{split}/{name}.png", "{split}annot/{name}.png")),
        ("{split}/image/{i}.png", "{split}/gt/{i}.png", ("{split}/image/{name}.png", "{split}/gt/{name}.png")),
        ("{split}2017/{i}.jpg", "{split}2017_gt/{i}.png", ("{split}2017/{name}.jpg", "{split}2017_gt/{name}.png")),
        ("a/x/{i}.png", "a/y/{i}.png", ("a/x/{name}.png", "a/y/{name}.png")),  # by their colours alone
    ],
)
def test_pictures_and_masks_are_recognised_by_their_names(picture, mask, patterns, tmp_path):
    fill(tmp_path, picture, mask)
    assert guess(tmp_path) == ({} if patterns is None else dict(zip(("images", "masks"), patterns, strict=True)))


def test_pictures_of_several_endings_are_all_meant(tmp_path):
    fill(tmp_path, "x/{i}.jpg", "x_masks/{i}.png")
    fill(tmp_path, "x/q{i}.png", "x_masks/q{i}.png")
    assert guess(tmp_path)["images"] == "x/{name}.*"


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        ((0, 255), {}),
        ((0, 1, 255), {"values": {"class0": 0, "class1": 1, "ignore": [255]}}),
        ((0, 128, 255), {"values": {"class0": 0, "class255": 255, "ignore": [128]}}),
        ((1, 2), {"values": {"class1": 1, "class2": 2}}),
        ((0, 1, 2), {"classes": ["class0", "class1", "class2"]}),
        (range(0, 60, 3), {"threshold": 0}),
        ((*range(10), 255), {"values": {f"class{i}": i for i in range(10)} | {"ignore": [255]}}),
        (((0, 0, 0), (1, 1, 1), (2, 2, 2)), {"values": {f"class{i}": f"#{i:02x}{i:02x}{i:02x}" for i in range(3)}}),
        ((0, 0, 1, 3, 6, 120, 249, 250, 252, 253, 254, 255, 255, 255), {"threshold": 127}),
        (((0, 0, 0), (255, 0, 0)), {"values": {"class0": "#000000", "class1": "#ff0000"}}),
        (((0, 0, 0), (255, 255, 255)), {"threshold": 127}),
    ],
)
def test_what_mask_values_seem_to_mean(values, stated, tmp_path):
    fill(tmp_path, "images/{i}.png", "masks/{i}.png", values)
    assert guess(tmp_path) == stated


def test_a_folder_for_each_picture_with_a_file_for_each_object(tmp_path):
    for i in range(6):
        put(tmp_path / f"s/p{i}/images/p{i}.png", RNG.integers(0, 256, (16, 16, 3)))
        for number in range(3):
            put(tmp_path / f"s/p{i}/masks/{number}.png", np.zeros((16, 16)))
    assert guess(tmp_path) == {"images": "s/{name}/images/*.png", "masks": "s/{name}/masks/*.png", "instances": True}


def test_coco_and_labelme_are_recognised_with_their_classes(tmp_path):
    fill(tmp_path / "c", "img/{i}.png", "img/{i}.png")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "c/instances_train.json").write_text(json.dumps(content))
    stated = {"images": "img/{name}.png", "masks": "instances_{split}.json", "classes": ["background", "cat"]}
    assert guess(tmp_path / "c") == stated
    fill(tmp_path / "l", "{i}.png", "{i}.png")
    for i in range(8):
        shapes = {"imageHeight": 16, "imageWidth": 16, "shapes": [{"label": f"kind{i % 2}"}]}
        (tmp_path / f"l/p{i:02}.json").write_text(json.dumps(shapes))
    stated = {"images": "{name}.png", "masks": "{name}.json", "classes": ["background", "kind0", "kind1"]}
    assert guess(tmp_path / "l") == stated


def test_two_masks_of_a_picture_are_told_apart_by_their_endings(tmp_path):
    fill(tmp_path, "{i}L.jpg", "{i}L_1stHO.png")
    fill(tmp_path, "{i}L.jpg", "{i}L_2ndHO.png")
    assert guess(tmp_path) in [{"images": "{name}.jpg", "masks": f"{{name}}_{which}HO.png"} for which in ("1st", "2nd")]


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{}", "[" * 10_000, "{", '{"images": 1, "annotations": 2, "categories": 3}']
)
def test_json_of_something_else_is_passed_over(content, tmp_path):
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png")
    (tmp_path / "x.json").write_text(content)
    assert guess(tmp_path) == {}


def test_a_folder_of_something_else_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "a.mat").write_text("")
    with pytest.raises(UserError, match=r"files: 1 \.mat(.|\n)*as PNG, TIFF, NPY or NIfTI"):
        guess(tmp_path)


def look(folder, *more):
    return forked("unetseg.data.__main__", folder, *more, folder=folder.parent)


def test_the_command_writes_a_data_yaml_once_and_a_page_of_samples(tmp_path):
    fill(tmp_path / "set", "{i}.jpg", "{i}_mask.png", (0, 1, 7), count=20)
    (tmp_path / "set").rename(tmp_path / "a,b ${x}")
    first = look(tmp_path / "a,b ${x}")
    assert first.returncode == 0, first.stderr
    (tmp_path / "a,b ${x}").rename(tmp_path / "set")
    (tmp_path / "set/data.yaml").unlink()
    first = look(tmp_path / "set")
    assert first.returncode == 0, first.stderr
    assert "set/data.yaml is written" in first.stdout
    assert "data=folder data.root=" in first.stdout
    page = np.asarray(Image.open(tmp_path / "set_samples.png"))
    assert page.shape[2] == 3
    assert len(np.unique(page.reshape(-1, 3), axis=0)) > 100
    own = "images: '{name}.jpg'\nmasks: '{name}_mask.png'\nvalues: {a: 0, b: [1, 7]}\n"
    (tmp_path / "set/data.yaml").write_text(own)
    again = look(tmp_path / "set")
    assert again.returncode == 0, again.stderr
    assert "written" not in again.stdout
    assert (tmp_path / "set/data.yaml").read_text() == own
    assert (tmp_path / "set_samples_2.png").exists(), "the first is kept"
    wrong = look(tmp_path / "set", "data.thresold=3")
    assert wrong.returncode == 2
    assert "data.threshold" in wrong.stderr
    assert "Traceback" not in wrong.stderr
