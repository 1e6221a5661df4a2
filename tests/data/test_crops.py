"""Crops of pictures at their own resolution: where they lie, what they hold, and whole pictures in their place."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, prepared, square, write_pairs
from PIL import Image

from unetseg.data.augmentation import REACH
from unetseg.data.tiling import from_square
from unetseg.data.transforms import Transform, fit_image, rare_pixel, window
from unetseg.data.view import View
from unetseg.names import IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train

SIDE = 32
CROPS = ("data.size=96", "data.crop=32", "data.batch_size=4", "data.workers=0")


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture whose red and green are a pixel's row and column, and a mask of the same in few classes."""
    rows, columns = np.mgrid[:height, :width]
    image = np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)
    return image, ((rows // 16 + columns // 16) % 3).astype(np.uint8)


def test_a_crop_is_a_window_of_the_picture_and_its_mask_that_of_the_mask():
    image, mask = coordinates(90, 120)
    crop = Transform(View(crop=SIDE), augment=False, foreground=0.5)
    corners = []
    for index in range(2000):
        part, classes = crop(image, mask, (0, 0, index))
        top, left = part[0, 0, :2].tolist()
        corners.append((top, left))
        assert np.array_equal(part, image[top : top + SIDE, left : left + SIDE])
        assert np.array_equal(classes, mask[top : top + SIDE, left : left + SIDE])
    tops, lefts = np.array(corners).T
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 90 - SIDE, 0, 120 - SIDE)


def test_every_place_is_as_likely_as_any_other_and_depends_on_the_key_alone():
    image, mask = coordinates(40, 40)
    crop = Transform(View(crop=SIDE), augment=False)
    places = [crop(image, mask, (0, epoch, 7))[0][0, 0, :2].tolist() for epoch in range(4000)]
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(np.array(places).T), 1)
    expected = 4000 / 81
    assert ((counts - expected) ** 2 / expected).sum() < 80 + 5 * (2 * 80) ** 0.5, (
        "chi squared of 80 degrees of freedom"
    )
    assert crop(image, mask, (0, 3, 7))[0][0, 0, :2].tolist() == places[3]


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20), (7, 5)])
@pytest.mark.parametrize("augment", [False, True])
def test_what_lies_outside_of_a_smaller_picture_is_not_counted(height, width, augment):
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    part, classes = Transform(View(crop=SIDE), augment)(image, mask, (0, 0, 0))
    assert part.shape == (SIDE, SIDE, 3)
    if not augment:
        inside = min(height, SIDE) * min(width, SIDE)
        assert (classes == 0).sum() == inside
        assert (classes == IGNORE).sum() == SIDE**2 - inside
        top = (SIDE - height) // 2 if height < SIDE else 0
        assert (classes[: max(top, 0)] == IGNORE).all()
        assert (part[classes == IGNORE] == (124, 116, 104)).all()
    assert set(np.unique(classes)) == {0, IGNORE}


def test_a_turned_crop_shows_the_picture_around_it_and_no_frame():
    image, mask = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    mask[100, 100] = 1
    crop = Transform(View(crop=64), augment=True, foreground=1.0)
    assert all((crop(image, mask, (0, 0, index))[1] != IGNORE).all() for index in range(300))
    assert REACH > 1.5


def test_a_share_of_the_crops_is_centred_on_a_rare_class():
    image, mask = np.zeros((300, 300, 3), np.uint8), np.zeros((300, 300), np.uint8)
    mask[200, 150] = 1
    share = Transform(View(crop=SIDE), augment=False, foreground=0.33)
    centred = [share(image, mask, (0, 0, index))[1][SIDE // 2, SIDE // 2] == 1 for index in range(3000)]
    assert np.mean(centred) == pytest.approx(0.33, abs=4 * (0.33 * 0.67 / 3000) ** 0.5)


def test_rare_classes_are_drawn_evenly_and_the_most_frequent_and_ignored_ones_never():
    mask = np.zeros((50, 50), np.uint8)
    mask[:10], mask[10, :3], mask[40:] = 1, 7, IGNORE
    rng = np.random.default_rng(0)
    drawn = np.array([rare_pixel(mask, rng) for _ in range(2000)])
    labels = mask[tuple(drawn.T)]
    assert set(labels) == {1, 7}
    assert (labels == 7).mean() == pytest.approx(0.5, abs=4 * (0.25 / 2000) ** 0.5)
    assert len({tuple(place) for place in drawn[labels == 7].tolist()}) == 3
    assert rare_pixel(np.zeros((9, 9), np.uint8), rng) is None


def test_of_a_large_picture_rare_pixels_are_found_as_evenly_and_in_any_case():
    mask = np.zeros((1500, 2000), np.uint8)
    mask[700:800, 900:1100], mask[3, 5] = 1, 2
    rng = np.random.default_rng(0)
    places = np.array([rare_pixel(mask, rng) for _ in range(600)])
    assert (mask[tuple(places.T)] > 0).all()
    rows, columns = places[mask[tuple(places.T)] == 1].T
    assert len(np.unique(rows)) > 95
    assert np.mean(columns) == pytest.approx(999.5, abs=4 * 58 / len(columns) ** 0.5)
    mask[mask == 1] = 0
    assert rare_pixel(mask, rng) == (3, 5)


def test_a_window_may_lie_anywhere():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for top in range(-6, 6):
        for left in range(-6, 7):
            found = window(array, top, left, 3, [99])
            for row in range(3):
                for column in range(3):
                    y, x = top + row, left + column
                    expected = array[y, x] if 0 <= y < 3 and 0 <= x < 4 else 99
                    assert found[row, column] == expected


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64), (200, 63)])
def test_a_padded_picture_keeps_its_shape_and_comes_back_to_its_size(shape):
    view = View(64, fit="pad")
    image, mask = np.full((*shape, 3), 200, np.uint8), np.ones(shape, np.uint8)
    square, classes = Transform(view, augment=False).resize(image, mask)
    assert np.array_equal(square, fit_image(image, view))
    inside = classes != IGNORE
    height, width = (inside.any(axis).sum() for axis in (1, 0))
    assert max(height, width) == 64
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.05)
    assert (square[inside] == 200).all()
    assert (square[~inside] == (124, 116, 104)).all()
    back = np.concatenate(list(from_square(inside[None].astype(np.float32), view, *shape)))
    assert back.shape == (*shape, 1)
    assert (back == 1).all(), "nothing of the frame is in the answer"


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """Return a folder of pictures of several sizes, whose masks are a bright square in each."""
    rng = np.random.default_rng(0)
    sizes = [(70, 100), (40, 40), (33, 150), (20, 24), (64, 96), (96, 64), (50, 50)]
    masks = [square(rng, *size, 12) for size in sizes]
    pairs = [(rng.integers(0, 120, (*mask.shape, 3), np.uint8) + 120 * mask[..., None], mask) for mask in masks]
    root = write_pairs(tmp_path_factory.mktemp("set") / "sizes", pairs)
    for split, names in (("train", "0 1 2 3 4"), ("val", "5"), ("test", "6")):
        (root / f"{split}.txt").write_text("\n".join(names.split()))
    return root


def data_of(root, *overrides: str):
    """Return the loaders of the folder in crops of 32 pixels."""
    given = ["data=folder", f"data.root={root}", "data.crop=32", "data.workers=0", "data.batch_size=3", *overrides]
    return prepared(compose("train", Train, given).data.model_dump())


@pytest.mark.parametrize("check", ["full", "none"])
def test_an_epoch_has_as_many_crops_of_a_picture_as_its_area_holds(sizes, check):
    data = data_of(sizes, f"data.check={check}")
    assert data._crops_of("train").tolist() == [7, 2, 5, 1, 6]
    assert data.batches_of("train", 1) == len(data.train_dataloader()) == 7
    shown = torch.cat([batch.indices for batch in data.train_dataloader()])
    assert np.bincount(shown).tolist() == [7, 2, 5, 1, 6]
    assert data_of(sizes, "data.crops=2").examples_of("train") == 10


def test_crops_differ_within_an_epoch_and_between_epochs(sizes):
    loader = data_of(sizes, "data.augment=false").train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([image.numpy().tobytes() for batch in loader for image in batch.images])
    assert len({*epochs[0], *epochs[1]}) > 35


@pytest.mark.parametrize(("cache", "workers"), [("ram", 0), ("disk", 0), ("ram", 2)])
def test_with_a_cache_and_with_workers_the_crops_are_the_same(sizes, cache, workers):
    plain = [*data_of(sizes, "data.cache=none").train_dataloader()]
    kept = [*data_of(sizes, f"data.cache={cache}", f"data.workers={workers}").train_dataloader()]
    assert all(
        torch.equal(a, b) for one, other in zip(plain, kept, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_ranks_share_the_crops_of_an_epoch(sizes):
    data = data_of(sizes)
    positions = [list(data.train_dataloader().sampler)]
    for rank in range(2):
        sampler = data.train_dataloader().sampler
        sampler.rank, sampler.ranks = rank, 2
        positions.append([position for _, position in sampler])
    assert not set(positions[1]) & set(positions[2])
    assert len(positions[1]) == len(positions[2]) == len(positions[0]) // 2


@pytest.mark.parametrize("scale", [1, 0.5])
def test_validation_and_test_are_of_whole_pictures_at_their_own_size(sizes, scale):
    data = data_of(sizes, f"data.scale={scale}")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            own = np.asarray(Image.open(sizes / f"masks/{loader.dataset.examples[int(batch.indices)].name}.png"))
            assert np.array_equal(batch.masks[0].numpy(), own)
            assert batch.images.shape == (1, 3, *(round(length * scale) for length in own.shape))


def run_of(tmp_path, *overrides: str):
    """Train for an epoch on crops of drawn animals, and return the run."""
    import unetseg

    return unetseg.train(*TINY, *CROPS, "trainer.max_epochs=1", f"output={tmp_path}", "name=run", *overrides)


@pytest.mark.parametrize("scale", [1, 0.6])
def test_scores_are_those_of_the_masks_that_prediction_gives(tmp_path, scale):
    """Training's test, evaluate and load see a picture in the same way: the counts are equal to the pixel."""
    import pandas as pd

    import unetseg

    run = run_of(tmp_path, f"data.scale={scale}", "data.test_images=6", "trainer.precision=32-true")
    model = unetseg.load(run.folder)
    assert model.view.crop == 32
    collection = prepared(json.loads(json.dumps(run.config["data"])), test_split="test").collection
    scores = []
    for example in collection.splits["test"]:
        mask, truth = model(example.image), np.isin(np.asarray(Image.open(example.mask)), [1, 3])
        assert mask.shape == truth.shape
        union = (mask | truth).sum()
        scores.append((mask & truth).sum() / union if union else 1.0)
    tested = pd.read_csv(run.folder / "per_image.csv")
    assert tested.iou.to_numpy() == pytest.approx(scores, abs=2e-3)
    again = unetseg.evaluate(checkpoint=str(run.folder), accelerator="cpu")
    assert again.summary["test/iou"] == pytest.approx(run.summary["test/iou"], abs=2e-3)  # evaluated in bfloat16
    assert run.summary["size"] == 32
