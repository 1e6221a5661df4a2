"""HD95 and NSD: hand-computed, compared with all pairs of surface points and, where it is installed, with MONAI."""

import warnings

import numpy as np
import pytest
import torch
from test_metrics import blobs

from unetseg.evaluation.surfaces import means_over_classes, set_scores, surface, surface_scores, surface_table
from unetseg.names import IGNORE

HD95, NSD = 0, 1


def slow_surface(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the points of a mask, HxW booleans, one of whose four neighbours is no point of it."""
    points = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    beside = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return sorted(p for p in points if any((p[0] + y, p[1] + x) not in points for y, x in beside))


def slow_scores(predicted: np.ndarray, target: np.ndarray, label: int, tolerance: float) -> tuple[float, float]:
    """Return HD95 and NSD of one class by the distances of all pairs of points."""
    filled = np.where(target == IGNORE, predicted, target)
    surfaces = [slow_surface(labels == label) for labels in (predicted, filled)]
    nearest: list[list[float]] = []
    for own, other in (surfaces, surfaces[::-1]):
        counted = [point for point in own if target[point] != IGNORE]
        nearest.append([min([np.hypot(y - v, x - w) for v, w in other], default=np.inf) for y, x in counted])
    every = nearest[0] + nearest[1]
    if not every:
        return np.nan, np.nan
    if np.isinf(every).any():
        return np.inf, 0.0
    return max(np.percentile(one, 95) for one in nearest if one), np.mean([d <= tolerance for d in every])


def square(top: int, left: int, side: int = 4, size: int = 16) -> torch.Tensor:
    """Return 1xSxS with a square of class 1."""
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[0, top : top + side, left : left + side] = 1
    return mask


def test_a_surface_has_the_pixels_beside_another_class_and_at_the_border():
    mask = np.ones((4, 5), bool)
    mask[3, 4] = False
    expected = mask.copy()
    expected[1:3, 1:4] = False
    assert np.array_equal(surface(mask), expected)


def test_a_square_that_is_three_pixels_off():
    """Of each surface's 12 pixels 4 are on the other one, 2 are 1 away, 2 are 2 away, 4 are 3 away."""
    assert surface_scores(square(5, 8), square(5, 5), 2, tolerance=1)[0, 1].tolist() == [3, 0.5]
    assert surface_scores(square(5, 8), square(5, 5), 2, tolerance=3)[0, 1, NSD] == 1


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("tolerance", [0, 1.5, 3])
def test_scores_equal_those_of_all_pairs_of_points(classes, tolerance):
    predicted, target = (blobs(seed, images=3, size=26, classes=classes, smooth=3) for seed in (0, 1))
    target[:, 10:13, 4:] = IGNORE
    predicted[2], target[2] = 0, 1  # classes that one of the masks lacks, or both
    found = surface_scores(predicted, target, classes, tolerance)
    for image, label in np.ndindex(3, classes):
        expected = slow_scores(predicted[image].numpy(), target[image].numpy(), label, tolerance)
        np.testing.assert_allclose(found[image, label], expected, rtol=1e-12, err_msg=f"{image}, {label}")


@pytest.mark.parametrize("tolerance", [0, 2, 4.5])
def test_scores_equal_monais(tolerance):
    metrics = pytest.importorskip("monai.metrics")
    predicted, target = (blobs(seed, images=3, size=64, classes=4) for seed in (0, 1))
    predicted[2][predicted[2] == 3] = 2
    predicted[1][predicted[1] == 0], target[1][target[1] == 0] = 1, 1
    one_hot = [torch.nn.functional.one_hot(m.long(), 4).permute(0, 3, 1, 2) for m in (predicted, target)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes that are missing
        hd95 = metrics.compute_hausdorff_distance(*one_hot, include_background=True, percentile=95)
        nsd = metrics.compute_surface_dice(*one_hot, [tolerance] * 4, include_background=True)
    found = surface_scores(predicted, target, 4, tolerance)
    np.testing.assert_allclose(found[..., NSD], nsd, rtol=1e-6)
    # of distances that are all inf, numpy's percentile is nan: MONAI's maximum is of that, and of inf
    both = np.isfinite(found[..., HD95])
    np.testing.assert_allclose(found[..., HD95][both], hd95.numpy()[both], rtol=1e-6)
    assert np.isfinite(hd95.numpy()).sum() == both.sum() == 10


def test_a_class_that_one_mask_lacks_is_infinitely_far_and_one_that_both_lack_has_no_score():
    empty = torch.zeros_like(square(0, 0))
    for masks in ((empty, square(3, 3)), (square(3, 3), empty)):
        found = surface_scores(*masks, 3)[0]
        assert found[1].tolist() == [np.inf, 0]
        assert np.isnan(found[2]).all()


def test_ignored_pixels_are_as_they_were_predicted_and_are_not_counted():
    predicted, target = square(3, 3, side=8), square(3, 3, side=8)
    target[:, :, 7:] = IGNORE
    assert surface_scores(predicted, target, 2)[0, 1].tolist() == [0, 1]
    longer = square(3, 3, side=8)
    longer[0, 3:11, 11:14] = 1  # only where nothing is known
    assert surface_scores(longer, target, 2)[0, 1].tolist() == [0, 1]
    target[:] = IGNORE
    assert np.isnan(surface_scores(predicted, target, 2)).all()


def test_means_say_of_how_many_images_they_are_and_leave_out_what_has_no_distance():
    scores = np.array(
        [
            [[1.0, 0.9], [4.0, 0.5], [np.nan, np.nan]],
            [[3.0, 0.7], [np.inf, 0.0], [np.nan, np.nan]],
        ]
    )
    table = surface_table(scores)
    assert table.hd95.tolist()[:2] == [2, 4]
    assert table.nsd.tolist()[:2] == [0.8, 0.25]
    assert table.loc[2, ["hd95", "nsd"]].isna().all()
    assert table.hd95_images.tolist() == [2, 1, 0]
    assert table.nsd_images.tolist() == [2, 2, 0]
    np.testing.assert_allclose(means_over_classes(scores), [[2.5, 0.7], [3, 0.35]])
    np.testing.assert_allclose(means_over_classes(scores[:, :2]), [[4, 0.5], [np.nan, 0]])
    assert set_scores(scores) == pytest.approx({"hd95": 3, "hd95_images": 2, "nsd": 0.525, "nsd_images": 2})
    assert set_scores(scores[:, :2]) == pytest.approx({"hd95": 4, "hd95_images": 1, "nsd": 0.25, "nsd_images": 2})
