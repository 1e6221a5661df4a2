"""Data sets as they are published: patterns, objects, polygons, and a data.yaml beside them."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from unetseg.data import drawn_masks
from unetseg.data.layout import Pattern, Place, files_below
from unetseg.data.masks import read_mask
from unetseg.data.sources import find
from unetseg.data.survey import survey
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.data_file import complete
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
        ("threshold: 0\nthreshold: 9\n", "'threshold' twice"),
        ("classes: [a, a]\n", "each name once"),
        ("masks: c.json\nthreshold: 3\n", "data.classes alone"),
        ("images: '*a*a*a{name}.png'\n", "too many"),
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
        top, left, pixels = drawn_masks._filled([outline], 40, 60)
        filled = np.zeros((40, 60), bool)
        filled[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
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


def test_an_ignored_value_of_an_object_stays_ignored(root):
    pictures(root, [f"p{i}/i/a.png" for i in range(8)])
    for i in range(8):
        put(root / f"p{i}/m/x.png", np.where(square(0), 255, 0))
        put(root / f"p{i}/m/y.png", square(2))
    options = ["data.images={name}/i/a.png", "data.masks={name}/m/*.png", "data.instances=true"]
    expected = np.where(square(2), 1, np.where(square(0), 255, 0))
    for more in (["data.values={no:0,yes:1,ignore:255}"], ["data.ignore_index=255"]):
        assert all(np.array_equal(mask, expected) for mask in masks(collection(root, *options, *more)).values())
    with pytest.raises(UserError, match="has the value 255"):
        collection(root, *options, "data.values={no:0,yes:1}")


def test_a_mask_is_that_of_one_picture(root):
    for split in ("train", "val", "test"):
        pictures(root, [f"{split}/{i}.png" for i in range(2)])
    for i in range(2):
        put(root / f"m/{i}.png", square(i))
    with pytest.raises(UserError, match=r"would be the mask of(.|\n)*\{split\} in data\.masks"):
        collection(root, "data.images={split}/{name}.png", "data.masks=m/{name}.png")


CONTRADICTIONS = {
    "file_name": {"images": [{"id": i, "file_name": "p0.jpg", "height": 12, "width": 16} for i in range(2)]},
    "id": {"images": [{"id": 0, "file_name": f"p{i}.jpg", "height": 12, "width": 16} for i in range(2)]},
    "category": {"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]},
    "stray": {"annotations": [{"image_id": "0", "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 4]]}]},
    "box": {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": []}]},
    "line": {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": [[0, 0, 4, 0]]}]},
    "code": {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": {"counts": [192], "size": [16, 12]}}]},
    "huge": {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": {"counts": [1e13], "size": [12, 16]}}]},
    "nothing": {"annotations": None},
}


@pytest.mark.parametrize("changes", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_coco_file_that_contradicts_itself_is_refused(changes, root):
    pictures(root, [f"p{i}.jpg" for i in range(8)])
    coco(root, [f"p{i}.jpg" for i in range(8)], **changes)
    with pytest.raises(UserError, match=r"c\.json"):
        collection(root, "data.images={name}.jpg", "data.masks=c.json", "data.classes=[background,cat,dog]")


def test_pictures_of_one_name_in_two_folders_have_masks_of_their_own(root):
    names = [f"{folder}/{i}.png" for folder in "ab" for i in range(8)]
    pictures(root, names)
    box = [[0, 0, 4, 0, 4, 4, 0, 4]]
    coco(root, names, annotations=[{"image_id": i, "category_id": 3, "segmentation": box} for i in range(8)])
    options = ["data.masks=c.json", "data.classes=[background,cat]"]
    first, second = (masks(collection(root, f"data.images={folder}/{{name}}.png", *options)) for folder in "ab")
    assert all(mask.sum() == 16 for mask in first.values())
    assert not any(mask.any() for mask in second.values())
    notes = collection(root, "data.images=a/{name}.png", *options).notes
    assert any("8 pictures that data.images doesn't find" in note for note in notes)


def test_coco_files_say_the_splits_and_a_picture_has_one(root):
    pictures(root, [f"i/{i}.jpg" for i in range(6)])
    parts = {"train": range(4), "val": (4,), "test": (5,)}
    for split, part in parts.items():
        coco(root, [f"{i}.jpg" for i in part])
        (root / "c.json").rename(root / f"{split}.json")
    options = ["data.images=i/{name}.jpg", "data.classes=[background,cat,dog]"]
    found = collection(root, *options, "data.masks={split}.json")
    assert {split: [e.name for e in part] for split, part in found.splits.items()} == {
        split: [str(i) for i in part] for split, part in parts.items()
    }
    (root / "more.json").write_text((root / "val.json").read_text())
    with pytest.raises(UserError, match=r"described by(.|\n)*and by"):
        collection(root, *options, "data.masks=*.json")


def test_lists_beside_patterns_name_pictures_and_their_own_masks(root):
    pictures(root, [f"i/p{i}.png" for i in range(6)])
    for i in range(6):
        put(root / f"m/p{i}_m.png", square(i))
    options = ["data.images=i/{name}.png", "data.masks=m/{name}_m.png"]
    (root / "train.txt").write_text("p0\np1  1\n")
    (root / "val.txt").write_text("i/p2.png\n")
    (root / "test.txt").write_text("i/p3.png m/p3_m.png\n")
    found = collection(root, *options)
    assert [[e.name for e in part] for part in found.splits.values()] == [["p0", "p1"], ["p2"], ["p3"]]
    for line in ("i/p3.png m/p4_m.png", "p3 cat", "p9"):
        (root / "test.txt").write_text(f"{line}\n")
        with pytest.raises(UserError, match=f"has the line '{line}'"):
            collection(root, *options)


def test_what_is_left_over_is_told(root):
    pictures(root, [f"i/p{i}.png" for i in range(8)] + ["i/up.PNG", "holdout/x.png"])
    for i in range(9):
        put(root / f"m/p{i}.png", square(1))
    notes = collection(root, "data.images=i/{name}.png", "data.masks=m/{name}.png").notes
    assert "2 files (holdout/x.png, i/up.PNG)" in notes[0]
    assert "1 file (m/p8.png)" in notes[1]


def test_linked_folders_are_read_and_circles_are_not(root):
    pictures(root, [f"a/{i}.png" for i in range(4)])
    (root / "b").symlink_to(root / "a")
    (root / "a/again").symlink_to(root)
    assert files_below(root) == [f"{folder}/{i}.png" for folder in "ab" for i in range(4)]


def test_a_group_that_the_data_set_itself_divides_is_told(root):
    for split in ("train", "val", "test"):
        pictures(root, [f"{split}/i/p{split}_s1.png", f"{split}/i/shared_s{split}.png"])
        put(root / f"{split}/m/p{split}_s1.png", square(1))
        put(root / f"{split}/m/shared_s{split}.png", square(1))
    options = ["data.images={split}/i/{name}.png", "data.masks={split}/m/{name}.png", "data.group={group}_s*"]
    with pytest.raises(UserError, match="the group shared has pictures in train and in val"):
        collection(root, *options)


def test_of_another_folder_its_data_yaml_holds_and_what_the_checkpoint_knows_beside_it(root):
    pictures(root, ["images/a.png", "masks/a.png"])
    known = {"name": "folder", "root": str(root), "range": [0, 4095], "classes": ["no", "yes"], "ignore_index": 9}
    known |= {"images": "x/{name}.png", "threshold": None, "values": None, "group": "{group}_*"}
    assert complete(known, {"root"}) == known, "without a file"
    (root / "data.yaml").write_text("masks: masks/{name}.png\n")
    told = complete(known, {"root"})
    assert (told["range"], told["classes"], told["ignore_index"]) == ([0, 4095], ["no", "yes"], 9)
    assert (told["images"], told["masks"], told["group"]) == (None, "masks/{name}.png", None)
    (root / "data.yaml").write_text("values: {a: 3, b: 4}\n")
    told = complete(known, {"root"})
    assert (told["classes"], told["ignore_index"], told["values"]) == (["a", "b"], None, {"a": 3, "b": 4})
    told = complete(known | {"threshold": 5}, {"root", "threshold"})
    assert (told["threshold"], told["values"]) == (5, None)
