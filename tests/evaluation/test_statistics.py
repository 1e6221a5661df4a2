"""Statistics: the interval holds the truth as often as it says, its p agrees with it, and several are corrected."""

import contextlib
import dataclasses
import io
import itertools
import math
import runpy

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from unetseg.evaluation.statistics import (
    Components,
    compare,
    components,
    group_means,
    holm,
    holm_levels,
    interval,
    mean_squares,
    pooled_seeds,
    rates_with_interval,
    resampled_sums,
    seed_interval,
    seeds_needed,
    spread_of,
    sum_by_unit,
)

SCRIPT = ROOT / "scripts/coverage.py"


def scores(seeds=3, units=174, seed=0):
    """Return the scores of two settings, SxN in 0..1."""
    return np.random.default_rng(seed).random((2, seeds, units))


def sweeps(number, seeds, units, of_seeds, of_units, of_rest, skewed=False, seed=0):
    """Return differences of two settings, RxSxN, with mean 0 and effects of the given deviations."""
    generator = np.random.default_rng(seed)
    unit = (number, 1, units)
    unit = generator.exponential(size=unit) - 1 if skewed else generator.standard_normal(unit)
    rest = generator.standard_normal((number, seeds, units))
    return of_seeds * generator.standard_normal((number, seeds, 1)) + of_units * unit + of_rest * rest


def holds(differences, truth=0.0, level=0.05):
    """Return which of RxSxN sweeps have an interval that holds the truth."""
    return np.abs(differences.mean((-2, -1)) - truth) <= spread_of(differences).half_width(level)


def of(differences):
    """Return the comparison of two settings that differ by SxN."""
    return compare(differences, np.zeros_like(differences))


def values(result):
    """Return what a comparison says, without the spread behind it."""
    return tuple(getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "spread")


def close(result, other):
    assert values(result) == pytest.approx(values(other))


def agrees(result, reference):
    """Compare with one of scipy's t tests."""
    found = reference.confidence_interval(0.95)
    assert (result.low, result.high, result.p) == pytest.approx((found.low, found.high, reference.pvalue))


# What is computed


def test_two_seeds_on_two_units_by_hand():
    """Seeds' means 0.2 and 0.4, units' means too, no rest: both mean squares are 2 * 0.02, and both t's are t_1."""
    result = compare([[0.6, 0.8], [0.8, 1.0]], [[0.5, 0.5], [0.5, 0.5]])
    error = math.sqrt((0.04 + 0.04) / 4)
    assert (result.seeds, result.units) == (2, 2)
    assert result.difference == pytest.approx(0.3)
    assert (result.high - 0.3, 0.3 - result.low) == pytest.approx((12.7062 * error, 12.7062 * error), rel=1e-5)
    assert result.p == pytest.approx(1 - 2 / math.pi * math.atan(0.3 / error))  # t_1 is Cauchy's distribution


def test_the_critical_value_is_the_mean_of_the_seeds_and_the_units():
    """Seeds -1, 0, 1 and five units -2..2, no rest: mean squares 5 * 1 and 3 * 2.5, so the weights are 0.4 and 0.6."""
    result = of(1.0 + np.array([[-1], [0], [1]]) + np.array([-2, -1, 0, 1, 2]))
    critical = 0.4 * stats.t.isf(0.025, 2) + 0.6 * stats.t.isf(0.025, 4)
    assert result.high - 1 == pytest.approx(critical * math.sqrt(12.5 / 15))


def test_where_seeds_agree_by_luck_the_interval_is_the_one_over_units():
    """Rows that sum to 0 and columns that don't: the seeds' means are equal, which among three is luck."""
    rest = np.array([[1, -1, 2, -2], [2, -2, -1, 1], [1, -1, -1, 1]])
    result = of(0.5 + rest)
    agrees(result, stats.ttest_1samp((0.5 + rest).mean(0), 0))


def test_one_seed_has_the_interval_of_the_paired_t_test_over_units_and_no_p():
    a, b = scores(seeds=1)
    result, reference = compare(a, b), stats.ttest_rel(a[0], b[0])
    assert math.isnan(result.p)
    agrees(dataclasses.replace(result, p=reference.pvalue), reference)


def test_units_that_do_not_matter_leave_the_t_test_over_seeds():
    of_seeds = np.array([[0.02], [0.05], [0.03]])
    agrees(of(of_seeds.repeat(50, axis=1)), stats.ttest_1samp(of_seeds[:, 0], 0))


def test_seeds_that_do_not_matter_leave_the_t_test_over_units():
    of_units = np.random.default_rng(0).standard_normal((1, 50))
    agrees(of(of_units.repeat(3, axis=0)), stats.ttest_1samp(of_units[0], 0))


def test_mean_squares_are_those_of_a_slow_loop():
    differences = sweeps(1, 3, 7, 0.1, 0.2, 0.3)[0]
    mean = differences.mean()
    seeds = sum((differences[s].mean() - mean) ** 2 for s in range(3)) * 7 / 2
    units = sum((differences[:, i].mean() - mean) ** 2 for i in range(7)) * 3 / 6
    rest = sum(
        (differences[s, i] - differences[s].mean() - differences[:, i].mean() + mean) ** 2
        for s, i in itertools.product(range(3), range(7))
    )
    assert mean_squares(differences) == pytest.approx((seeds, units, rest / 12))


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_variances_are_those_of_statsmodels_mixed_model():
    """Crossed random effects by restricted likelihood: in a balanced layout the analysis of variance."""
    from statsmodels.regression.mixed_linear_model import MixedLM  # seconds

    differences = 0.02 + sweeps(1, 4, 12, 0.05, 0.08, 0.03)[0]
    seed, unit = (index.ravel() for index in np.indices(differences.shape))
    table = pd.DataFrame({"difference": differences.ravel(), "seed": seed, "unit": unit, "all": 1})
    effects = {"seed": "0 + C(seed)", "unit": "0 + C(unit)"}
    model = MixedLM.from_formula("difference ~ 1", table, groups="all", re_formula="0", vc_formula=effects)
    fitted = model.fit(reml=True)
    found = components(differences)
    assert dict(zip(model.exog_vc.names, fitted.vcomp, strict=True)) == pytest.approx(
        {"seed": found.seeds, "unit": found.units}, rel=1e-3
    )
    assert fitted.scale == pytest.approx(found.rest, rel=1e-3)
    spread = spread_of(differences)
    assert fitted.bse["Intercept"] == pytest.approx(math.sqrt(spread.seeds + spread.units), rel=1e-3)
    assert fitted.params["Intercept"] == pytest.approx(of(differences).difference)


@pytest.mark.parametrize("deviations", [(0.02, 0.05, 0.05), (0.05, 0.02, 0.05), (0.03, 0.05, 0.0)])
def test_the_error_is_the_spread_of_the_mean_over_repeated_sweeps(deviations):
    drawn = sweeps(4000, 12, 12, *deviations)
    spread = spread_of(drawn)
    expected = np.var(drawn.mean((1, 2)))
    assert (spread.seeds + spread.units).mean() == pytest.approx(expected, rel=0.06)  # known to +-4.5 %


# What it promises


@pytest.mark.parametrize(
    "design",
    [
        {"of_seeds": 0.015, "of_units": 0.1, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_units": 0.1, "of_rest": 0.1, "skewed": True},
        {"of_seeds": 0.03, "of_units": 0.05, "of_rest": 0.05},
        {"of_seeds": 0.005, "of_units": 0.15, "of_rest": 0.05},
        {"of_seeds": 0.0, "of_units": 0.1, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_units": 0.0, "of_rest": 0.1},
        {"of_seeds": 0.015, "of_units": 0.1, "of_rest": 0.0},
    ],
    ids=str,
)
def test_the_interval_holds_the_truth_in_95_of_100_sweeps(design):
    assert 0.94 <= holds(sweeps(2000, 3, 174, **design)).mean() <= 0.985


def test_no_interval_is_narrower_than_that_over_the_units_and_no_p_smaller():
    for differences in 0.01 + sweeps(300, 3, 50, 0.001, 0.05, 0.05):
        found, over_units = of(differences), stats.ttest_1samp(differences.mean(0), 0)
        ends = over_units.confidence_interval(0.95)
        assert found.low <= ends.low + 1e-12
        assert found.high >= ends.high - 1e-12
        assert found.p >= over_units.pvalue * (1 - 1e-6)


def test_three_equal_settings_raise_a_false_alarm_in_5_of_100_sweeps_at_most():
    settings = sweeps(3000, 3, 174, 0.015 / math.sqrt(2), 0.1 / math.sqrt(2), 0.1 / math.sqrt(2)).reshape(-1, 3, 3, 174)
    pairs = itertools.combinations(range(3), 2)
    alarms = np.any([~holds(settings[:, a] - settings[:, b], level=0.05 / 3) for a, b in pairs], axis=0)
    assert len(alarms) == 1000
    assert alarms.mean() <= 0.05


def test_a_group_that_is_counted_as_forty_units_covers_far_too_little():
    member = np.repeat(np.arange(20), 40)
    groups = 0.05 * np.random.default_rng(1).standard_normal((500, 1, 20))
    drawn = sweeps(500, 3, 800, 0.002, 0.1, 0.1) + groups[..., member]
    assert holds(drawn).mean() < 0.75
    assert 0.93 <= holds(group_means(drawn, member.tolist())).mean() <= 0.985


@pytest.mark.parametrize(("seeds", "level"), [(3, 0.05), (3, 0.05 / 6), (10, 0.05)])
def test_the_smallest_difference_is_shown_in_80_of_100_sweeps(seeds, level):
    deviations = (0.02, 0.1, 0.1)
    true = Components(*(deviation**2 for deviation in deviations)).spread(seeds, 174).smallest(level).value
    drawn = sweeps(3000, seeds, 174, *deviations)
    assert np.mean(~holds(drawn, -true, level)) == pytest.approx(0.8, abs=0.035)
    estimates = [spread_of(differences).smallest(level) for differences in drawn[:400]]
    assert np.mean([one.low <= true <= one.high for one in estimates]) >= 0.92


def test_the_smallest_difference_is_never_below_one_that_was_not_shown():
    for differences in 0.02 + sweeps(200, 3, 50, 0.01, 0.05, 0.05):
        found = of(differences)
        for level in (0.05, 0.01):
            assert found.p < level or abs(found.difference) < found.spread.smallest(level).value


def test_planned_seeds_show_the_difference():
    parts = Components(0.015**2, 0.05**2, 0.05**2)
    seeds = seeds_needed(parts, 174, 0.03, 0.05)
    assert np.mean(~holds(sweeps(3000, seeds, 174, 0.015, 0.05, 0.05), 0.03)) == pytest.approx(0.8, abs=0.06)
    assert parts.spread(seeds - 1, 174).smallest(0.05).value > 0.03
    assert seeds_needed(parts, 10, 0.01, 0.05) is None  # ten units alone leave more open than that


def test_a_pooled_variance_over_seeds_has_its_truth_and_more_degrees_of_freedom():
    generator = np.random.default_rng(0)
    drawn = [pooled_seeds(0.02 * generator.standard_normal((5, 3, 1)) + np.zeros(9)) for _ in range(4000)]
    assert np.mean([variance for variance, _ in drawn]) == pytest.approx(2 * 0.02**2, rel=0.05)
    assert {freedom for _, freedom in drawn} == {8}
    a, b = scores()
    own, both = compare(a, b), compare(a, b, pooled=pooled_seeds(np.stack([a, b])))
    close(own, both)  # of two settings it is their own


@pytest.mark.parametrize("seeds", [2, 3, 10])
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


def test_the_order_of_seeds_and_of_units_changes_nothing():
    a, b = scores()
    units = np.random.default_rng(1).permutation(a.shape[1])
    close(compare(a[::-1, units], b[::-1, units]), compare(a, b))


def test_what_all_settings_share_changes_nothing():
    a, b = scores()
    hard = np.random.default_rng(1).standard_normal((1, a.shape[1]))
    close(compare(a + hard, b + hard), compare(a, b))


def test_equal_scores_show_no_difference():
    a, _ = scores()
    assert values(compare(a, a)) == (0, 0, 0, 1, 3, 174)


def test_a_difference_without_any_spread_is_certain():
    assert values(compare(np.full((3, 4), 0.75), np.full((3, 4), 0.5))) == (0.25, 0.25, 0.25, 1e-12, 3, 4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((3, 5)), np.ones((3, 4)), r"\(3, 5\) and \(3, 4\).* can't be paired"),
        (np.ones(5), np.ones(5), r"shape \(5,\).*seeds x units"),
        (np.ones((0, 5)), np.ones((0, 5)), "at least 1 seed"),
        (np.ones((3, 1)), np.ones((3, 1)), "2 units"),
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


def test_the_level_that_holm_leaves_is_where_a_comparison_begins_to_be_shown():
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = list(generator.random(generator.integers(1, 8)) ** 3 / 5)
        for index, level in enumerate(holm_levels(p_values)):
            for own, shown in ((0.999 * level, True), (1.001 * level, False)):
                assert (holm([*p_values[:index], own, *p_values[index + 1 :]])[index] < 0.05) == shown


# Groups


def test_group_means_and_sums_by_hand():
    groups = ["b", "a", "b", "c"]
    assert group_means(np.array([[1.0, 2, 5, 7], [0, 0, 2, 1]]), groups).tolist() == [[2, 3, 7], [0, 1, 1]]
    assert sum_by_unit(np.array([[1, 10], [2, 20], [4, 40], [8, 80]]), groups).tolist() == [[2, 20], [5, 50], [8, 80]]
    assert sum_by_unit(np.array([[1, 10], [2, 20]]), ["a", "a"]).tolist() == [[1, 10], [2, 20]]


def test_images_without_a_group_are_not_put_together():
    assert sum_by_unit(np.array([1, 2, 4, 8]), ["", "a", "", "a"]).tolist() == [1, 4, 10]
    assert group_means(np.array([1.0, 2, 4, 8]), ["", "a", "", "a"]).tolist() == [1, 4, 5]


# Folds


def test_one_seed_over_folds_is_the_corrected_resampled_t_test():
    """Nadeau and Bengio 2003: the squared error is (1/K + test images / training images) s^2, with K - 1 degrees."""
    of_folds = np.array([0.02, 0.05, 0.03, -0.01, 0.04])
    result = compare(of_folds[None], np.zeros((1, 5)), folds=True)
    error = math.sqrt((1 / 5 + 1 / 4) * of_folds.var(ddof=1))
    assert result.high - result.difference == pytest.approx(stats.t.isf(0.025, 4) * error)
    assert math.isnan(result.p)  # one seed decides nothing


def test_folds_are_more_alike_than_other_units_and_their_interval_is_wider():
    differences = sweeps(1, 3, 5, 0.01, 0.05, 0.02)[0]
    folds, others = spread_of(differences, folds=True), spread_of(differences)
    assert (folds.units, folds.floor) == pytest.approx((2.25 * others.units, 2.25 * others.floor))
    assert (folds.seeds, folds.units_freedom) == (others.seeds, 4)


@pytest.mark.parametrize(("seeds", "of_folds"), [(1, 0.0), (1, 0.01), (2, 0.01), (3, 0.01)])
def test_the_interval_over_folds_holds_although_their_training_sets_are_shared(seeds, of_folds):
    design = runpy.run_path(str(SCRIPT))["Folds"](seeds, of_folds=of_folds)
    drawn = design.differences(1000, np.random.default_rng(0))
    half = spread_of(drawn.mean(-1), folds=True).half_width(0.05)
    assert (np.abs(drawn.mean((1, 2, 3))) <= half).mean() >= 0.95
    as_one_test_set = drawn.reshape(1000, seeds, -1)
    assert seeds > 1 or holds(as_one_test_set).mean() < 0.93


def test_the_training_sets_of_two_of_five_folds_have_three_of_four_parts_in_common():
    design = runpy.run_path(str(SCRIPT))["Folds"](1, of_trainings=0.0, of_folds=1.0, of_units=0.0, of_rest=0.0)
    effects = design.differences(20_000, np.random.default_rng(0))[:, 0, :, 0]
    np.testing.assert_allclose(np.cov(effects.T), np.full((5, 5), 0.75) + 0.25 * np.eye(5), atol=0.03)


# The bootstrap of sums


def test_resampled_sums_are_sums_of_whole_rows():
    sums = resampled_sums(np.array([[1, 10], [2, 20], [4, 40]]), draws=200)
    assert sums.shape == (200, 2)
    np.testing.assert_array_equal(sums[:, 1], 10 * sums[:, 0])
    assert set(sums[:, 0]) == {3, 4, 5, 6, 7, 8, 9, 10, 12}  # all that three of 1, 2 and 4 can sum to


def test_the_interval_of_draws_leaves_out_their_outer_five_percent():
    low, high = interval(np.arange(1001)[:, None] * [1, 2])
    np.testing.assert_allclose((low, high), ([25, 50], [975, 1950]))


def test_error_rates_divide_sums_and_know_nothing_of_empty_bands():
    counts = np.array([[[100, 10], [50, 50], [0, 0]], [[100, 30], [50, 0], [0, 0]]])
    rate, low, high = rates_with_interval(counts, ["", ""])
    np.testing.assert_array_equal(rate, [0.2, 0.5, np.nan])
    np.testing.assert_array_equal((low, high), ([0.1, 0, np.nan], [0.3, 1, np.nan]))  # two images: one of them twice


@pytest.mark.parametrize("table", ["coverage", "choice", "pooled", "groups", "folds", "one", "smallest"])
def test_the_script_that_counts_coverage_prints_its_tables(table):
    script = runpy.run_path(str(SCRIPT))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        script["TABLES"][table](2, 0)
    widths = {line.count("|") for line in printed.getvalue().splitlines()}
    assert len(widths) == 1
    assert "nan" not in printed.getvalue()


def test_the_interval_over_seeds_is_students():
    values = [0.883, 0.936, 0.944]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert seed_interval(values) == pytest.approx((low, high))
    assert seed_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
