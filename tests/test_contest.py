"""The contest's scores, by plain loops: they must know neither our metrics nor another library's."""

import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy import stats

from unetseg.evaluation.statistics import compare

sys.path.insert(0, str(ROOT / "scripts/contest"))
contest, run, page = (importlib.import_module(name) for name in ("score", "run", "page"))


def slow_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask from which a square of `width` to each side reaches out of it, pixel by pixel."""
    found = np.zeros_like(mask)
    height, across = mask.shape
    for row in range(height):
        for column in range(across):
            around = [
                0 <= y < height and 0 <= x < across and mask[y, x]
                for y in range(row - width, row + width + 1)
                for x in range(column - width, column + width + 1)
            ]
            found[row, column] = mask[row, column] and not all(around)
    return found


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_band_is_what_a_square_reaches_out_of(width):
    mask = np.random.default_rng(0).random((14, 17)) < 0.9
    mask[:6, :8] = True
    assert np.array_equal(contest.band(mask, width), slow_band(mask, width))


def test_counts_are_those_of_loops_and_leave_out_ignored_pixels():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 3, (2, 12, 15)).astype(np.uint8)
    truth[3:6, 4:9] = 255
    for label, row in zip((0, 1, 2), contest.counts(truth, predicted, [0, 1, 2]), strict=True):
        known = truth != 255
        filled = np.where(known, truth, predicted)
        bands = slow_band(filled == label, 1), slow_band(predicted == label, 1)
        pairs = [(filled == label, predicted == label), bands]
        assert row == [f(a[known], b[known]).sum() for a, b in pairs for f in (np.logical_and, np.logical_or)]


def test_the_score_of_files_is_the_mean_over_classes_that_occur(tmp_path):
    truth = np.zeros((10, 10), np.uint8)
    truth[:5], predicted = 1, np.zeros((10, 10), np.uint8)
    predicted[:4] = 1
    for part, mask in (("truth", truth), ("predicted", predicted)):
        (tmp_path / part).mkdir()
        Image.fromarray(mask).save(tmp_path / part / "a.png")
    two = contest.score(tmp_path / "truth", tmp_path / "predicted", ["a"], 2)
    three = contest.score(tmp_path / "truth", tmp_path / "predicted", ["a"], 3)
    assert two["iou"] == two["iou_per_image"] == pytest.approx(0.8)
    assert three["iou"] == pytest.approx((50 / 60 + 40 / 50) / 2)
    rows = np.array([[[1, 2, 0, 3], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]], [[1, 4, 1, 2], [3, 4, 1, 1]]])
    by_picture = contest.by_picture(rows)
    np.testing.assert_allclose(by_picture["iou"], [0.5, np.nan, 0.5])
    np.testing.assert_allclose(by_picture["boundary_iou"], [0, np.nan, 0.75])


def test_the_table_tells_means_and_intervals_of_the_difference_from_ours_paired_within_a_training(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "KEPT", tmp_path / "scores.jsonl")
    assert run.kept() == {}
    values = {"ours": [0.86, 0.87, 0.85], "example": [0.84, 0.83, 0.86], "best": [0.85, 0.865, 0.84]}
    values["tuned"] = [0.5, 0.51, 0.5]
    lines = [
        {"set": "pets", "recipe": recipe, "seed": seed, "size": 128, "epochs": 10, "precision": "bf16-mixed"}
        | dict.fromkeys(run.SCORES, value)
        | {"pictures": {"iou": [value, value - 0.1, value + 0.1], "boundary_iou": [value / 2, value, 0.5]}}
        for recipe, own in values.items()
        for seed, value in enumerate(own)
    ]
    others = {**lines[0], "size": 64, "iou": 0.1}, {**lines[0], "precision": "32-true", "iou": 0.1}
    run.KEPT.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, *others]))
    assert len(run.kept()) == 14
    found = page.scores(128, "bf16-mixed")
    table = page.table(found, {"ours", "example"}).splitlines()
    assert "| pets | ours | 3 | 0.860 | 0.860 | 0.860 |" in table
    low, high = stats.ttest_ind(values["example"], values["ours"], equal_var=False).confidence_interval()
    assert f"| pets | example | 3 | 0.843 (-0.017 [{low:+.3f}, {high:+.3f}])".replace("-", "\N{MINUS SIGN}") in table[2]
    paired = stats.ttest_rel(values["best"], values["ours"]).confidence_interval()
    assert f"(-0.008 [{paired.low:+.3f}, {paired.high:+.3f}])".replace("-", "\N{MINUS SIGN}") in page.table(
        found, {"best"}
    )
    shown = page.table(found, {"ours", "example", "tuned"}).splitlines()
    marks = [line.count("**") for line in shown if "| pets |" in line]
    assert marks == [0, 0, 6], "of example, ours and tuned; a score that is shown has two"
    further = page.further_pictures(found).splitlines()
    own, base = (np.array(values[recipe])[:, None] + [0, -0.1, 0.1] for recipe in ("example", "ours"))
    test = compare(own, base)
    assert f"| pets | example | 3 | 3 | {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]" in further[
        2
    ].replace(page.MINUS, "-")
    page.draw(found, tmp_path / "contest.png")
    assert Image.open(tmp_path / "contest.png").size[0] > 300


def test_a_shrunk_set_has_our_pictures_and_the_corners_of_the_masks_cells(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    mask = np.arange(600, dtype=np.uint8).reshape(20, 30) % 7
    run.prepare(tmp_path / "own", iter([("test", "a", picture, mask)]))
    small = run.shrunk(tmp_path / "own", 10)
    assert (small / "test.txt").read_text() == "a\n"
    assert np.array_equal(np.array(Image.open(small / "masks/a.png")), mask[::2, ::3])
    ours = np.array(picture, float).reshape(10, 2, 10, 3, 3).mean((1, 3))
    assert np.abs(np.array(Image.open(small / "test/a.png")) - ours).max() <= 0.5
