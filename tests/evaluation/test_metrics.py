"""Metrics: hand-computed, compared with torchmetrics and with slow loops, and never averaged over batches."""

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex
from torchmetrics.functional.classification import binary_f1_score

from unetseg.evaluation.metrics import (
    EDGE_DISTANCES,
    SegmentationScores,
    class_table,
    confusion,
    edge_bands,
    edge_table,
    erode,
    errors_by_band,
    image_counts,
    scores,
)
from unetseg.names import IGNORE


def blobs(seed: int, images: int = 6, size: int = 48, classes: int = 2, smooth: float = 4) -> torch.Tensor:
    """Return BxSxS class maps with smooth shapes, so that boundaries mean something."""
    noise = np.random.default_rng(seed).standard_normal((images, size, size)).astype(np.float32)
    smoothed = np.stack([cv2.GaussianBlur(n, (0, 0), smooth) for n in noise])
    edges = np.quantile(smoothed, np.linspace(0, 1, classes + 1)[1:-1])
    return torch.from_numpy(np.digitize(smoothed, edges).astype(np.uint8))


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """Return the band of a HxW bool mask as the reference code of Cheng et al. does: erode by 3x3, again and again."""
    height, width = mask.shape
    rounds = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask
    for _ in range(rounds):
        shrunk = np.zeros_like(padded)
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                shrunk[y, x] = padded[y - 1 : y + 2, x - 1 : x + 2].all()
        padded = shrunk
    return mask & ~padded[1:-1, 1:-1]


def test_iou_and_dice_by_hand():
    target = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, IGNORE]]])
    predicted = torch.tensor([[[1, 0, 1, 0], [1, 1, 0, 1]]])
    result = scores(image_counts(predicted, target, 2))
    assert result["iou"].item() == pytest.approx(3 / 5)
    assert result["dice"].item() == pytest.approx(6 / 8)


def test_boundary_iou_by_hand():
    """On 4x4 the band is one pixel wide: of the full picture the frame, of the corner square all but its middle."""
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[0, :3, :3] = 1
    counts = image_counts(torch.ones(1, 4, 4, dtype=torch.uint8), target, 2)[0, 1]
    assert counts.tolist() == [9, 16, 9, 5, 12, 8]
    assert scores(torch.stack([counts, counts]))["boundary_iou"].item() == pytest.approx(5 / 15)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (30, 17)])
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_erosion_equals_opencvs(shape, radius):
    mask = np.random.default_rng(0).random(shape) > 0.05
    expected = cv2.erode(
        mask.astype(np.uint8), np.ones((3, 3)), iterations=radius, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    assert np.array_equal(erode(torch.from_numpy(mask), radius).numpy(), expected.astype(bool))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_scores_over_a_set_equal_torchmetrics(classes):
    predicted, target = blobs(0, classes=classes), blobs(1, classes=classes)
    target[:, :5] = IGNORE
    metric = SegmentationScores(classes)
    metric.update(image_counts(predicted, target, classes))
    reference = (
        BinaryJaccardIndex(ignore_index=IGNORE)
        if classes == 2
        else MulticlassJaccardIndex(classes, ignore_index=IGNORE)
    )
    assert metric.compute()["iou"].item() == pytest.approx(reference(predicted, target.long()).item(), abs=1e-6)
    if classes == 2:
        f1 = binary_f1_score(predicted, target.long(), ignore_index=IGNORE)
        assert metric.compute()["dice"].item() == pytest.approx(f1.item(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_all_scores_equal_a_slow_float64_reference(classes):
    predicted, target = blobs(2, classes=classes, images=3, size=60), blobs(3, classes=classes, images=3, size=60)
    target[:, 20:24, :] = IGNORE
    metric = SegmentationScores(classes)
    metric.update(image_counts(predicted, target, classes))
    found = metric.compute()

    counted = range(1, 2) if classes == 2 else range(classes)
    per_class, per_image = [], []
    for c in counted:
        sums = np.zeros(5)
        for p, t in zip(predicted.numpy(), target.numpy(), strict=True):
            valid = t != IGNORE
            a, b = (p == c) & valid, (t == c) & valid
            x, y = slow_boundary(p == c) & valid, slow_boundary((t == c) | ~valid) & b  # eroded first, masked then
            sums += [(a & b).sum(), (a | b).sum(), a.sum() + b.sum(), (x & y).sum(), (x | y).sum()]
        per_class.append((sums[0] / sums[1], 2 * sums[0] / sums[2], sums[3] / sums[4]))
    for p, t in zip(predicted.numpy(), target.numpy(), strict=True):
        valid = t != IGNORE
        parts = [((((p == c) & (t == c) & valid).sum()), (((p == c) | (t == c)) & valid).sum()) for c in counted]
        per_image.append(np.mean([i / u for i, u in parts if u]))
    for name, expected in zip(("iou", "dice", "boundary_iou"), np.mean(per_class, axis=0), strict=True):
        assert found[name].item() == pytest.approx(expected, abs=1e-12), name
    assert found["iou_per_image"].item() == pytest.approx(np.mean(per_image), abs=1e-12)


def test_ignored_pixels_are_no_edge_and_lift_no_boundary_iou():
    target, predicted = torch.zeros(1, 100, 100, dtype=torch.uint8), torch.zeros(1, 100, 100, dtype=torch.uint8)
    target[:, 20:80, 20:80] = 1
    predicted[:, 25:85, 25:85] = 1
    whole = scores(image_counts(predicted, target, 2))["boundary_iou"].item()
    inside = target.clone()
    inside[:, 45:55, 45:55] = IGNORE  # within the object: nothing of an edge is there
    assert scores(image_counts(predicted, inside, 2))["boundary_iou"].item() == whole
    ring = target.clone()
    ring[:, 18:82, 18:82] = IGNORE
    ring[:, 20:80, 20:80] = target[:, 20:80, 20:80]  # just outside, as Pets' boundary class is
    assert scores(image_counts(predicted, ring, 2))["boundary_iou"].item() <= whole + 0.05


def test_batches_do_not_matter():
    predicted, target = blobs(4), blobs(5)
    together, apart = SegmentationScores(2), SegmentationScores(2)
    together.update(image_counts(predicted, target, 2))
    for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
        apart.update(image_counts(predicted[part], target[part], 2))
    assert {k: v.item() for k, v in together.compute().items()} == {k: v.item() for k, v in apart.compute().items()}


def test_a_mean_over_batches_would_be_another_number():
    """The trap that this module avoids: unequal batches, unequal pictures."""
    predicted, target = blobs(4), blobs(5)
    target[0] = 0
    batches = [slice(0, 1), slice(1, 6)]
    mean = np.mean([scores(image_counts(predicted[b], target[b], 2).sum(0))["iou"].item() for b in batches])
    assert abs(mean - scores(image_counts(predicted, target, 2).sum(0))["iou"].item()) > 0.05


def test_an_image_without_foreground_scores_one_if_predicted_so_and_zero_otherwise():
    empty = torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert scores(image_counts(empty, empty, 2))["iou"].item() == 1
    assert scores(image_counts(torch.ones_like(empty), empty, 2))["iou"].item() == 0


def test_a_picture_whose_pixels_are_all_ignored_has_no_score_and_counts_in_no_mean():
    """Half of the second picture is foreground and all of it is predicted so: 1/2, and not the mean of that and 1."""
    target = torch.full((2, 8, 8), IGNORE, dtype=torch.uint8)
    target[1], target[1, 4:] = 0, 1
    counts = image_counts(torch.ones(2, 8, 8, dtype=torch.uint8), target, 2)
    for values in scores(counts).values():
        assert values.isnan().tolist() == [True, False]
    metric = SegmentationScores(2)
    metric.update(counts)
    found = metric.compute()
    assert found["iou"].item() == found["iou_per_image"].item() == 0.5


def test_without_any_counted_pixel_every_score_is_nan():
    metric = SegmentationScores(3)
    ignored = torch.full((2, 8, 8), IGNORE, dtype=torch.uint8)
    metric.update(image_counts(torch.ones_like(ignored), ignored, 3))
    assert all(value.isnan() for value in metric.compute().values())


def test_the_per_image_iou_is_smps():
    from segmentation_models_pytorch.metrics import get_stats, iou_score

    predicted, target = blobs(6), blobs(7)
    predicted[2] = target[2] = 0
    stats = get_stats(predicted.long()[:, None], target.long()[:, None], mode="binary")
    metric = SegmentationScores(2)
    metric.update(image_counts(predicted, target, 2))
    assert metric.compute()["iou"].item() == pytest.approx(iou_score(*stats, reduction="micro").item(), abs=1e-6)
    imagewise = iou_score(*stats, reduction="micro-imagewise").item()
    assert metric.compute()["iou_per_image"].item() == pytest.approx(imagewise, abs=1e-6)


def test_the_distance_to_the_edge_by_hand():
    """A row with one pixel of class 1: beside it 1, then 2, then two bands of 3-4 and 5-8; the pixel itself has 1."""
    target = torch.zeros(1, 1, 10, dtype=torch.uint8)
    target[0, 0, 2] = 1
    target[0, 0, 4] = IGNORE
    assert edge_bands(target, 2).tolist() == [[[1, 0, 0, 0, 7, 2, 2, 3, 3, 3]]]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_bands_are_those_of_scipys_chessboard_distance(classes):
    from scipy.ndimage import distance_transform_cdt

    target = blobs(1, images=4, size=240, classes=classes, smooth=40)
    target[:, :3] = IGNORE
    limits = np.array([*EDGE_DISTANCES, np.inf])
    expected = np.full(target.shape, len(EDGE_DISTANCES) + 1)
    for image, bands in zip(target.numpy(), expected, strict=True):
        for own in range(classes):
            distance = distance_transform_cdt((image == own) | (image == IGNORE), metric="chessboard")
            bands[image == own] = np.searchsorted(limits, distance[image == own])
    assert np.array_equal(edge_bands(target, classes).numpy(), expected)
    assert set(np.unique(expected)) == set(range(8))


def test_a_picture_of_one_class_has_no_edge():
    bands = edge_bands(torch.ones(1, 80, 80, dtype=torch.uint8), 2)
    assert bands.unique().tolist() == [len(EDGE_DISTANCES)]


def test_errors_are_counted_in_their_band_and_ignored_pixels_in_none():
    target, predicted = blobs(2, size=70), blobs(3, size=70)
    target[:, :, :5] = IGNORE
    bands = edge_bands(target, 2)
    counts = errors_by_band(predicted, target, bands)
    for image in range(len(target)):
        for band in range(len(EDGE_DISTANCES) + 1):
            inside = bands[image] == band
            wrong = inside & (predicted[image] != target[image])
            assert counts[image, band].tolist() == [inside.sum(), wrong.sum()]
    assert counts[..., 0].sum() == (target != IGNORE).sum()
    table = edge_table(counts.numpy(), [""] * len(counts))
    assert list(table.to_px) == [*EDGE_DISTANCES, np.inf]
    assert list(table.from_px) == [1, 2, 3, 5, 9, 17, 33]
    np.testing.assert_array_equal(table.error_rate, table.errors / table.pixels)
    assert np.isnan(table.error_rate.iloc[-1])  # no pixel is that far here


def test_scores_of_classes_and_the_confusion_matrix_agree_with_slow_counts():
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 4, (5, 20, 24)), rng.integers(0, 4, (5, 20, 24))
    target[target == 3] = 255  # class 3 is predicted, and never true
    target[0], predicted[0] = 0, 1
    counts = image_counts(torch.from_numpy(predicted), torch.from_numpy(target), 5).numpy()
    table = class_table(counts, ["a", "b", "c", "d", "e"]).set_index("class")
    for label, name in enumerate("abcd"):
        true, found = (target == label), (predicted == label) & (target != 255)
        both = (true & found).sum()
        row = table.loc[name]
        assert row.pixels == true.sum()
        assert row.images == sum(image.any() for image in true)
        assert row.iou == pytest.approx(both / (true | found).sum())
        assert row.dice == pytest.approx(2 * both / (true.sum() + found.sum()))
        assert row.precision == pytest.approx(both / found.sum())
        if true.any():
            assert row.recall == pytest.approx(both / true.sum())
    assert np.isnan(table.recall["d"]), "nothing to be found"
    assert table.loc["e", ["iou", "dice", "precision", "recall"]].isna().all(), "neither there nor predicted"
    matrix = confusion(torch.from_numpy(predicted), torch.from_numpy(target), 5)
    slow = [[((target == true) & (predicted == label)).sum() for label in range(5)] for true in range(5)]
    assert matrix.tolist() == slow
