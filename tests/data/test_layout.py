"""Data sets as they are published: patterns, objects, polygons, and a data.yaml beside them."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from unetseg.data import drawn_masks
from unetseg.data.layout import Pattern, Place
from unetseg.data.masks import read_mask
from unetseg.data.sources import find
from unetseg.data.survey import survey
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train

HEIGHT, WIDTH = 12, 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(array, np.uint8)).save(path)


def pictures(root, names):
    """Write a picture to each path, which holds its number."""
    for number, name in enumerate(names):
        put(root / name, np.full((HEIGHT, WIDTH, 3), number))


def collection(root, *overrides):
    return find(compose("train", Train, ["data=folder", f"data.root={root}", *overrides]).data.model_dump(), 0)


def masks(found):
    """Return each example's mask as classes, by name."""
    examples = [example for part in found.splits.values() for example in part]
    return {example.name: read_mask(example.mask, found.values) for example in examples}


def square(top):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + 4, 2:8] = 1
    return mask


def test_a_pattern_tells_name_and_split():
    pattern = Pattern("data.images", "{split}/images/{name}_{split}.tif")
    assert pattern.place("training/images/21_training.tif") == Place("21", "train")
    assert pattern.place("testing/images/01_test.tif") == Place("01", "test"), "two words for one split"
    assert pattern.place("training/images/21_test.tif") is None
    assert Pattern("data.masks", "*/{name}/{name}.png").place("x/a/a.png") == Place("a", "")
    assert Pattern("data.masks", "*/{name}/{name}.png").place("x/a/b.png") is None


@pytest.mark.parametrize("text", ["../{name}.png", "/etc/{name}.png", "{nam}.png", ""])
def test_a_pattern_of_other_fields_or_out_of_the_folder_is_refused(text):
    with pytest.raises(UserError, match=r"data\.images"):
        Pattern("data.images", text)


def test_masks_beside_their_pictures_are_told_by_their_endings(root):
    pictures(root, [f"p{i:02}.jpg" for i in range(10)])
    for i in range(10):
        put(root / f"p{i:02}_1stHO.png", square(i % 5))
    found = collection(root, "data.images={name}.jpg", "data.masks={name}_1stHO.png")
    assert all(np.array_equal(mask, square(int(name[1:]) % 5)) for name, mask in masks(found).items())


def test_a_data_yaml_says_it_once_and_the_command_line_beats_it(root):
    pictures(root, [f"a/{i}.png" for i in range(10)])
    for i in range(10):
        put(root / f"b/{i}_m.png", square(1) * 9)
    (root / "data.yaml").write_text("images: a/{name}.png\nmasks: b/{name}_m.png\nvalues: {sky: 0, bird: 9}\n")
    found = collection(root)
    assert found.classes == ("sky", "bird")
    assert all(np.array_equal(mask, square(1)) for mask in masks(found).values())
    assert collection(root, "data.values={bird:9,sky:0}").classes == ("bird", "sky")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size: 3\n", "data.yaml has batch_size"),
        ("- images\n", "holds no options"),
        ("images: !!python/object/apply:os.system [ls]\n", "tags"),
        ("values: {a: 0, b: red}\n", "as #rrggbb"),
        ("values: {a: 0, b: 0}\n", "each once"),
        ("values: {a: 0, b: 1}\nclasses: [x, y]\n", "data.classes names x, y, data.values a, b"),
        ("threshold: 0\nclasses: [a, b, c]\n", "two classes"),
        ("images: ../{name}.png\n", "below data.root"),
    ],
)
def test_a_data_yaml_is_data_and_checked_like_options(root, text, words):
    pictures(root, ["images/a.png", "masks/a.png"])
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        collection(root)


def test_the_pattern_says_the_splits_and_equal_names_are_told_apart(root):
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        pictures(root, [f"{split}/images/p{i}.png" for i in range(count)])
        for i in range(count):
            put(root / f"{split}/masks/p{i}.png", square(i))
    found = collection(root, "data.images={split}/images/{name}.png", "data.masks={split}/masks/{name}.png")
    assert {split: [e.name for e in part] for split, part in found.splits.items()} == {
        "train": [f"train/p{i}" for i in range(4)],
        "val": ["val/p0", "val/p1"],
        "test": ["test/p0", "test/p1"],
    }
    assert all(np.array_equal(mask, square(int(name[-1]))) for name, mask in masks(found).items())


def test_files_of_one_object_each_are_one_mask(root):
    pictures(root, [f"t/p{i}/images/p{i}.png" for i in range(8)])
    for i in range(8):
        put(root / f"t/p{i}/masks/x.png", square(0) * 255)
        put(root / f"t/p{i}/masks/y.png", square(i) * 255)
    options = ["data.images=t/{name}/images/*.png", "data.masks=t/{name}/masks/*.png"]
    with pytest.raises(UserError, match=r"has the masks(.|\n)*data\.instances=true"):
        collection(root, *options)
    found = collection(root, *options, "data.instances=true")
    assert all(np.array_equal(mask, square(0) | square(int(name[1:]))) for name, mask in masks(found).items())
    put(root / "t/p0/masks/z.png", square(6) * 255)
    assert masks(collection(root, *options, "data.instances=true"))["p0"].sum() == square(0).sum() + square(6).sum()


def coco(root, names, **changes):
    """Write a COCO file of a cat in the upper left and a smaller dog on it."""
    content = {
        "images": [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            annotation
            for i in range(len(names))
            for annotation in (
                {"image_id": i, "category_id": 5, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
                {"image_id": i, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
            )
        ],
    }
    (root / "c.json").write_text(json.dumps(content | changes))


def test_the_polygons_of_coco_are_a_mask_with_smaller_objects_on_top(root):
    names = [f"p{i}.jpg" for i in range(8)]
    pictures(root, [f"img/{name}" for name in names])
    coco(root, names)
    options = ["data.images=img/{name}.jpg", "data.masks=c.json"]
    found = collection(root, *options, "data.classes=[background,cat,dog]")
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[:6, :8] = 1
    expected[1:3, 1:3] = 2
    assert len(masks(found)) == 8
    assert all(np.array_equal(mask, expected) for mask in masks(found).values())
    with pytest.raises(UserError, match=r"objects of the class 'cat'"):
        collection(root, *options)


def test_a_run_length_code_of_coco_counts_down_the_columns(root):
    names = [f"p{i}.jpg" for i in range(8)]
    pictures(root, [f"img/{name}" for name in names])
    code = {"counts": [HEIGHT + 2, 3, HEIGHT * WIDTH - HEIGHT - 5], "size": [HEIGHT, WIDTH]}
    coco(root, names, annotations=[{"image_id": i, "category_id": 3, "segmentation": code} for i in range(8)])
    found = collection(root, "data.images=img/{name}.jpg", "data.masks=c.json", "data.classes=[background,cat]")
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[2:5, 1] = 1
    assert all(np.array_equal(mask, expected) for mask in masks(found).values())


def test_shapes_of_labelme_are_a_mask(root):
    pictures(root, [f"p{i}.jpg" for i in range(8)])
    shapes = [
        {"label": "a", "shape_type": "rectangle", "points": [[9, 1], [2, 5]]},
        {"label": "b", "shape_type": "circle", "points": [[8, 8], [8, 10]]},
    ]
    for i in range(8):
        content = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
        (root / f"p{i}.json").write_text(json.dumps(content))
    found = collection(root, "data.images={name}.jpg", "data.masks={name}.json", "data.classes=[none,a,b]")
    mask = masks(found)["p0"]
    assert (mask[1:5, 2:9] == 1).all()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert np.array_equal(mask == 2, np.hypot(rows - 8, columns - 8) < 2)


def test_a_polygon_has_the_pixels_that_lie_in_it_by_most_of_their_area():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: 40 * 16, : 60 * 16] / 16 + 1 / 32
    wrong = 0
    for _ in range(20):
        centre, angles = rng.uniform((15, 10), (45, 30)), np.sort(rng.uniform(0, 2 * np.pi, 7))
        outline = centre + rng.uniform(3, 12, (7, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        inside = np.zeros(rows.shape, bool)  # by crossings, an independent way
        for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, 0), strict=True):
            crosses = (y0 > rows) != (y1 > rows)
            inside ^= crosses & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
        area = inside.reshape(40, 16, 60, 16).mean((1, 3))
        filled = drawn_masks._filled([outline], 40, 60)
        wrong += (filled != (area > 0.5))[abs(area - 0.5) > 0.08].sum()
    assert wrong == 0, "but for pixels whose area is close to a half"


def test_drawn_masks_are_kept_and_drawn_anew_when_a_source_changes(root, monkeypatch):
    pictures(root, [f"img/p{i}.jpg" for i in range(8)])
    coco(root, [f"p{i}.jpg" for i in range(8)])
    options = ["data.images=img/{name}.jpg", "data.masks=c.json", "data.classes=[background,cat,dog]"]
    first = masks(collection(root, *options))
    drawn = []
    original = cv2.fillPoly
    monkeypatch.setattr(cv2, "fillPoly", lambda *args, **more: drawn.append(1) or original(*args, **more))
    assert np.array_equal(masks(collection(root, *options))["p0"], first["p0"])
    assert not drawn
    coco(root, [f"p{i}.jpg" for i in range(8)], annotations=[])
    assert not masks(collection(root, *options))["p0"].any()


def test_a_picture_without_a_mask_is_named(root):
    pictures(root, [f"p{i}.jpg" for i in range(9)])
    for i in range(8):
        put(root / f"p{i}_m.png", square(1))
    found = survey(collection(root, "data.images={name}.jpg", "data.masks={name}_m.png"), "full")
    errors = [str(error) for part in found.unreadable.values() for error in part.values()]
    assert len(errors) == 1
    assert "p8.jpg has no mask by data.masks={name}_m.png" in errors[0]


def test_a_pattern_that_no_file_fits_is_told_with_what_is_there(root):
    pictures(root, ["x/a.jpg", "x/b.jpg"])
    with pytest.raises(UserError, match=r"no file below(.|\n)*x/a\.jpg(.|\n)*unetseg\.data"):
        collection(root, "data.images=y/{name}.jpg", "data.masks={name}.png")
