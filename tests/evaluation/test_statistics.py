"""Statistics: the interval holds the truth as often as it says, its p agrees with it, and several are corrected."""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from unetseg.evaluation.statistics import compare, holm, interval, resampled_sums

SCRIPT = ROOT / "scripts/coverage.py"


def scores(seeds=3, images=174, seed=0):
    """Return the scores of two settings, SxN in 0..1."""
    return np.random.default_rng(seed).random((2, seeds, images))


def sweeps(number, seeds, images, of_seeds, of_images, of_rest, skewed=False, seed=0):
    """Yield differences of two settings, SxN, with mean 0 and effects of the given deviations."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        image = generator.exponential(size=images) - 1 if skewed else generator.standard_normal(images)
        rest = generator.standard_normal((seeds, images))
        yield of_seeds * generator.standard_normal((seeds, 1)) + of_images * image + of_rest * rest


def of(differences):
    """Return the comparison of two settings that differ by SxN."""
    return compare(differences, np.zeros_like(differences))


def close(result, other, **tolerances):
    assert dataclasses.astuple(result) == pytest.approx(dataclasses.astuple(other), **tolerances)


def agrees(result, reference):
    """Compare with one of scipy's t tests."""
    found = reference.confidence_interval(0.95)
    assert (result.low, result.high, result.p) == pytest.approx((found.low, found.high, reference.pvalue))


# What is computed


def test_two_seeds_on_two_images_by_hand():
    """Seeds' means 0.2 and 0.4, images' means too, no rest: both mean squares are 2 * 0.02, and both t's are t_1."""
    result = compare([[0.6, 0.8], [0.8, 1.0]], [[0.5, 0.5], [0.5, 0.5]])
    error = math.sqrt((0.04 + 0.04) / 4)
    assert (result.seeds, result.images) == (2, 2)
    assert result.difference == pytest.approx(0.3)
    assert (result.high - 0.3, 0.3 - result.low) == pytest.approx((12.7062 * error, 12.7062 * error), rel=1e-5)
    assert result.p == pytest.approx(1 - 2 / math.pi * math.atan(0.3 / error))  # t_1 is Cauchy's distribution
    assert result.smallest == pytest.approx((12.7062 + 1.3764) * error, rel=1e-4)  # of 95 % and of 80 % power


def test_the_tail_is_the_mean_of_the_seeds_and_the_images_tail():
    """Seeds -1, 0, 1 and five images -2..2, no rest: mean squares 5 * 1 and 3 * 2.5, so the weights are 0.4 and 0.6."""
    result = of(1.0 + np.array([[-1], [0], [1]]) + np.array([-2, -1, 0, 1, 2]))
    t = 1 / math.sqrt(12.5 / 15)
    assert result.p == pytest.approx(2 * (0.4 * stats.t.sf(t, 2) + 0.6 * stats.t.sf(t, 4)))


def test_one_seed_is_the_paired_t_test_over_images():
    a, b = scores(seeds=1)
    agrees(compare(a, b), stats.ttest_rel(a[0], b[0]))


def test_images_that_do_not_matter_leave_the_t_test_over_seeds():
    of_seeds = np.array([[0.02], [0.05], [0.03]])
    agrees(of(of_seeds.repeat(50, axis=1)), stats.ttest_1samp(of_seeds[:, 0], 0))


def test_seeds_that_do_not_matter_leave_the_t_test_over_images():
    of_images = np.random.default_rng(0).standard_normal((1, 50))
    agrees(of(of_images.repeat(3, axis=0)), stats.ttest_1samp(of_images[0], 0))


@pytest.mark.parametrize("deviations", [(0.02, 0.05, 0.05), (0.05, 0.02, 0.05), (0.03, 0.05, 0.0)])
def test_the_error_is_the_spread_of_the_mean_over_repeated_sweeps(deviations):
    """Of 12 seeds and 12 images both t's have 11 degrees of freedom, so that the interval's half is t_11 errors."""
    results = [of(differences) for differences in sweeps(4000, 12, 12, *deviations)]
    errors = np.array([result.high - result.low for result in results]) / 2 / stats.t.isf(0.025, 11)
    spread = np.var([result.difference for result in results])
    assert (errors**2).mean() == pytest.approx(spread, rel=0.06)  # 4,000 sweeps know a variance to +-4.5 %


# What it promises


@pytest.mark.parametrize(
    "design",
    [
        {"of_seeds": 0.015, "of_images": 0.1, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_images": 0.1, "of_rest": 0.1, "skewed": True},
        {"of_seeds": 0.03, "of_images": 0.05, "of_rest": 0.05},
        {"of_seeds": 0.005, "of_images": 0.15, "of_rest": 0.05},
        {"of_seeds": 0.0, "of_images": 0.1, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_images": 0.0, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_images": 0.1, "of_rest": 0.0},
    ],
    ids=str,
)
def test_the_interval_holds_the_truth_in_95_of_100_sweeps(design):
    results = [of(differences) for differences in sweeps(1000, 3, 174, **design)]
    assert 0.93 <= np.mean([result.low <= 0 <= result.high for result in results]) <= 0.97


def test_three_equal_settings_raise_a_false_alarm_in_5_of_100_sweeps_at_most():
    drawn = sweeps(3000, 3, 174, 0.015 / math.sqrt(2), 0.1 / math.sqrt(2), 0.1 / math.sqrt(2))
    alarms = []
    for settings in zip(
        drawn, drawn, drawn, strict=True
    ):  # three at a time, of which any two differ by (0.015, 0.1, 0.1)
        alarms.append(min(holm([compare(a, b).p for a, b in itertools.combinations(settings, 2)])) < 0.05)
    assert len(alarms) == 1000
    assert np.mean(alarms) <= 0.05


def test_a_difference_of_the_smallest_size_is_shown_in_80_of_100_sweeps():
    results = [of(differences) for differences in sweeps(2000, 10, 174, 0.02, 0.1, 0.1)]
    smallest = np.mean([result.smallest for result in results])
    assert np.mean([not result.low <= -smallest <= result.high for result in results]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_0_out(seeds):
    a, b = scores(seeds)
    middle = compare(a, b)
    at_the_end = compare(a - middle.low, b)
    assert at_the_end.p == pytest.approx(0.05)
    assert compare(a - middle.low + 1e-6, b).p < 0.05 < compare(a - middle.low - 1e-6, b).p


# What leaves it alone


def test_swapped_settings_flip_the_sign():
    a, b = scores()
    one, other = compare(a, b), compare(b, a)
    flipped = {"difference": -one.difference, "low": -one.high, "high": -one.low}
    close(other, dataclasses.replace(one, **flipped))


def test_the_order_of_seeds_and_of_images_changes_nothing():
    a, b = scores()
    images = np.random.default_rng(1).permutation(a.shape[1])
    close(compare(a[::-1, images], b[::-1, images]), compare(a, b))


def test_what_all_settings_share_changes_nothing():
    a, b = scores()
    hard = np.random.default_rng(1).standard_normal((1, a.shape[1]))
    close(compare(a + hard, b + hard), compare(a, b))


def test_equal_scores_show_no_difference():
    a, _ = scores()
    assert dataclasses.astuple(compare(a, a)) == (0, 0, 0, 1, 0, 3, 174)


def test_a_difference_without_any_spread_is_certain():
    assert dataclasses.astuple(compare(np.full((3, 4), 0.75), np.full((3, 4), 0.5))) == (0.25, 0.25, 0.25, 0, 0, 3, 4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((3, 5)), np.ones((3, 4)), r"\(3, 5\) and \(3, 4\).* can't be paired"),
        (np.ones(5), np.ones(5), r"shape \(5,\).*seeds x images"),
        (np.ones((0, 5)), np.ones((0, 5)), "at least 1 seed"),
        (np.ones((3, 1)), np.ones((3, 1)), "2 images"),
        (np.array([[0.5, np.nan]]), np.array([[np.inf, 0.5]]), "2 of 4 scores are not finite"),
    ],
)
def test_scores_that_can_not_be_compared_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


# Holm


def test_holm_by_hand():
    # the smallest times 3, the next times 2, the last times 1 but no smaller than the one before it
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """The procedure as Holm wrote it: from the smallest p on, reject while p <= level / (how many are left)."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        p_values = generator.random(generator.integers(1, 8)) ** 3
        p_values = np.round(p_values, 2)  # so that some are equal
        level = generator.random()
        rejected = set()
        for left, index in zip(range(len(p_values), 0, -1), np.argsort(p_values), strict=True):
            if p_values[index] > level / left:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


# The bootstrap of sums


def test_resampled_sums_are_sums_of_whole_rows():
    sums = resampled_sums(np.array([[1, 10], [2, 20], [4, 40]]), draws=200)
    assert sums.shape == (200, 2)
    np.testing.assert_array_equal(sums[:, 1], 10 * sums[:, 0])
    assert set(sums[:, 0]) == {3, 4, 5, 6, 7, 8, 9, 10, 12}  # all that three of 1, 2 and 4 can sum to


def test_the_interval_of_draws_leaves_out_their_outer_five_percent():
    low, high = interval(np.arange(1001)[:, None] * [1, 2])
    np.testing.assert_allclose((low, high), ([25, 50], [975, 1950]))


def test_the_script_that_counts_coverage_prints_its_table():
    found = subprocess.run([sys.executable, SCRIPT, "--sweeps", "2"], capture_output=True, text=True, check=True)
    assert "| 3 | 174 | 0.015 | 0.1 | 0.1 |" in found.stdout
