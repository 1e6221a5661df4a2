"""Masks of every kind: stated values and colours, thresholds, arrays."""

import numpy as np
import pytest
from PIL import Image

from unetseg.data.folder import value_table
from unetseg.data.masks import INVALID, MaskValues, mask_size, read_mask, read_raw_mask, stated_values
from unetseg.errors import UserError
from unetseg.names import IGNORE

PLAIN = MaskValues(np.arange(256, dtype=np.uint8))


def saved(path, array):
    if path.suffix == ".npy":
        np.save(path, np.array(array))
    else:
        Image.fromarray(np.array(array)).save(path)
    return path


def test_stated_values_name_classes_in_their_order_and_what_is_ignored(tmp_path):
    values = stated_values({"road": [7, 9], "car": 255, "ignore": [1, 2]})
    mask = saved(tmp_path / "m.png", np.array([[7, 9, 255, 1, 2]], np.uint8))
    assert read_mask(mask, values).tolist() == [[0, 0, 1, IGNORE, IGNORE]]
    with pytest.raises(UserError, match=r"has the value 3(.|\n)*NAME:3"):
        read_mask(saved(mask, np.array([[3, 7]], np.uint8)), values)


def test_1_and_255_may_both_be_stated_for_one_class(tmp_path):
    mask = saved(tmp_path / "m.png", np.array([[0, 1, 255]], np.uint8))
    assert read_mask(mask, stated_values({"background": 0, "cell": [1, 255]})).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("end", ["tif", "npy"])
def test_stated_values_may_be_negative_or_beyond_255(end, tmp_path):
    values = stated_values({"land": 0, "water": [1, 1000], "ignore": -1})
    mask = saved(tmp_path / f"m.{end}", np.array([[0, 1, 1000, -1]], np.int32))
    assert read_mask(mask, values).tolist() == [[0, 1, 1, IGNORE]]
    with pytest.raises(UserError, match=r"has 7 in 1 of its pixels"):
        read_mask(saved(mask, np.array([[0, 7]], np.int32)), values)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
def test_stated_colours_are_classes_however_a_file_stores_them(kind, tmp_path):
    values = stated_values({"road": "#804080", "car": ["#400080", "#400081"], "ignore": "#000000"})
    colours = np.array([[[128, 64, 128], [64, 0, 128], [0, 0, 0], [64, 0, 129]]], np.uint8)
    picture = Image.fromarray(colours)
    picture = picture.convert("RGBA") if kind == "rgba" else picture
    picture = picture.quantize(4) if kind == "palette" else picture
    picture.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", values).tolist() == [[0, 1, IGNORE, 1]]


def test_a_colour_that_is_not_stated_is_named(tmp_path):
    mask = saved(tmp_path / "m.png", np.full((2, 3, 3), (1, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r'has "#010203" in 6 of its pixels'):
        read_mask(mask, stated_values({"road": "#804080", "car": "#400080"}))
    with pytest.raises(UserError, match=r'mask of mode RGB(.|\n)*NAME:"#010203"'):
        read_mask(mask, PLAIN)


@pytest.mark.parametrize("end", ["png", "jpg", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_above_a_threshold_are_class_1(end, channels, tmp_path):
    grey = np.repeat(np.repeat(np.array([[0, 90], [130, 255]], np.uint8), 16, 0), 16, 1)
    array = grey if channels == 1 or end == "npy" else np.dstack([grey] * 3)
    mask = saved(tmp_path / f"m.{end}", array)
    assert np.array_equal(read_mask(mask, value_table(2, None, 110)), grey > 110)


def test_a_threshold_of_0_reads_numbered_objects_of_any_depth(tmp_path):
    mask = saved(tmp_path / "m.tif", np.array([[0, 1, 70_000]], np.int32))
    assert read_mask(mask, value_table(2, None, 0)).tolist() == [[0, 1, 1]]


def test_an_array_is_a_mask_like_any_other(tmp_path):
    mask = saved(tmp_path / "m.npy", np.array([[0, 2], [1, 0]], np.int64))
    assert read_mask(mask, PLAIN).tolist() == [[0, 2], [1, 0]]
    assert mask_size(mask) == (2, 2)
    with pytest.raises(UserError, match="float64 of shape"):
        read_mask(saved(mask, np.zeros((2, 2))), PLAIN)
    np.save(mask, np.array([[{}]]), allow_pickle=True)
    with pytest.raises(UserError, match="can't be read"):
        read_mask(mask, PLAIN)


def test_a_grey_gif_is_a_mask(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.gif")
    assert read_mask(tmp_path / "m.gif", value_table(2, None)).tolist() == [[0, 1]]


def test_values_without_a_meaning_are_invalid():
    assert (stated_values({"a": 0, "b": 9}).table == INVALID).sum() == 254


@pytest.mark.parametrize("mode", ["1", "P"])
def test_a_threshold_is_laid_on_what_is_seen(mode, tmp_path):
    white = np.array([[False, True]])
    picture = Image.fromarray(white) if mode == "1" else Image.fromarray(white.astype(np.uint8), mode="P")
    if mode == "P":
        picture.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    picture.save(tmp_path / "m.png")
    expected = [[0, 1]] if mode == "1" else [[1, 0]]
    assert read_mask(tmp_path / "m.png", value_table(2, None, 127)).tolist() == expected


def test_signed_bytes_are_read_as_they_are(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "m.tif", np.array([[0, -1, 1]], np.int8))
    assert read_mask(tmp_path / "m.tif", stated_values({"a": 0, "b": 1, "ignore": -1})).tolist() == [[0, IGNORE, 1]]
    with pytest.raises(UserError, match="from -1 to 1"):
        read_mask(tmp_path / "m.tif", PLAIN)


def test_the_palette_is_kept_with_stated_values_so_that_palettes_can_be_compared(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    picture.putpalette([9, 9, 9, 200, 0, 0])
    picture.save(tmp_path / "m.png")
    raw = read_raw_mask(tmp_path / "m.png", stated_values({"a": [1, 1000], "b": 0}))
    assert raw.values.tolist() == [[2, 0]]
    assert raw.palette[:3] + raw.palette[-3:] == bytes([200, 0, 0, 9, 9, 9])


@pytest.mark.parametrize("values", [{"a": "#ff0000", "b": "#000000"}, None])
def test_transparent_pixels_have_no_class(values, tmp_path):
    array = np.full((2, 2, 4), 255, np.uint8)
    array[0, 0] = (255, 0, 0, 0)
    mask = saved(tmp_path / "m.png", array)
    with pytest.raises(UserError, match="transparent"):
        read_mask(mask, stated_values(values) if values else value_table(2, None, 127))


def test_arrays_that_a_threshold_or_colours_do_not_fit_are_refused(tmp_path):
    mask = tmp_path / "m.npy"
    with pytest.raises(UserError, match="no numbers"):
        read_mask(saved(mask, np.array([[0.0, np.nan]])), value_table(2, None, 0.5))
    with pytest.raises(UserError, match="HxW with a threshold"):
        read_mask(saved(mask, np.eye(3)[None]), value_table(2, None, 0.5))
    with pytest.raises(UserError, match="three channels of 8 bits"):
        read_mask(saved(mask, np.full((2, 2, 3), 256)), stated_values({"a": "#000100", "b": "#000000"}))
