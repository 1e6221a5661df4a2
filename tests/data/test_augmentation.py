"""Augmentation by config: presets and lists, checked before a training, drawn from a key, exact in the mask."""

import inspect
import json
import math

import albumentations
import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, prepared

from unetseg.data.augmentation import (
    OUTSIDE,
    PRESETS,
    REACH,
    check,
    draw_from,
    listed,
    make_recipe,
    reach,
)
from unetseg.data.samples import augmented_sheet
from unetseg.data.transforms import Transform
from unetseg.data.view import COLOUR, View
from unetseg.errors import UserError
from unetseg.names import AUGMENTATIONS, IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train

NESTED_LIST = [
    "VerticalFlip",
    {
        "OneOf": {
            "transforms": [
                {"ElasticTransform": {"alpha": 40, "sigma": 5}},
                {"SomeOf": {"n": 2, "transforms": ["Transpose", {"Rotate": {"limit": 30}}, "RandomGamma"]}},
            ],
            "p": 0.8,
        }
    },
    {"GaussNoise": {"p": 0.5}},
    {"CoarseDropout": {"p": 0.5}},
]


def picture(side: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return random pixels, and random classes 0 and 1."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, channels), np.uint8)
    return image if channels == 3 else image.astype(np.float32), rng.integers(0, 2, (side, side)).astype(np.uint8)


def refused(entries, classes=2, **view) -> str:
    """Return what is said on a list that is refused."""
    with pytest.raises(UserError) as error:
        check(entries, View(64, **view), classes)
    return str(error.value)


def given(*overrides):
    return compose("train", Train, ["data=synthetic", *overrides]).data.augment


def test_every_name_is_a_preset_or_none():
    assert {"none", *PRESETS} == {*AUGMENTATIONS}


@pytest.mark.parametrize(("other", "name"), [(True, "light"), (False, "none")])
def test_true_is_light_and_false_is_none(other, name):
    for key in range(20):
        for one, two in zip(
            Transform(View(64), other)(*picture(64), (key,)),
            Transform(View(64), name)(*picture(64), (key,)),
            strict=True,
        ):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("augment", [*PRESETS, NESTED_LIST], ids=[*PRESETS, "list"])
@pytest.mark.parametrize("channels", [3, 1, 13])
@pytest.mark.parametrize("crop", [None, 64])
def test_a_key_gives_the_same_result_in_any_order_and_size_and_type_stay(augment, channels, crop):
    if channels != 3 and augment is NESTED_LIST:
        augment = ["VerticalFlip", {"OneOf": {"transforms": ["ElasticTransform", "Transpose", "Rotate"], "p": 0.9}}]
    view = View(64, crop=crop, channels=channels, mean=[100.0] * channels, std=[50.0] * channels)
    image, mask = picture(64 if crop is None else 120, channels)
    before = image.copy(), mask.copy()
    image.flags.writeable = mask.flags.writeable = False  # as a cache hands them out
    forwards, backwards = Transform(view, augment), Transform(view, augment)
    keys = [(0, 1, index) for index in range(12)]
    results = [forwards(image, mask, key) for key in keys]
    for key, (moved, classes) in reversed([*zip(keys, results, strict=True)]):
        again = backwards(image, mask, key)
        assert np.array_equal(moved, again[0])
        assert np.array_equal(classes, again[1])
        assert (moved.shape, classes.shape) == ((64, 64, channels), (64, 64))
        assert (moved.dtype, classes.dtype) == (image.dtype, np.uint8)
        assert {*np.unique(classes)} <= {0, 1, IGNORE}
        assert np.isfinite(moved).all()
    assert len({moved.tobytes() for moved, _ in results}) > 5
    assert np.array_equal(before[0], image)


GEOMETRIC = {type(step).__name__: step for preset in PRESETS.values() for step in preset(View(128)).moves}


@pytest.mark.parametrize("entry", [*GEOMETRIC, {"RandomResizedCrop": {"size": [128, 128]}}, {"CropAndPad": {"px": 9}}])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_mask_is_moved_exactly_where_the_picture_is_moved(entry, axis):
    """A picture whose value is the mask's class, which grows along an axis: by nearest neighbour it is off by half a
    step at most, and by nothing on average, as interpolation is exact on it.
    """
    side = 128
    classes = (np.indices((side, side))[axis] + 20).astype(np.uint8)
    image = np.repeat(classes[..., None], 3, axis=2).astype(np.float32) / 255
    step = GEOMETRIC[entry] if isinstance(entry, str) else listed([entry], View(side))[0]
    biases, ignored = [], 0
    for key in range(8):
        draw_from([step], (key,))
        moved = step(image=image, mask=classes, force_apply=True)
        values, mask = moved["image"][..., 0] * 255, moved["mask"]
        ignored += (mask == IGNORE).sum()
        inside = cv2.erode((mask != IGNORE).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
        assert (np.abs(values - mask)[inside] <= 0.55).all(), "OpenCV interpolates in 32nds of a pixel"
        biases.append((mask - values)[inside].mean())
    assert np.abs(np.mean(biases)) < 0.02
    if isinstance(entry, str) and entry in ("Affine", "ElasticTransform"):
        assert ignored, "what moves in from outside isn't counted"


@pytest.mark.parametrize("name", [*PRESETS, "list"])
def test_what_moves_in_from_outside_is_ignored_and_has_the_mean_colour(name):
    augment = ["Perspective", {"Affine": {"translate_percent": [0.2, 0.3]}}] if name == "list" else name
    recipe = make_recipe(augment, View(64))
    moves = [step for step in recipe.steps if isinstance(step, albumentations.DualTransform)]
    image, mask = np.full((64, 64, 3), COLOUR, np.uint8), np.zeros((64, 64), np.uint8)
    outside = 0
    for key in range(40):
        moved, classes = image, mask
        draw_from(moves, (key,))
        for step in moves:
            result = step(image=moved, mask=classes)
            moved, classes = result["image"], result["mask"]
        assert np.abs(moved.astype(int) - COLOUR).max() <= 1
        outside += (classes == IGNORE).sum()
        assert {*np.unique(classes)} <= {0, IGNORE}
    assert outside


def test_a_user_may_state_what_fills():
    step, plain = listed([{"Affine": {"fill_mask": 1, "fill": 9}}, "Affine"], View(64))
    assert (step.fill, step.fill_mask) == (9, 1)
    assert (tuple(plain.fill), plain.fill_mask) == (COLOUR, IGNORE)
    assert "fill_mask=" not in refused([{"CoarseDropout": {"fill_mask": 7}}]), "but no class that there isn't"


@pytest.mark.parametrize("name", PRESETS)
def test_a_moved_crop_of_a_preset_shows_the_picture_around_it_and_no_frame(name):
    image, mask = np.zeros((260, 260, 3), np.uint8), np.zeros((260, 260), np.uint8)
    mask[130, 130] = 1
    crop = Transform(View(crop=64), name, foreground=1.0)
    assert all((crop(image, mask, (0, 0, index))[1] != IGNORE).all() for index in range(200))


def test_the_reach_is_that_of_a_turned_and_shrunk_square():
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) / 0.7
    angle = math.radians(30)
    turned = corners @ [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    assert np.abs(turned).max() == pytest.approx(reach(30, 0.7))
    assert math.sqrt(2) < REACH, "of a list: any angle"


def test_a_list_of_colours_alone_needs_no_surroundings():
    assert make_recipe(["RandomGamma"], View(crop=64)).margin == 0
    assert make_recipe([{"OneOf": {"transforms": ["RandomGamma", "Rotate"]}}], View(crop=64)).margin > 0


def test_presets_leave_the_colours_of_other_channels_alone_and_rescale_them():
    view = View(64, channels=5, mean=[0.0] * 5, std=[1.0] * 5)
    for name in PRESETS:
        recipe = make_recipe(name, view)
        assert recipe.rescales
        assert all(isinstance(step, albumentations.DualTransform) for step in recipe.steps), name
    assert not make_recipe(["HorizontalFlip"], view).rescales, "a list is all that happens"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"HorizontalFlp": {}},
            "HorizontalFlp is not accepted\n  accepted: transforms of albumentations: HorizontalFlip,",
        ),
        ({"Affine": {"rotat": 3}}, "Affine takes no argument rotat\n  accepted: rotate,"),
        ({"Affine": {"rotate": "abc"}}, "Affine is not accepted with rotate=abc"),
        ({"HorizontalFlip": {"p": 2}}, "HorizontalFlip is not accepted with p=2\n  accepted: less than or equal to 1"),
        ({"RandomScale": {"scale_limit": [0.5, 0.5]}}, "RandomScale makes 96 x 96 pixels of 3 channels of 64 x 64"),
        ({"RandomCrop": {"height": 32, "width": 32}}, "RandomCrop makes 32 x 32 pixels"),
        ({"ToFloat": {}}, "ToFloat makes float32 of uint8"),
        ({"Normalize": {}}, "Normalize makes float32 of uint8"),
        ({"CoarseDropout": {"fill_mask": 7}}, "CoarseDropout gives pixels of the mask the value 7, which is no class"),
        ({"Affine": {"scale": 0.0}}, "Affine leaves no pixel of the mask with a class"),
        ({"Affine": {"mask_interpolation": 1}}, "Affine takes no argument mask_interpolation"),
        ({"Equalize": {"mask": [[1]]}}, "Equalize takes no argument mask"),
        (
            {"OneOf": {"transforms": [{"HorizontalFlip": {"p": 0}}]}},
            "OneOf is not accepted with float division by zero",
        ),
        ({"OneOf": {"transforms": ["Rotate", {"ToFlat": {}}]}}, "ToFlat is not accepted"),
        ({"Sequential": {"transforms": [{"RandomScale": {"scale_limit": [0.5, 0.5]}}]}}, "RandomScale makes 96 x 96"),
        ({"BasicTransform": {}}, "BasicTransform is not accepted: it takes"),
        ({"os": {}}, "os is not accepted\n"),
        ({"__class__": {}}, "__class__ is not accepted\n"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_a_list_can_not_have_is_refused_by_name(entry, said):
    assert f"data.augment: {said}" in refused([entry])


def test_a_transform_that_takes_functions_files_boxes_or_volumes_is_refused_by_name():
    """Whatever albumentations has: a list may be a stranger's."""
    callable_words = ("Callable", "Path")
    for name, kind in vars(albumentations).items():
        if not inspect.isclass(kind) or not issubclass(kind, albumentations.BasicTransform):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        risky = {*parameters} & {*OUTSIDE} or "BBox" in name or name.endswith("3D")
        if risky or name in ("Lambda", "TextImage", "FDA", "HistogramMatching", "Mosaic", "OverlayElements"):
            assert f"data.augment: {name} is not accepted: it takes" in refused([name])
            continue
        for argument, parameter in parameters.items():
            if any(word in str(parameter.annotation) for word in callable_words):
                assert f"takes no argument {argument}" in refused([{name: {argument: "x"}}])


def test_a_transform_that_draws_elsewhere_or_that_the_channels_are_not_for_is_refused(monkeypatch):
    assert "HueSaturationValue fails on 64 x 64 pixels of 13 channels" in refused(["HueSaturationValue"], channels=13)
    assert "takes channels of 0 to 1" in refused(["GaussNoise"], channels=1)
    check(["D4", "ElasticTransform", "ThinPlateSpline", "GridDistortion"], View(64, channels=13), 2)
    state = np.random.default_rng(0)
    monkeypatch.setattr(albumentations.InvertImg, "apply", lambda self, img, **_: img + np.uint8(state.integers(1, 9)))
    assert "InvertImg doesn't draw from the seed alone" in refused(["InvertImg"])


@pytest.mark.parametrize("value", ["strong", "true", "false", "none", "[HorizontalFlip,{Affine:{rotate:[-9,9]}}]"])
def test_the_command_line_takes_a_name_a_switch_or_a_list(value):
    assert given(f"data.augment={value}") in (
        True,
        False,
        "strong",
        "none",
        ["HorizontalFlip", {"Affine": {"rotate": [-9, 9]}}],
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("strng", "accepted: strong, none"),
        ("1", "data.augment=1 is not accepted"),
        ("[]", "a list of transforms"),
        ("[[HorizontalFlip]]", "each with its name"),
        ("[{HorizontalFlip:{},VerticalFlip:{}}]", "each with its name"),
        ("[{HorizontalFlip:0.5}]", "arguments of HorizontalFlip by their names"),
        ("[{OneOf:{p:1}}]", "a list of transforms"),
        ("[{OneOf:{transforms:[{OneOf:{transforms:[{OneOf:{transforms:[D4]}}]}}]}}]", "at most 3 lists"),
    ],
)
def test_another_form_is_refused_before_anything_is_imported(value, said):
    with pytest.raises(UserError) as error:
        given(f"data.augment={value}")
    assert said in str(error.value)


@pytest.mark.parametrize("value", ["strong", "medical", "[HorizontalFlip]"])
def test_the_device_augments_by_light_or_not_at_all(value):
    with pytest.raises(UserError, match=r"data\.augment=light or none(.|\n)*try: data\.cache=ram"):
        given("data.cache=device", f"data.augment={value}")
    assert given("data.cache=device", "data.augment=light") == "light"


def list_text(entries: list) -> str:
    """Return a list as it is written on the command line."""
    return json.dumps(entries).replace('"', "").replace(" ", "")


def test_the_loaders_workers_and_caches_give_the_same_batches(drawn):
    options = [f"data.augment={list_text(NESTED_LIST)}", f"data.root={drawn}"]
    epochs = []
    for workers, cache in ((0, "none"), (2, "none"), (0, "ram")):
        more = [f"data.workers={workers}", f"data.cache={cache}"]
        data = prepared(compose("train", Train, [*TINY, *options, *more]).data.model_dump())
        batches = [*data.train_dataloader()]
        epochs.append([torch.cat([batch[part] for batch in batches]) for part in range(3)])
    for other in epochs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(epochs[0], other, strict=True))


def test_a_sheet_shows_what_the_first_epochs_get(drawn, tmp_path):
    data = prepared(compose("train", Train, [*TINY, f"data.root={drawn}", "data.augment=medical"]).data.model_dump())
    augmented_sheet(data.augmented_examples(), data.collection.classes, 3, tmp_path / "sheet.png")
    page = cv2.imread(str(tmp_path / "sheet.png"))
    assert page.shape[1] == 6 * 208
    assert page.shape[0] == 3 * 222 + 22
    tiles = [page[:200, 8 + 208 * column : 208 + 208 * column] for column in range(6)]
    assert len({tile.tobytes() for tile in tiles}) == 6


@pytest.mark.parametrize("name", ["ColorJitter", "MedianBlur", "RandomRotate90", "ToSepia", "MaskDropout"])
def test_transforms_whose_classes_are_built_otherwise_are_accepted(name):
    check([name, {"OneOf": {"transforms": [name]}}], View(32), 2)


@pytest.mark.parametrize("entry", [{"ToSepia": {"p": 2}}, {"OneOf": {"transforms": ["ToGray"], "p": -0.5}}])
def test_a_probability_that_is_none_is_refused(entry):
    assert "is not accepted with p=" in refused([entry])
