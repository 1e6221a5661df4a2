"""Pictures whose channels lie in files of their own."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetseg.data.joined import order_bands
from unetseg.data.pictures import read_image
from unetseg.data.sources import make_data
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training.build import hyper_parameters

BANDS = ("B1", "B2", "B8A", "B10")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tiles"
    folder.mkdir()
    return folder


def tiles(root, bands=BANDS, count: int = 10) -> dict[str, np.ndarray]:
    """Write tiles of 16-bit bands, each a file, and their masks; return them as HxWxC."""
    rng, written = np.random.default_rng(0), {}
    for number in range(count):
        name = f"t_{number}"
        written[name] = rng.integers(0, 5000, (20, 24, len(bands))).astype(np.uint16)
        for place, band in enumerate(bands):
            tifffile.imwrite(root / f"{name}_{band}.tif", written[name][..., place])
        Image.fromarray((written[name][..., 0] > 2500).astype(np.uint8)).save(root / f"{name}_mask.png")
    return written


def data_of(root, *overrides: str):
    given = ["data=folder", f"data.root={root}", "data.images={name}_{channel}.tif", "data.masks={name}_mask.png"]
    options = compose("train", Train, [*given, "data.size=32", "data.workers=0", *overrides])
    data = make_data(options.data.model_dump(), 0)
    data.check()
    return data


def test_the_files_of_a_picture_are_its_channels_in_the_order_of_their_numbers(root):
    written = tiles(root)
    collection = data_of(root, "data.channels=4").collection
    examples = [example for split in collection.splits.values() for example in split]
    assert sorted(example.name for example in examples) == sorted(written)
    for example in examples:
        assert np.array_equal(read_image(example.image, View(channels=4)), written[example.name])
    assert "channels of a picture, in this order: B1, B2, B8A, B10" in collection.notes


def test_three_files_are_red_green_and_blue(root):
    written = tiles(root, ("0", "1", "2"))
    example = data_of(root, "data.range=[0,5000]").collection.splits["train"][0]
    wanted = np.rint(255 * (written[example.name] / 5000)).astype(np.uint8)
    assert np.array_equal(read_image(example.image, View(value_range=(0, 5000))), wanted)


def test_a_file_that_changes_is_joined_anew(root):
    tiles(root)
    first = data_of(root, "data.channels=4").collection.splits["train"][0]
    tifffile.imwrite(root / f"{first.name}_B2.tif", np.full((20, 24), 7, np.uint16))
    again = next(e for e in data_of(root, "data.channels=4").collection.splits["train"] if e.name == first.name)
    assert (read_image(again.image, View(channels=4))[..., 1] == 7).all()


def test_lists_name_pictures_of_several_files(root):
    tiles(root)
    for split, names in (("train", "t_0\nt_1\n"), ("val", "t_2\n"), ("test", "t_3\n")):
        (root / f"{split}.txt").write_text(names)
    splits = data_of(root, "data.channels=4").collection.splits
    assert [example.name for example in splits["train"]] == ["t_0", "t_1"]


@pytest.mark.parametrize(
    ("change", "given", "said"),
    [
        (lambda root: (root / "t_3_B8A.tif").unlink(), (), "t_3 has no file for B8A"),
        (lambda root: None, ("data.bands=[B1,B2,B8A,B11]",), "has no file for B11"),
        (
            lambda root: tifffile.imwrite(root / "t_3_B8A.tif", np.zeros((10, 12), np.uint16)),
            (),
            r"t_3_B8A.tif has 10 x 12 pixels, t_3_B1.tif 20 x 24",
        ),
        (lambda root: (root / "t_3_B8A.tif").write_bytes(b"II*\0"), (), r"t_3_B8A.tif can't be read as a picture"),
        (lambda root: None, ("data.masks={name}_{channel}.png",), "channel"),
        (
            lambda root: Image.new("L", (24, 20)).save(root / "t_3_B8A.png"),
            ("data.images={name}_{channel}.*",),
            "are one channel of one picture",
        ),
    ],
)
def test_files_that_are_no_channels_of_a_picture_are_named(change, given, said, root):
    tiles(root)
    change(root)
    with pytest.raises(UserError, match=said):
        data_of(root, "data.channels=4", *given)


def test_the_order_of_bands_is_theirs_however_they_are_found():
    assert order_bands(["B02", "B2", "B002", "B1"]) == order_bands(["B1", "B002", "B2", "B02"])
    assert order_bands(["nir", "blue", "Red", "green"]) == ["Red", "green", "blue", "nir"]
    assert order_bands(["g", "b", "r"]) == ["r", "g", "b"]
    assert order_bands(["green", "blue"]) == ["blue", "green"], "no colours where one of three is absent"


def test_bands_are_chosen_and_ordered_by_an_option(root):
    written = tiles(root)
    example = data_of(root, "data.channels=2", "data.bands=[B10,B1]").collection.splits["train"][0]
    assert np.array_equal(read_image(example.image, View(channels=2)), written[example.name][..., [3, 0]])


def test_colours_of_several_types_are_refused(root):
    tiles(root, ("red", "green", "blue"))
    tifffile.imwrite(root / "t_0_green.tif", np.zeros((20, 24), np.uint8))
    with pytest.raises(UserError, match="of uint16 and uint8: one value has several meanings"):
        data_of(root)


def test_the_checkpoint_knows_its_bands(root):
    tiles(root)
    data = data_of(root, "data.channels=4")
    options = compose("train", Train, ["data=folder", f"data.root={root}"])
    assert list(data.view.bands) == [*BANDS]
    assert hyper_parameters(options, data.view)["data"]["bands"] == [*BANDS]
