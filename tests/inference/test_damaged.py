"""Three hundred damaged and strange inputs: each gives a mask or an error that names it, soon and in little memory."""

import io
import os
import resource
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fake_engine import Brightness
from PIL import Image

from unetseg.errors import UserError
from unetseg.inference.predictor import Predictor

SEED = 0
SECONDS = 10
"""For one input."""
MEMORY = 4e9
"""Bytes of this process at its highest."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff_of(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def whole_files(random: np.random.Generator) -> dict[str, bytes]:
    """Return sound pictures by their names."""
    colour = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    colour[10:50, 10:70] = (200, 30, 90)
    image = Image.fromarray(colour)
    exif = Image.Exif()
    exif[274] = 8
    frames = [image.convert("P"), image.rotate(90).convert("P"), image.rotate(180).convert("P")]
    deep = colour.astype(np.uint16) * 257
    return {
        "plain.jpg": encoded(image, "JPEG"),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "plain.png": encoded(image, "PNG"),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "bilevel.png": encoded(image.convert("1"), "PNG"),
        "deep.png": encoded(Image.fromarray(deep[..., 0]), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "plain.bmp": encoded(image, "BMP"),
        "plain.webp": encoded(image, "WEBP"),
        "plain.ppm": encoded(image, "PPM"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "plain.tif": tiff_of(colour, photometric="rgb"),
        "tiled.tif": tiff_of(colour, photometric="rgb", tile=(16, 32), compression="zlib"),
        "deep.tif": tiff_of(deep, photometric="rgb", compression="zlib", rowsperstrip=7),
        "float.tif": tiff_of(colour.astype(np.float32), photometric="rgb"),
        "dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "line.png": encoded(Image.new("RGB", (5000, 1)), "PNG"),
        "column.png": encoded(Image.new("L", (1, 5000)), "PNG"),
    }


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that claims side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def huge_tiff(side: int, strip: int) -> bytes:
    """Return a TIFF of a few bytes that claims side x side pixels in strips of so many rows."""
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, strip), (279, 100))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(104)


def damaged(folder: Path) -> Iterator[Path]:
    """Write the inputs and yield their paths."""
    random = np.random.default_rng(SEED)
    whole = whole_files(random)

    def written(name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    yield from (written(name, content) for name, content in whole.items())
    for name, content in whole.items():
        for number in range(4):
            yield written(f"short{number}_{name}", content[: random.integers(0, len(content))])
        for number in range(7):
            flipped = np.frombuffer(content, np.uint8).copy()
            reach = len(content) if number < 4 else min(len(content), 200)  # the header is where it hurts
            at = random.integers(0, reach, random.integers(1, 20))
            flipped[at] ^= (1 << random.integers(0, 8, len(at))).astype(np.uint8)
            yield written(f"flipped{number}_{name}", flipped.tobytes())
    kinds = ("jpg", "png", "tif", "gif", "bmp", "webp")
    for number, content in enumerate(whole.values()):
        yield written(f"wrong{number}.{kinds[number % len(kinds)]}", content)
    for kind in kinds:
        yield written(f"empty.{kind}", b"")
        (folder / f"folder.{kind}").mkdir()
        yield folder / f"folder.{kind}"
    yield written("bomb.png", bomb(60_000))
    yield written("smaller_bomb.png", bomb(11_000))
    for strip in (1, 100, 2**31 - 1):
        yield written(f"huge{strip}.tif", huge_tiff(200_000, strip))
        yield written(f"large{strip}.tif", huge_tiff(12_000, strip))
    yield folder / "absent.png"
    (folder / "loop.png").symlink_to("loop.png")
    yield folder / "loop.png"
    os.mkfifo(folder / "pipe.png")
    yield folder / "pipe.png"
    yield written("page.jpg", b"<!DOCTYPE html><title>404</title>")
    yield written("code.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(ran) (w) file\n")


@pytest.fixture
def limited() -> Iterator[None]:
    """End an input that computes for SECONDS, or that waits for something that never comes."""

    def late(number, _):
        raise BaseException(f"no answer within {SECONDS} seconds of computing: {signal.Signals(number).name}")

    before = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_each_gives_a_mask_or_an_error_that_names_it(tmp_path, limited):
    model = Predictor(Brightness())
    masks, errors = set(), {}
    most_so_far = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # by other tests of this process
    for path in damaged(tmp_path):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(30 * SECONDS)  # of a busy machine
        try:
            mask = model(path)
        except UserError as error:
            errors[path.name] = str(error)
        else:
            assert mask.dtype == np.uint8
            assert mask.ndim == 2
            masks.add(path.name)
        signal.setitimer(signal.ITIMER_PROF, 0)  # writing the next file may take longer
        signal.alarm(0)
    assert len(masks) + len(errors) >= 300
    assert all(str(tmp_path / name) in message and "Traceback" not in message for name, message in errors.items())
    sound = whole_files(np.random.default_rng(SEED)).keys() - {"float.tif"}
    assert sound <= masks, "what is only strange is read"
    assert {"bomb.png", "huge1.tif", "empty.png", "folder.png", "pipe.png", "absent.png", "page.jpg"} <= errors.keys()
    assert "178,956,970 pixels" in errors["bomb.png"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 <= max(MEMORY, most_so_far)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_without_permission_is_named(tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (9, 9)).save(path)
    path.chmod(0)
    with pytest.raises(UserError, match=r"mine\.png"):
        Predictor(Brightness())(path)
