"""How a picture is read: PIL's pixels, sooner; and never a part of one."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from unetseg.data import pictures
from unetseg.data.pictures import read_image
from unetseg.errors import UserError


def by_pil(path: Path) -> np.ndarray:
    """Return a picture upright, on white, with 65535 of 16 bits as white: by PIL's and numpy's plainest means."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode == "I;16":
            return np.repeat(np.round(np.asarray(picture) / 257).astype(np.uint8)[..., None], 3, 2)
        if picture.has_transparency_data:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        return np.array(picture.convert("RGB"))


def photo(height: int = 64, width: int = 96) -> Image.Image:
    """Return smooth colours with a little noise."""
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack([rows * 2, columns * 2, rows + columns], -1)
    return Image.fromarray((colours + np.random.default_rng(0).integers(0, 30, colours.shape)).astype(np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6  # a quarter to the right
    return exif


KINDS = {
    "plain": ("RGB", {"format": "JPEG"}),
    "progressive": ("RGB", {"format": "JPEG", "progressive": True}),
    "without chroma subsampling": ("RGB", {"format": "JPEG", "subsampling": 0}),
    "grey": ("L", {"format": "JPEG"}),
    "turned by EXIF": ("RGB", {"format": "JPEG", "exif": turned()}),
    "four colours": ("CMYK", {"format": "JPEG"}),
    "gif": ("P", {"format": "GIF"}),
    "png": ("RGB", {"format": "PNG"}),
    "png with alpha": ("RGBA", {"format": "PNG"}),
    "palette": ("P", {"format": "PNG"}),
    "16 bits": ("I;16", {"format": "PNG"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_read_to_the_pixels_that_pil_gives(kind, tmp_path):
    mode, options = KINDS[kind]
    photo().convert(mode).save(tmp_path / "p.jpg", **options)
    assert np.array_equal(read_image(tmp_path / "p.jpg"), by_pil(tmp_path / "p.jpg"))


def test_real_pictures_are_read_to_the_pixels_that_pil_gives(pets):
    paths = sorted((pets / "images").glob("*.jpg"))[::10]
    assert len(paths) == 56
    for path in paths:
        assert np.array_equal(read_image(path), by_pil(path)), path


def test_whole_jpegs_are_not_left_to_pil(tmp_path, monkeypatch):
    photo().save(tmp_path / "p.jpg")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded by PIL"))
    read_image(tmp_path / "p.jpg")


@pytest.mark.parametrize("kept", [0, 10, 300, 0.5, 0.99, -2, -1])
def test_a_picture_that_is_cut_short_is_named_and_never_filled_up(kept, tmp_path):
    path = tmp_path / "p.jpg"
    photo().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"p\.jpg can't be read"):
        read_image(path)


def test_opencv_is_not_asked_for_a_jpeg_without_its_end(tmp_path, monkeypatch):
    file = io.BytesIO()
    photo().save(file, "JPEG")
    (tmp_path / "p.jpg").write_bytes(file.getvalue() + b"\0\0")  # whole, with something behind it
    monkeypatch.setattr(pictures.cv2, "imdecode", lambda *_: pytest.fail("an OpenCV before 5 fills up with grey"))
    assert np.array_equal(read_image(tmp_path / "p.jpg"), np.array(Image.open(file).convert("RGB")))


def test_a_deep_png_that_would_take_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.zeros((20, 20, 4), np.uint16))
    assert read_image(path).shape == (20, 20, 3)
    monkeypatch.setattr(pictures, "MOST", 2 * 399)
    with pytest.raises(UserError, match="more than 399 pixels of 16 bits"):
        read_image(path)
