"""One picture in every format, depth, orientation, transparency and palette: the same square wherever it is read."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from unetseg.data.dataset import Example, Examples
from unetseg.data.masks import INVALID, MaskValues, mask_size, read_mask
from unetseg.data.pictures import IMAGE_SUFFIXES, image_size, open_picture, read_image
from unetseg.data.transforms import Transform, resize_image
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.inference.engines import OnnxEngine
from unetseg.inference.predictor import Predictor

SIZE = 32
HEIGHT, WIDTH = 20, 30


def drawn() -> np.ndarray:
    """Return a grey picture, 20x30, in which no two corners are alike."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (4 * rows + 5 * columns).astype(np.uint8)


GREY = drawn()
RGB = np.dstack([GREY, 255 - GREY, GREY // 2])
ALPHA = np.where(np.arange(WIDTH) < 10, 0, 255).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB)
GREY_ON_WHITE = np.where(ALPHA == 0, 255, GREY)
TURNED = {  # what a viewer shows of pixels that are stored so
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip


def save(path: Path, array: np.ndarray, **options) -> None:
    Image.fromarray(array).save(path, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def palette(path: Path, **options) -> None:
    picture = Image.fromarray(GREY, "P")
    picture.putpalette(np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], 1).astype(np.uint8))
    picture.save(path, **options)


def as16(array: np.ndarray) -> np.ndarray:
    return array.astype(np.uint16) * 257


def opencv(path: Path, array: np.ndarray) -> None:
    cv2.imwrite(str(path), array[..., [2, 1, 0, *range(3, array.shape[2])]])


def tiff(path: Path, array: np.ndarray, **options) -> None:
    tifffile.imwrite(path, array, **options)


KINDS = {
    "grey.png": (save, GREY, {}, GREY),
    "rgb.png": (save, RGB, {}, RGB),
    "rgb.bmp": (save, RGB, {}, RGB),
    "rgb.ppm": (save, RGB, {}, RGB),
    "grey.pgm": (save, GREY, {}, GREY),
    "rgb.webp": (save, RGB, {"lossless": True}, RGB),
    "rgb.jp2": (save, RGB, {}, RGB),
    "grey.gif": (save, GREY, {}, GREY),
    "rgba.png": (save, np.dstack([RGB, ALPHA]), {}, ON_WHITE),
    "la.png": (save, np.dstack([GREY, ALPHA]), {}, GREY_ON_WHITE),
    "rgba.webp": (save, np.dstack([RGB, ALPHA]), {"lossless": True}, ON_WHITE),
    "rgba.tif": (save, np.dstack([RGB, ALPHA]), {}, ON_WHITE),
    "lzw.tif": (save, RGB, {"compression": "tiff_lzw"}, RGB),
    "lzw_alpha.tif": (save, np.dstack([RGB, ALPHA]), {"compression": "tiff_lzw"}, ON_WHITE),
    "tiles.tif": (tiff, RGB, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}, RGB),
    "big.tif": (tiff, RGB, {"photometric": "rgb", "bigtiff": True, "byteorder": ">"}, RGB),
    "planes.tif": (tiff, RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "white_is_zero.tif": (tiff, 255 - GREY, {"photometric": "miniswhite"}, GREY),
    "sixteen.png": (save, as16(GREY), {}, GREY),
    "sixteen.tif": (tiff, as16(GREY), {}, GREY),
    "sixteen.pgm": (save, as16(GREY), {}, GREY),
    "sixteen_rgb.png": (opencv, as16(RGB), {}, RGB),
    "sixteen_rgba.png": (opencv, as16(np.dstack([RGB, ALPHA])), {}, ON_WHITE),
    "sixteen_rgb.tif": (tiff, as16(RGB), {"photometric": "rgb"}, RGB),
} | {f"turned_{n}.png": (save, RGB, {"exif": exif(n)}, TURNED[n](RGB)) for n in TURNED}
KINDS |= {f"turned_{n}.tif": (save, RGB, {"exif": exif(n)}, TURNED[n](RGB)) for n in (3, 6)}
WITH_RANGE = {  # low and high are black and white
    "twelve.png": (save, GREY.astype(np.uint16) * 16, [0, 4080]),
    "twelve_rgb.png": (opencv, RGB.astype(np.uint16) * 16, [0, 4080]),
    "twelve.tif": (tiff, GREY.astype(np.uint16) * 16, [0, 4080]),
    "hounsfield16.tif": (tiff, GREY.astype(np.int16) * 8 - 1000, [-1000, 1040]),
    "hounsfield32.tif": (tiff, GREY.astype(np.int32) * 8 - 1000, [-1000, 1040]),
    "float32.tif": (tiff, GREY.astype(np.float32) / 255, [0, 1]),
    "float64.tif": (tiff, GREY / 255, [0, 1]),
    "rest8bits.png": (save, GREY, [0, 4080]),
}


class Watching:
    """An engine that keeps what it is given."""

    classes = ("no", "yes")

    def __init__(self, value_range=None):
        self.view = View(SIZE, value_range=value_range)

    def probabilities(self, images):
        self.seen = images
        return np.full((len(images), 2, *images.shape[1:3]), 0.5, np.float32)


def trained_on(path: Path, value_range=None) -> np.ndarray:
    """Return the square that training, evaluation and the report are given."""
    mask = path.with_name(f"mask_of_{path.name}.png")
    save(mask, np.zeros(read_image(path, View(value_range=value_range)).shape[:2], np.uint8))
    values = np.full(256, INVALID, np.uint8)
    values[:2] = 0, 1
    examples = [Example("a", path, mask, "")]
    dataset = Examples(examples, MaskValues(values), Transform(View(SIZE, value_range=value_range), augment=False), 0)
    return dataset.load(0, 0)[0]


def predicted_on(image, value_range=None) -> np.ndarray:
    """Return the square that load, predict and the demo ask the model about."""
    engine = Watching(value_range)
    Predictor(engine)(image)
    return engine.seen[0]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_square_is_trained_on_scored_and_asked_about(name, tmp_path):
    how, array, options, wanted = KINDS[name]
    how(tmp_path / name, array, **options)
    whole = np.broadcast_to(wanted.reshape(*wanted.shape[:2], -1), (*wanted.shape[:2], 3))
    read = read_image(tmp_path / name)
    assert image_size(tmp_path / name) == read.shape[:2] == whole.shape[:2]
    assert np.abs(read.astype(int) - whole).max() <= (1 if "jp2" in name else 0)
    assert np.array_equal(trained_on(tmp_path / name), resize_image(read, SIZE, SIZE))
    assert np.array_equal(predicted_on(tmp_path / name), resize_image(read, SIZE, SIZE))


@pytest.mark.parametrize("name", ["a.jpg", "a.avif", "cmyk.jpg", "cmyk.tif", "turned.jpg", "ycbcr.tif"])
def test_what_is_stored_with_losses_or_in_other_colours_is_the_same_square_too(name, tmp_path):
    picture = Image.fromarray(RGB).convert({"c": "CMYK", "y": "YCbCr"}.get(name[0], "RGB"))
    options = {"exif": exif(6)} if name == "turned.jpg" else {"compression": "tiff_lzw"} if name[-1] == "f" else {}
    picture.save(tmp_path / name, **({} if name == "a.avif" else options))
    read = read_image(tmp_path / name)
    assert read.shape[:2] == image_size(tmp_path / name) == ((WIDTH, HEIGHT) if "turned" in name else (HEIGHT, WIDTH))
    assert np.array_equal(trained_on(tmp_path / name), resize_image(read, SIZE, SIZE))
    assert np.array_equal(predicted_on(tmp_path / name), resize_image(read, SIZE, SIZE))


def test_transparent_colours_of_a_palette_are_laid_on_white(tmp_path):
    palette(tmp_path / "whole.png")
    palette(tmp_path / "holes.png", transparency=0)
    assert np.array_equal(read_image(tmp_path / "whole.png"), RGB)
    assert read_image(tmp_path / "holes.png")[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(trained_on(tmp_path / "holes.png"), predicted_on(tmp_path / "holes.png"))


@pytest.mark.parametrize("name", WITH_RANGE)
def test_a_stated_range_makes_the_same_square_of_more_than_8_bits(name, tmp_path):
    how, array, value_range = WITH_RANGE[name]
    how(tmp_path / name, array)
    read = read_image(tmp_path / name, View(value_range=value_range))
    assert np.array_equal(read, RGB if "rgb" in name else np.dstack([GREY] * 3))
    assert image_size(tmp_path / name, View(value_range=value_range)) == (HEIGHT, WIDTH)
    assert np.array_equal(trained_on(tmp_path / name, value_range), resize_image(read, SIZE, SIZE))
    assert np.array_equal(predicted_on(tmp_path / name, value_range), resize_image(read, SIZE, SIZE))
    assert np.array_equal(
        predicted_on(array, value_range) if array.ndim == 2 else resize_image(read, SIZE, SIZE),
        resize_image(read, SIZE, SIZE),
    )


@pytest.mark.parametrize("name", ["hounsfield16.tif", "hounsfield32.tif", "float32.tif", "float64.tif"])
def test_without_a_range_such_values_are_refused_from_the_head_on(name, tmp_path):
    how, array, _ = WITH_RANGE[name]
    how(tmp_path / name, array)
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=rf"(?s){name}.*without a known range.*data\.range"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [
        (np.dstack([RGB, GREY]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "4 bands, of which 3 are"),
        (RGB, {"photometric": "minisblack", "planarconfig": "contig"}, "3 bands, of which 1 is colour"),
        (np.stack([GREY] * 3), {"photometric": "minisblack"}, "several pages"),
        (as16(GREY), {"photometric": "miniswhite"}, "0 is white"),
        (np.moveaxis(as16(RGB), 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, "16 bits lie in planes"),
    ],
)
def test_a_tiff_without_one_clear_meaning_is_refused_from_the_head_on(array, options, reason, tmp_path):
    tiff(tmp_path / "a.tif", array, **options)
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=rf"a\.tif can't be read as a picture: .*{reason}"):
            read(tmp_path / "a.tif")


def test_a_smaller_copy_behind_a_picture_is_no_second_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize("pages", [[RGB[::2, ::2], RGB], [RGB, RGB[::2, ::2], RGB]])
@pytest.mark.parametrize("way", ["by windows", "by windows, marked", "by PIL"])
def test_a_page_behind_the_first_that_is_no_smaller_is_not_passed_over(pages, way, tmp_path):
    if way == "by PIL":
        first, *others = map(Image.fromarray, pages)
        first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="packbits")
    else:
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for page in pages:
                file.write(page, photometric="rgb", subfiletype=int(way.endswith("marked") and page.shape < RGB.shape))
    for read in (image_size, read_image):
        with pytest.raises(UserError, match="several pages"):
            read(tmp_path / "a.tif")


def packed_tiff(path: Path, array: np.ndarray, bits: int) -> None:
    """Write grey values of few bits a pixel into a TIFF, which neither PIL nor tifffile does."""
    digits = (array[..., None] >> np.arange(bits)[::-1]) & 1
    tiff(path, np.packbits(digits.reshape(len(array), -1), axis=1))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        for name, value in {"ImageWidth": array.shape[1], "BitsPerSample": bits}.items():
            content[tags[name].valueoffset : tags[name].valueoffset + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)


def png(path: Path, array: np.ndarray, bits: int, colour: int, transparent: tuple[int, ...] = ()) -> None:
    """Write a PNG of any depth, grey (colour 0) or RGB (2), with a transparent colour."""
    packed = (array[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(packed.reshape(len(array), -1), axis=1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", array.shape[1], len(array), bits, colour, 0, 0, 0))]
    if transparent:
        parts.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_of_any_depth_is_laid_on_white(bits, tmp_path):
    stored, most = GREY >> (8 - bits), 2**bits - 1
    png(tmp_path / "a.png", stored, bits, 0, transparent=(1,))
    seen = np.where(stored == 1, 255, stored * (255 // most))
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], seen)


@pytest.mark.parametrize(("array", "colour"), [(as16(GREY), 0), (as16(RGB), 2)])
def test_a_transparent_colour_of_16_bits_is_refused_from_the_head_on(array, colour, tmp_path):
    png(tmp_path / "a.png", array, 16, colour, transparent=(0,) if colour == 0 else (0, 0, 0))
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=r"a\.png.*16 bits and a transparent colour"):
            read(tmp_path / "a.png")


def test_a_tiff_that_states_12_bits_is_not_read_as_if_it_had_16(tmp_path):
    packed_tiff(tmp_path / "a.tif", GREY.astype(int) * 16, 12)
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=r"(?s)12 bits.*data\.range=\[0,4095\]"):
            read(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif", View(value_range=[0, 16 * 255]))[..., 0], GREY)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("end", ["png", "tif", "pgm"])
def test_a_mask_of_few_bits_is_refused_as_its_values_may_be_classes_or_greys(bits, end, tmp_path):
    path, classes = tmp_path / f"a.{end}", (GREY % 3).astype(int)
    if end == "png":
        png(path, classes, bits, 0)
    elif end == "tif":
        packed_tiff(path, classes[:, :28], bits)
    else:
        path.write_bytes(b"P5\n%d %d\n%d\n" % (WIDTH, HEIGHT, 2**bits - 1) + classes.astype(np.uint8).tobytes())
    with pytest.raises(UserError, match=r"(?s)neither 1 nor 8 nor 16 bits.*try: the same values in 8 bits"):
        read_mask(path, MaskValues(np.arange(256, dtype=np.uint8)))


def test_the_order_of_bytes_of_an_array_does_not_matter():
    with open_picture(as16(GREY).astype(">u2")) as picture:
        assert np.array_equal(picture.rows(0, HEIGHT)[..., 0], GREY)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    tiff(tmp_path / "a.tif", np.where(GREY == 0, np.nan, GREY).astype(np.float32))
    with pytest.raises(UserError, match=r"a\.tif.*no numbers"):
        read_image(tmp_path / "a.tif", View(value_range=[0, 255]))


@pytest.mark.parametrize("end", ["pgm", "jp2"])
def test_a_range_is_not_laid_on_values_that_a_format_has_scaled(end, tmp_path):
    save(tmp_path / f"a.{end}", as16(GREY) if end == "pgm" else GREY)
    with pytest.raises(UserError, match="with a range"):
        read_image(tmp_path / f"a.{end}", View(value_range=[0, 4095]))


def test_a_file_that_would_run_a_program_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    for read in (image_size, read_image, mask_size):
        with pytest.raises(UserError, match=r"a\.jpg can't be read as a picture: its format is unknown"):
            read(tmp_path / "a.jpg")


def test_a_forged_size_is_named_before_memory_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 16), np.uint8), tile=(16, 16), compression="zlib")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        places = [file.pages[0].tags[tag].valueoffset for tag in ("ImageWidth", "ImageLength")]
    for place in places:
        content[place : place + 2] = (65_520).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(content)
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=r"a\.tif can't be read as a picture"):
            read(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif"), open_picture(tmp_path / "a.tif"):
        pass


def test_an_exported_model_knows_the_range_and_is_given_the_square(tmp_path):
    pytest.importorskip("onnxruntime")
    from fake_engine import save_untrained

    from unetseg.export import export
    from unetseg.options.command_schema import Export
    from unetseg.options.compose import compose

    save_untrained(tmp_path / "a.ckpt", "data.range=[0,4080]")
    export(compose("export", Export, [f"checkpoint={tmp_path / 'a.ckpt'}", f"output={tmp_path / 'a.onnx'}"]))
    engine = OnnxEngine((tmp_path / "a.onnx").read_bytes())
    assert tuple(engine.view.value_range) == (0, 4080)
    seen = []
    engine.probabilities = lambda images: seen.append(images) or Watching.probabilities(Watching(), images)
    save(tmp_path / "a.png", GREY.astype(np.uint16) * 16)
    Predictor(engine)(tmp_path / "a.png")
    assert np.array_equal(seen[0][0], resize_image(np.dstack([GREY] * 3), engine.view.size, engine.view.size))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("end", ["png", "tif"])
def test_a_mask_is_turned_as_a_picture_is(orientation, end, tmp_path):
    classes = (GREY > 100).astype(np.uint8)
    save(tmp_path / f"a.{end}", classes, exif=exif(orientation))
    values = MaskValues(np.arange(256, dtype=np.uint8))
    turned = TURNED[orientation](classes)
    assert np.array_equal(read_mask(tmp_path / f"a.{end}", values), turned)
    assert mask_size(tmp_path / f"a.{end}") == turned.shape


def test_masks_of_16_bits_hold_classes_up_to_255(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 2]], np.uint16))
    assert read_mask(tmp_path / "a.png", MaskValues(np.arange(256, dtype=np.uint8))).tolist() == [[0, 2]]
    save(tmp_path / "a.png", np.array([[0, 258]], np.uint16))
    with pytest.raises(UserError, match="values from 0 to 258"):
        read_mask(tmp_path / "a.png", MaskValues(np.arange(256, dtype=np.uint8)))


def test_a_folder_shows_every_ending_that_is_read():
    by_pil = {
        end for end, name in Image.registered_extensions().items()
        if name in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO")
    }  # fmt: skip
    assert set(IMAGE_SUFFIXES) == by_pil - {".pfm"}, "floating-point maps have no range of their own"
