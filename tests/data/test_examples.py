"""How a picture is read: PIL's pixels, sooner; never a part of one; and how many examples are kept in little memory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from unetseg.config import UserError
from unetseg.data import examples
from unetseg.data.examples import Example, Listing, read_image

WHOLE = 10_000
"""A side that no picture here is larger than: they are decoded at their own size."""


def by_pil(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
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
    assert np.array_equal(read_image(tmp_path / "p.jpg", WHOLE), by_pil(tmp_path / "p.jpg"))


def test_real_pictures_are_read_to_the_pixels_that_pil_gives(pets):
    paths = sorted((pets / "images").glob("*.jpg"))[::10]
    assert len(paths) == 56
    for path in paths:
        assert np.array_equal(read_image(path, WHOLE), by_pil(path)), path


def test_whole_jpegs_are_not_left_to_pil(tmp_path, monkeypatch):
    photo().save(tmp_path / "p.jpg")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded by PIL"))
    read_image(tmp_path / "p.jpg", WHOLE)


@pytest.mark.parametrize(
    ("size", "side", "decoded"),
    [
        ((64, 96), 33, (64, 96)),
        ((64, 96), 32, (32, 48)),
        ((64, 96), 9, (16, 24)),
        ((64, 96), 8, (8, 12)),
        ((64, 96), 1, (8, 12)),
        ((64, 98), 8, (32, 49)),
        ((64, 97), 8, (64, 97)),
    ],
)
def test_a_jpeg_is_decoded_smaller_while_its_sides_divide_and_none_falls_below_the_square(
    size, side, decoded, tmp_path
):
    photo(*size).save(tmp_path / "p.jpg", quality=95)
    picture = read_image(tmp_path / "p.jpg", side)
    assert picture.shape == (*decoded, 3)
    direct, reduced = (
        cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA).astype(int)
        for picture in (by_pil(tmp_path / "p.jpg"), picture)
    )
    assert np.abs(direct - reduced).max() <= 8, "the same picture in the same place"


@pytest.mark.parametrize("kept", [0, 10, 300, 0.5, 0.99, -2, -1])
@pytest.mark.parametrize("side", [WHOLE, 30])
def test_a_picture_that_is_cut_short_is_named_and_never_filled_up(kept, side, tmp_path):
    path = tmp_path / "p.jpg"
    photo().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"p\.jpg can't be read"):
        read_image(path, side)


def test_opencv_is_not_asked_for_a_jpeg_without_its_end(tmp_path, monkeypatch):
    file = io.BytesIO()
    photo().save(file, "JPEG")
    (tmp_path / "p.jpg").write_bytes(file.getvalue() + b"\0\0")  # whole, with something behind it
    monkeypatch.setattr(examples.cv2, "imdecode", lambda *_: pytest.fail("an OpenCV before 5 fills up with grey"))
    assert np.array_equal(read_image(tmp_path / "p.jpg", WHOLE), np.array(Image.open(file).convert("RGB")))


def test_a_listing_gives_back_its_examples():
    strange = os.fsdecode(b"caf\xe9")  # a name in no encoding
    given = [
        Example("a", Path("/images/a.jpg"), Path("/masks/a.png"), ""),
        Example("pet_größer", Path("images") / strange, Path("masks/b.png"), "pet"),
    ]
    listing = Listing(given)
    assert list(listing) == given
    assert len(listing) == 2
    assert list(Listing([])) == []


# Memory


GROWTH = """
import os, sys
from pathlib import Path
from unetseg.data.examples import Example, Listing, read_image

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

folder = Path(sys.argv[1])
examples = [Example(f"picture_{i}", folder / f"{i % 4}.jpg", folder / f"{i % 4}.png", "") for i in range(50_000)]
if sys.argv[2] == "listing":
    examples = Listing(examples)
if os.fork() == 0:  # as a loader's process is
    for i in range(100):
        read_image(examples[i].image, 8)  # what decoders keep from the first time on
    before = private_bytes()
    for i in range(len(examples)):
        assert examples[i].name
        if i % 25 == 0:
            read_image(examples[i].image, 8)
    print(private_bytes() - before)
else:
    os.wait()
"""


def growth(kind: str, folder: Path) -> int:
    """Return by how many bytes a forked process grows that looks at all 50,000 examples and reads some of them."""
    command = [sys.executable, "-c", GROWTH, folder, kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what a process shares")
def test_a_loaders_process_does_not_grow_with_the_number_of_pictures(tmp_path):
    for i in range(4):
        photo(16, 16).save(tmp_path / f"{i}.jpg")
    assert growth("listing", tmp_path) < 4e6
    assert growth("list", tmp_path) > 10e6, "what a list costs each process, or this test shows nothing"
