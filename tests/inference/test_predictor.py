"""A checkpoint as a function of pictures: what it loads, what it takes, and that tiles agree with the whole."""

import itertools

import numpy as np
import pytest
import torch
from fake_engine import Brightness, save_untrained
from PIL import Image

import unetseg
from unetseg.data.tiling import GRID, tile_starts, tile_weights
from unetseg.data.transforms import Transform, resize_image
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.inference import predictor
from unetseg.inference.predictor import Predictor
from unetseg.model import checkpoint
from unetseg.model.segmenter import class_map

RANDOM = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run folder with a best and a last checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("best", "last"):
        save_untrained(folder / "checkpoints" / f"{name}.ckpt")
    return folder


# Loading


def test_a_run_folder_and_either_checkpoint_give_the_same_model(run):
    image = noise(50, 70)
    found = [unetseg.load(path)(image) for path in (run, run / "checkpoints/best.ckpt", f"{run}/checkpoints/last.ckpt")]
    assert found[0].shape == (50, 70)
    assert found[0].dtype == np.uint8
    assert all(np.array_equal(mask, found[0]) for mask in found)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "foreign", "code", "empty folder"])
def test_what_is_no_checkpoint_is_refused_and_nothing_of_it_runs(run, tmp_path, kind):
    path = tmp_path / "model.ckpt"

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    if kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "code":
        torch.save({"hyper_parameters": Bomb()}, path)
    elif kind == "empty folder":
        path.mkdir()
    elif kind != "missing":
        whole = (run / "checkpoints/best.ckpt").read_bytes()
        path.write_bytes({"empty": b"", "text": b"text", "truncated": whole[:5000]}[kind])
    with pytest.raises(UserError, match=r"model\.ckpt"):
        unetseg.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, "tile=100 .*(.|\n)*multiple of 32"),
        ({"tile": 128, "overlap": 65}, "overlap=65 .*(.|\n)*half a tile, 64"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"precision": "float8"}, "float8 .*(.|\n)*float32, bfloat16"),
        ({"device": "toaster"}, "device=toaster"),
        ({"device": "cuda:99"}, "device=cuda:99"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_with_what_can(run, options, message):
    with pytest.raises(UserError, match=message):
        unetseg.load(run, **options)


# The square that the model was trained on


@pytest.mark.parametrize("shape", [(100, 80), (64, 64), (40, 30), (40, 200), (375, 500)], ids=str)
def test_a_picture_is_squashed_exactly_as_in_training_and_evaluation(shape):
    image = noise(*shape)
    wanted, _ = Transform(View(64), augment=False).resize(image, np.zeros(shape, np.uint8))
    assert np.array_equal(resize_image(image, 64, 64), wanted)


def test_masks_agree_with_the_class_map_that_evaluate_scores(run):
    image = noise(64, 64)
    model, _ = checkpoint.load(run)
    with torch.inference_mode():
        scored = class_map(model(torch.from_numpy(image).permute(2, 0, 1)[None]))[0].numpy()
    assert 0 < scored.mean() < 1
    assert np.array_equal(unetseg.load(run)(image), scored)


@pytest.mark.parametrize("target", ["pet", "trimap"])
def test_probabilities_are_of_the_pictures_size_and_sum_to_one(tmp_path, target):
    model = unetseg.load(save_untrained(tmp_path / "model.ckpt", f"data.target={target}"))
    proba = model.probability(noise(37, 91))
    assert proba.shape == (37, 91, len(model.classes))
    assert proba.dtype == np.float32
    assert proba.min() >= 0
    np.testing.assert_allclose(proba.sum(-1), 1, atol=1e-5)
    image = noise(70, 33)
    assert np.array_equal(model(image), model.probability(image).argmax(-1))


def test_enlarging_is_bilinear_as_torch_does_it():
    engine = Brightness()
    image = noise(64, 64)
    big = np.asarray(Image.fromarray(image).resize((64, 64)))
    square = engine.probabilities(big[None])
    from unetseg.data.tiling import enlarge

    found = np.concatenate(list(enlarge(square[0], 1200, 333)))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(square), size=(1200, 333), mode="bilinear")[0]
    np.testing.assert_allclose(found, wanted.permute(1, 2, 0), atol=1e-5)


def test_a_list_or_a_batch_gives_a_list_with_the_same_masks(run):
    model = unetseg.load(run, batch_size=2)
    images = [noise(64, 64), noise(50, 40), noise(64, 64)]
    for mask, image in zip(model(images), images, strict=True):
        assert np.mean(mask != model(image)) < 1e-3
    assert [mask.shape for mask in model(np.stack([images[0], images[2]]))] == [(64, 64)] * 2
    assert model([]) == []


def test_test_time_augmentation_is_the_mean_over_the_picture_and_its_mirror_image(run):
    model, plain = unetseg.load(run, tta=True), unetseg.load(run)
    image = noise(64, 64)
    mean = (plain.probability(image) + plain.probability(image[:, ::-1])[:, ::-1]) / 2
    np.testing.assert_allclose(model.probability(image), mean, atol=1e-5)


def test_bfloat16_changes_little(run):
    image = noise(64, 64)
    half, full = (unetseg.load(run, precision=p).probability(image) for p in ("bfloat16", "float32"))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05


# What pictures may be


def test_every_kind_of_picture_is_taken_as_users_see_it(tmp_path):
    model = Predictor(Brightness(), tile=512)
    seen = lambda image: model.probability(image)[..., 1] * 255  # noqa: E731
    colour, grey, alpha = noise(40, 50), noise(40, 50, 1)[..., 0], noise(40, 50, 1)[..., 0]
    mean = colour.mean(-1)
    np.testing.assert_allclose(seen(colour), mean, atol=1e-3)
    np.testing.assert_allclose(seen(Image.fromarray(colour)), mean, atol=1e-3)
    np.testing.assert_allclose(seen(grey), grey, atol=1e-3)
    np.testing.assert_allclose(seen(grey[..., None]), grey, atol=1e-3)
    np.testing.assert_allclose(seen(grey.astype(np.uint16) * 257), grey, atol=1e-3)
    on_white = (colour * (alpha[..., None] / 255) + 255 - alpha[..., None]).mean(-1)
    np.testing.assert_allclose(seen(np.dstack([colour, alpha])), on_white, atol=0.7)
    for suffix in ("png", "tif", "bmp", "webp"):
        Image.fromarray(colour).save(tmp_path / f"colour.{suffix}", lossless=True)
        np.testing.assert_allclose(seen(tmp_path / f"colour.{suffix}"), mean, atol=1e-3)
    Image.fromarray(np.dstack([colour, alpha]), "RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_allclose(seen(str(tmp_path / "alpha.png")), on_white, atol=0.7)
    for suffix in ("png", "tif"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_allclose(seen(tmp_path / f"deep.{suffix}"), grey, atol=1e-3)
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_allclose(seen(tmp_path / "palette.png"), grey, atol=1e-3)
    Image.fromarray(grey > 127).save(tmp_path / "bilevel.png")
    np.testing.assert_allclose(seen(tmp_path / "bilevel.png"), 255 * (grey > 127), atol=1e-3)


def test_a_picture_that_the_camera_turned_is_upright(tmp_path):
    upright = noise(40, 60)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    proba = Predictor(Brightness(), tile=512).probability(tmp_path / "turned.png")
    assert proba.shape == (40, 60, 2)
    np.testing.assert_allclose(proba[..., 1] * 255, upright.mean(-1), atol=1e-3)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), float), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 7), np.uint8), 3, None], ids=str
)
def test_what_is_no_picture_is_refused_with_what_is(image):
    with pytest.raises(UserError, match="accepted: "):
        Predictor(Brightness())(image)


# Tiles


def test_tiles_cover_a_picture_on_one_grid_and_their_weights_sum_to_one():
    for length in (1, 31, 32, 128, 129, 500, 1000):
        for tile, overlap in ((32, 0), (128, 0), (128, 50), (128, 64)):
            at, side = tile_starts(length, tile, overlap), min(tile, -(-length // GRID) * GRID)
            shares, total = tile_weights(at, side, overlap), np.zeros(at[-1] + side)
            for start, share in zip(at, shares, strict=True):
                total[start : start + side] += share
            np.testing.assert_allclose(total, 1, atol=1e-6)
            assert all(start % GRID == 0 for start in at)
            assert at[-1] + side >= length
            assert all(b - a <= tile - overlap for a, b in itertools.pairwise(at)), "neighbours overlap"
            assert shares[0, 0] == shares[-1, -1] == 1, "the outer tiles count fully up to the picture's border"


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (200, 150), (256, 256), (300, 517)], ids=str)
@pytest.mark.parametrize("radius", [0, 12])
def test_away_from_seams_tiles_agree_exactly_with_the_whole_picture(shape, radius):
    image = noise(*shape)
    tiled, whole = (Predictor(Brightness(radius), tile=t, overlap=64).probability(image) for t in (128, 1024))
    assert tiled.shape == (*shape, 2)
    away = np.ones(shape, bool)
    for axis, length in enumerate(shape):
        at = tile_starts(length, 128, 64)
        edges = [*at[1:], *(start + 128 for start in at[:-1])]
        near = [min((abs(i + 0.5 - edge) for edge in edges), default=np.inf) < radius for i in range(length)]
        away &= ~np.expand_dims(near, 1 - axis)
    assert away.any()
    np.testing.assert_allclose(tiled[away], whole[away], atol=1e-5)


def test_a_unet_gives_the_same_in_tiles_beyond_the_reach_of_its_receptive_field(run):
    image = noise(64, 1024)
    tiled, whole = (unetseg.load(run, tile=t, overlap=64).probability(image) for t in (768, 1024))
    assert tile_starts(1024, 768, 64) == [0, 256]
    np.testing.assert_allclose(tiled[:, :32], whole[:, :32], atol=1e-4)
    np.testing.assert_allclose(tiled[:, -32:], whole[:, -32:], atol=1e-4)


def test_tiles_change_the_iou_by_less_than_half_a_percent():
    rows, columns = np.mgrid[:600, :800]
    truth = np.sin(rows / 37) + np.sin(columns / 53) > 0.3
    image = np.repeat((255 * truth).astype(np.uint8)[..., None], 3, axis=2) // 2 + noise(600, 800) // 2
    whole, tiled = (Predictor(Brightness(20), tile=t, overlap=64)(image) > 0 for t in (1024, 256))
    iou = [(truth & mask).sum() / (truth | mask).sum() for mask in (whole, tiled)]
    assert iou[0] > 0.9
    assert abs(iou[0] - iou[1]) < 0.005


def test_large_pictures_are_tiled_by_themselves_and_small_ones_are_squashed(monkeypatch):
    monkeypatch.setattr(predictor, "LARGE", 600 * 600)
    for shape, wanted in (((600, 600), {(1, 64, 64, 3)}), ((601, 600), {(2, 512, 512, 3)})):
        engine = Brightness()
        assert Predictor(engine)(noise(*shape)).shape == shape
        assert set(engine.shapes) == wanted
    engine = Brightness()
    Predictor(engine, tile=0)(noise(601, 600))
    assert set(engine.shapes) == {(1, 64, 64, 3)}
