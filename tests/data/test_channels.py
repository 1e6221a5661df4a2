"""Pictures of other channels than RGB: read as stored, normalised, augmented, trained on, predicted and exported."""

import zlib

import numpy as np
import pytest
import tifffile
import torch
from conftest import prepared, square, write_pairs
from PIL import Image
from segmentation_models_pytorch.encoders import get_encoder

import unetseg
from unetseg.data.channels import displayed, statistics
from unetseg.data.pictures import image_size, open_picture, read_image
from unetseg.data.transforms import Transform, fit_image, resize_image
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.model.weights import for_channels
from unetseg.options.compose import compose
from unetseg.options.schema import Train

HEIGHT, WIDTH = 40, 56
RNG = np.random.default_rng(0)
BANDS = RNG.integers(-500, 6000, (HEIGHT, WIDTH, 5)).astype(np.int16)
GREY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
RGBA = RNG.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)


def planar(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1))


FILES = {
    "bands.tif": (lambda p: tifffile.imwrite(p, BANDS, photometric="minisblack", planarconfig="contig"), BANDS),
    "planes.tif": (
        lambda p: tifffile.imwrite(p, planar(BANDS), photometric="minisblack", planarconfig="separate"),
        BANDS,
    ),
    "pages.tif": (lambda p: tifffile.imwrite(p, planar(BANDS), photometric="minisblack"), BANDS),
    "deflate.tif": (
        lambda p: tifffile.imwrite(p, BANDS, photometric="minisblack", planarconfig="contig", compression="zlib"),
        BANDS,
    ),
    "float.tif": (lambda p: tifffile.imwrite(p, BANDS[..., 0] / np.float32(7)), BANDS[..., :1] / np.float32(7)),
    "grey16.tif": (lambda p: tifffile.imwrite(p, GREY16), GREY16[..., None]),
    "grey16.png": (lambda p: Image.fromarray(GREY16).save(p), GREY16[..., None]),
    "grey8.png": (lambda p: Image.fromarray(RGBA[..., 0]).save(p), RGBA[..., :1]),
    "rgba.png": (lambda p: Image.fromarray(RGBA).save(p), RGBA),
    "last.npy": (lambda p: np.save(p, BANDS), BANDS),
    "first.npy": (lambda p: np.save(p, planar(BANDS)), BANDS),
    "flat.npy": (lambda p: np.save(p, GREY16), GREY16[..., None]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_value_is_read_as_it_is_stored(name, tmp_path):
    write, expected = FILES[name]
    write(tmp_path / name)
    view = View(channels=expected.shape[2])
    found = read_image(tmp_path / name, view)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32))
    assert image_size(tmp_path / name, view) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("name", "channels"), [("bands.tif", 4), ("grey8.png", 2), ("rgba.png", 1), ("first.npy", 7)])
def test_another_number_of_channels_is_refused_by_name(name, channels, tmp_path):
    FILES[name][0](tmp_path / name)
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=rf"{name}.* it has .*, data.channels is {channels}"):
            read(tmp_path / name, View(channels=channels))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("end", ["tif", "png"])
def test_channels_are_turned_as_the_mask_is(end, orientation, tmp_path):
    """A grey picture of 16 bits and one of 8, with the same orientation: the same pixels in the same places."""
    deep, flat = tmp_path / f"deep.{end}", tmp_path / f"flat.{end}"
    grey, exif = RGBA[..., 0], Image.Exif()
    exif[0x0112] = orientation
    if end == "tif":
        for file, array in ((deep, grey.astype(np.uint16) * 257), (flat, grey)):
            tifffile.imwrite(file, array, extratags=[(274, "H", 1, orientation, True)])
    else:
        import cv2

        cv2.imwrite(str(deep), np.dstack([grey.astype(np.uint16) * 257] * 3))
        Image.open(deep).save(flat, exif=exif)  # 8 bits of three channels
        content = deep.read_bytes()
        chunk = b"eXIf" + exif.tobytes()[6:]
        chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        deep.write_bytes(content[:33] + chunk + content[33:])
    if end == "tif":
        found, wanted = read_image(deep, View(channels=1)), read_image(flat)[..., :1]
    else:
        from unetseg.data.channels import read_channels

        found, wanted = read_channels(deep, 3), read_image(flat)
    assert np.array_equal(found / 257, wanted)
    if end == "tif":
        assert image_size(deep, View(channels=1)) == wanted.shape[:2]
        assert np.array_equal(found / 257, read_image(flat, View(channels=1)))


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "RGBA", "LA"])
def test_a_pil_image_is_the_same_as_its_file(mode, tmp_path):
    picture = Image.fromarray(GREY16) if mode == "I;16" else Image.fromarray(RGBA).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    view = View(channels=len(picture.getbands()))
    with Image.open(tmp_path / "a.png") as opened, open_picture(opened, view) as found:
        assert np.array_equal(found.rows(0, found.height), read_image(tmp_path / "a.png", view))
    assert image_size(tmp_path / "a.png", view) == (WIDTH, HEIGHT)


def test_tiffs_of_no_one_meaning_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        file.write(GREY16)
        file.write(GREY16[:20])
    Image.fromarray(RGBA[..., :3]).quantize(16).save(tmp_path / "palette.tif")
    for name, said in (("sizes.tif", "several sizes"), ("palette.tif", "table of colours")):
        for read in (read_image, image_size):
            with pytest.raises(UserError, match=said):
                read(tmp_path / name, View(channels=1))
    with pytest.raises(UserError, match="may be HxWxC or CxHxW"), open_picture(np.zeros((4, 9, 4)), View(channels=4)):
        pass
    with pytest.raises(UserError, match="is no picture"), open_picture(np.zeros((0, 9, 4)), View(channels=4)):
        pass


def test_a_picture_with_a_thumbnail_is_its_first_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY16)
        file.write(GREY16[::2, ::2], subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif", View(channels=1))[..., 0], GREY16)


@pytest.mark.parametrize("channels", [5, 13, 128])
def test_any_number_of_channels_is_resized_channel_by_channel(channels):
    image = RNG.normal(size=(60, 80, channels)).astype(np.float32)
    for size in ((37, 41), (120, 33), (7, 200)):
        together = resize_image(image, *size)
        assert together.shape == (*size, channels)
        assert all(np.array_equal(together[..., c], resize_image(image[..., c], *size)) for c in range(channels))


def test_what_is_no_number_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[1, np.nan]], np.float32))
    with pytest.raises(UserError, match="no numbers"):
        read_image(tmp_path / "a.tif", View(channels=1))


def test_mean_and_deviation_are_those_of_all_pixels_together():
    pictures = [RNG.normal(1e6, 3, (7, 9, 2)), RNG.normal(1e6 + 5, 1, (30, 2, 2)), np.full((4, 4, 2), 1e6)]
    together = np.concatenate([picture.reshape(-1, 2) for picture in pictures])
    mean, std = statistics(pictures)
    assert mean == pytest.approx(together.mean(0), rel=1e-12)
    assert std == pytest.approx(together.std(0), rel=1e-9)
    assert statistics([np.zeros((2, 2, 1))]) == ([0.0], [1.0]), "a constant channel is divided by 1"


def test_channels_are_shown_from_two_deviations_below_the_mean_to_two_above():
    view = View(channels=5, mean=[0, 10, 20, 30, 40], std=[1, 2, 3, 4, 5], shown=[4, 2, 0])
    image = np.stack([np.full((2, 2), v, np.float32) for v in (2, 0, 14, 0, 40)], axis=-1)
    assert displayed(image, view)[0, 0].tolist() == [128, 0, 255]
    assert displayed(image[..., :1], View(channels=1, mean=[0], std=[1]))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_weights_of_rgb_are_adapted_as_smp_adapts_them(channels):
    torch.manual_seed(0)
    encoder = get_encoder("resnet18", in_channels=3, depth=5, weights=None)
    rgb = encoder.conv1.weight.detach().clone()
    if channels != 3:
        encoder.set_in_channels(channels, pretrained=True)
    assert torch.allclose(for_channels(rgb, channels), encoder.conv1.weight)


@pytest.mark.parametrize("channels", [1, 5])
def test_augmentation_fills_with_the_mean_and_changes_all_channels_alike(channels):
    mean, std = [1000.0] * channels, [10.0] * channels
    augment = Transform(View(32, channels=channels, mean=mean, std=std), augment=True)
    image, mask = np.full((32, 32, channels), 1000, np.float32), np.zeros((32, 32), np.uint8)
    shifts = []
    for index in range(100):
        moved, _ = augment(image, mask, (0, 0, index))
        assert np.ptp(moved) < 1e-2, "what lies outside has the mean as well"
        assert moved.shape == (32, 32, channels)
        shifts.append(moved.mean() - 1000)
    assert np.abs(shifts).max() <= 2.001
    assert np.std(shifts) > 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of five-band pictures in which one band shows the class."""
    rng, pairs = np.random.default_rng(1), []
    for _ in range(14):
        mask = square(rng, 48, 64, 20, 24)
        bands = rng.normal(3000, 100, (5, 48, 64))
        bands[4] += 800.0 * mask
        pairs.append((bands.astype(np.uint16), mask))
    root = write_pairs(tmp_path_factory.mktemp("set") / "bands", pairs)
    (root / "data.yaml").write_text("channels: 5\nshown: [4]\n")
    return root


OPTIONS = ("model.encoder=resnet18", "model.weights=null", "logger=none", "data.workers=0", "data.batch_size=4")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Return a run that was trained on the five bands."""
    given = ["data=folder", f"data.root={folder}", "data.size=64", *OPTIONS, "optimizer.lr=2e-3"]
    given += ["trainer.max_epochs=12", "gradients.every_n_steps=0"]
    return unetseg.train(*given, f"output={tmp_path_factory.mktemp('runs')}", "name=run")


def test_a_model_learns_from_the_band_that_shows_the_class(run):
    assert run.summary["test/iou"] > 0.8


def test_the_checkpoint_knows_the_channels_and_what_was_measured(run, folder):
    model = unetseg.load(run.folder)
    collection = prepared(run.config["data"]).collection
    pictures = [read_image(e.image, View(channels=5)) for e in collection.splits["train"]]
    mean, std = statistics(pictures)
    assert (model.view.channels, model.view.shown) == (5, [4])
    assert model.view.mean == pytest.approx(mean)
    assert model.engine.model.std.flatten().tolist() == pytest.approx(std)
    picture = tifffile.imread(folder / "images/0.tif")
    assert np.array_equal(model(folder / "images/0.tif"), model(picture))
    assert np.array_equal(model(picture), model(np.moveaxis(picture, 0, -1)))
    with pytest.raises(UserError, match=r"data\.channels is 5"):
        model(np.zeros((48, 64, 3), np.uint8))


def test_evaluate_predict_and_export_go_along(run, folder, tmp_path):
    pytest.importorskip("onnxruntime")
    from unetseg.export import export
    from unetseg.options.command_schema import Export, Predict
    from unetseg.predict import predict

    again = unetseg.evaluate(checkpoint=str(run.folder))
    assert again.summary["test/iou"] == pytest.approx(run.summary["test/iou"], abs=5e-3)
    given = [f"checkpoint={run.folder}", f"images={folder}/images", f"output={tmp_path}/masks", "overlay=true"]
    assert predict(compose("predict", Predict, given)) == []
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "masks/0.png")), unetseg.load(run.folder)(folder / "images/0.tif")
    )
    assert np.asarray(Image.open(tmp_path / "masks/overlay/0.png")).shape == (48, 64, 3)
    export(compose("export", Export, [f"checkpoint={run.folder}", f"output={tmp_path}/a.onnx"]))
    onnx, torch_model = unetseg.load(tmp_path / "a.onnx"), unetseg.load(run.folder)
    assert onnx.view == torch_model.view
    picture = folder / "images/3.tif"
    assert np.abs(onnx.probability(picture) - torch_model.probability(picture)).max() < 1e-3


def test_training_and_prediction_give_the_model_the_same_values(folder):
    view = View(64, channels=5, mean=[3000] * 5, std=[100] * 5)
    options = compose("train", Train, ["data=folder", f"data.root={folder}", "data.size=64", *OPTIONS])
    data = prepared(options.data.model_dump())
    batch = next(iter(data.val_dataloader()))
    example = data.collection.splits["val"][int(batch.indices[0])]
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), fit_image(read_image(example.image, view), view))


def test_other_channels_than_the_checkpoints_are_refused(run, folder):
    with pytest.raises(UserError, match=r"trained on 5 channels, the data has data\.channels=3"):
        unetseg.evaluate("data.channels=3", "data.shown=null", checkpoint=str(run.folder))


def test_the_command_line_beats_the_data_yaml(folder):
    options = compose("train", Train, ["data=folder", f"data.root={folder}", "data.channels=3", "data.shown=[0]"])
    assert options.data.channels == 3
    assert compose("train", Train, ["data=folder", f"data.root={folder}"]).data.channels == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.mean=[1,2]"], "both of data.mean and data.std"),
        (["data.channels=4", "data.mean=[1,2]", "data.std=[1,2]"], "4 numbers each"),
        (["data.channels=4", "data.shown=[0,4,1]"], "channels from 0 to 3"),
        (["data.channels=4", "data.range=[0,1]"], "data.range with data.channels=3"),
        (["data.channels=4", "data.cache=device"], "data.cache=device with"),
        (["data.crop=64", "data.cache=device"], "data.cache=device with"),
        (["data.crop=64", "data.fit=pad"], "data.fit=pad with whole pictures"),
        (["data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2]"], "RGB in 0..255"),
        (["data.scale=0.5"], "data.scale with data.crop"),
        (["data.crop=50"], "data.crop"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, said, folder):
    with pytest.raises(UserError, match=said):
        compose("train", Train, ["data=synthetic", *given])
