"""The book of claims: verdicts from numbers made by hand, readings of a real run, and pages that are up to date."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.statistics import compare, seed_interval
from unetseg.options.command import sweep_of
from unetseg.options.compose import compose
from unetseg.options.schema import Ablate
from unetseg.reporting import results

sys.path.insert(0, str(ROOT / "scripts"))
cells, literature, pages, readings, summaries = (
    importlib.import_module(f"book.{name}") for name in ("cells", "literature", "pages", "readings", "summaries")
)
IOU = literature.Contrast("iou", "concat", "none")
EARLY = literature.Contrast("early_iou", "concat", "none")


def record(setting, seed, iou, early=0.5, units="4 groups ab", bench="pets"):
    scores = {"iou": iou, "boundary_iou": iou}
    about = {"bench": bench, "setting": setting, "seed": seed, "size": 64, "units": units, "minutes": 2.0}
    return about | scores | {"iou_of_the_set": float(np.mean(iou)), "foreground": 0.3, "readings": {"early_iou": early}}


def known(*records):
    return {cells.Cell(*(own[key] for key in ("bench", "setting", "seed", "size"))): own for own in records}


def claim(*contrasts):
    return replace(literature.CLAIMS[0], contrasts=contrasts)


def pair(gain, spread=0.01, seeds=3, bench="pets"):
    """Return concat and none, concat ahead by `gain`, of four groups."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.7, 4)
    made = []
    for seed in range(seeds):
        noise = rng.normal(0, spread, (2, 4))
        made += [
            record("concat", seed, [*(base + gain + noise[0])], 0.5 + gain + noise[0, 0], bench=bench),
            record("none", seed, [*(base + noise[1])], 0.5 + noise[1, 0], bench=bench),
        ]
    return made


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.1, "held"), (-0.1, "contradicted"), (0.001, "not shown")], ids=["above", "below", "near"]
)
def test_the_verdict_is_where_the_interval_lies(gain, verdict):
    asked = claim(IOU, EARLY)
    found = pages.results(asked, known(*pair(gain)))
    assert [own.verdict for own in found] == [verdict] * 2
    assert pages.verdict(asked, found) == verdict


def test_scores_are_compared_by_seed_and_unit_and_readings_by_seed():
    records = known(*pair(0.02))
    scores, early = pages.results(claim(IOU, EARLY), records)
    arrays = [
        np.array([own["iou"] for own in records.values() if own["setting"] == name]) for name in ("concat", "none")
    ]
    wanted = compare(*arrays)
    assert (scores.difference, scores.half_width) == pytest.approx((wanted.difference, wanted.high - wanted.difference))
    values = [
        np.array([own["readings"]["early_iou"] for own in records.values() if own["setting"] == name])
        for name in ("concat", "none")
    ]
    low, high = seed_interval(list(values[0] - values[1]))
    assert early.difference - early.half_width == pytest.approx(low)
    assert early.difference + early.half_width == pytest.approx(high)
    own = stats.ttest_rel(*values).pvalue
    assert sorted([scores.p, early.p]) == pytest.approx(sorted(np.minimum([wanted.p, own], 1) * 2), rel=0.5)


def test_the_p_values_are_corrected_over_all_contrasts_and_benches():
    alone = pages.results(claim(IOU), known(*pair(0.02)))[0].p
    both = pages.results(claim(IOU), known(*pair(0.02), *pair(0.0005, bench="nuclei")))
    assert [own.bench for own in both] == ["pets", "nuclei"]
    assert both[0].p == pytest.approx(min(1, 2 * alone))
    assert (
        pages.verdict(claim(IOU), [replace(own, p=p) for own, p in zip(both, (0.01, 0.5), strict=True)])
        == "held in part"
    )


def test_a_bench_with_two_seeds_changes_no_p_value_of_the_others():
    whole = known(*pair(0.02))
    alone = pages.results(claim(IOU), whole)[0]
    beside = pages.results(claim(IOU), whole | known(*pair(0.0005, seeds=2, bench="nuclei")))
    assert beside[0] == alone
    assert beside[1].verdict == "too few seeds yet"


def test_the_gain_at_the_edges_is_told_by_unit():
    """By hand: Boundary IoU less IoU of each unit, and then as any score."""
    records = known(*pair(0.1))
    for own in records.values():
        own["boundary_iou"] = [value**2 for value in own["iou"]]
    found = pages.results(claim(literature.Contrast("edge_gain", "concat", "none")), records)[0]
    arrays = [
        np.array([own["iou"] for own in records.values() if own["setting"] == name]) for name in ("concat", "none")
    ]
    wanted = compare(*(own**2 - own for own in arrays))
    assert (found.difference, found.half_width) == pytest.approx((wanted.difference, wanted.high - wanted.difference))
    assert pages.reading(found) == "Boundary IoU − IoU by breed"


def test_a_reading_that_is_no_number_is_left_out():
    records = pair(0.1)
    records[0]["readings"]["early_iou"] = None
    found = pages.results(claim(IOU, EARLY), known(*records))
    assert [own.seeds for own in found] == [3, 2]


def test_a_setting_that_has_hardly_learned_is_named_on_the_page():
    records = known(*pair(0.4))
    for without, is_told in ((0.41, False), (0.39, True)):  # a quarter of the way from 0.3 to 0.7 is 0.4
        for cell, own in records.items():
            own["iou_of_the_set"] = 0.7 if cell.setting == "concat" else without
        page = pages.page(claim(IOU), pages.results(claim(IOU), records), records)
        assert "| concat | the encoder's features beside the decoder's own: the U-Net | 0.700 |" in page
        told = "`none` has hardly learned on Pets, 64 px, where the foreground everywhere has 0.300:"
        assert (told in page) == is_told
        assert ("**Verdict: held †**" in page) == is_told
        assert page.count("held †") == (2 if is_told else 0), "in the row and as the claim's verdict"


def test_a_verdict_that_rests_on_another_bench_as_well_has_no_mark():
    records = known(*pair(0.4), *pair(0.4, bench="nuclei"))
    for cell, own in records.items():
        own["iou_of_the_set"] = 0.31 if cell.setting == "none" and cell.bench == "nuclei" else 0.7
    found = pages.results(claim(IOU), records)
    assert [pages.verdict_of(own) for own in found] == ["held", "held †"]
    assert pages.verdict(claim(IOU), found) == "held"


def test_a_page_counts_the_trainings_of_its_own_benches():
    others = [own for own in pair(0.1, bench="nuclei") if own["setting"] == "concat"]  # nothing to compare with there
    records = known(*pair(0.1), *others)
    page = pages.page(claim(IOU), pages.results(claim(IOU), records), records)
    assert "6 trainings, which other claims share; 12 minutes" in page
    assert "nuclei" not in page


def test_text_behind_a_table_without_marks_is_not_lost(tmp_path):
    overview = tmp_path / "claims.md"
    overview.write_text("before\n<!-- table -->\nthe table\nafter\n")
    with pytest.raises(ValueError, match="end of table"):
        pages.write(known(*pair(0.1)), tmp_path)
    assert overview.read_text().endswith("after\n")


def test_a_claim_may_be_held_here_and_contradicted_there():
    found = pages.results(claim(IOU), known(*pair(0.1), *pair(-0.1, bench="nuclei")))
    assert pages.verdict(claim(IOU), found) == "held in part, contradicted in part"


def test_one_seed_decides_nothing_and_two_are_too_few():
    one = pages.results(claim(IOU), known(*pair(0.1, seeds=1)))
    assert np.isnan(one[0].p)
    assert one[0].verdict == "too few seeds yet"
    assert "[" not in pages.interval(one[0])
    assert pages.verdict(claim(IOU), one) == "too few seeds yet"
    assert pages.verdict(claim(IOU), pages.results(claim(IOU), known(*pair(0.1, seeds=2)))) == "too few seeds yet"
    assert pages.verdict(claim(IOU), []) == "not measured yet"


def test_a_claim_has_no_verdict_before_all_its_contrasts_have_enough_seeds():
    asked = claim(IOU, literature.Contrast("iou", "add", "none"))
    some = known(*pair(0.1))
    assert pages.verdict(asked, pages.results(asked, some)) == "not all measured yet"
    some |= known(record("add", 0, [0.9, 0.8, 0.9, 0.8]))
    assert pages.verdict(asked, pages.results(asked, some)) == "not all measured yet"


def test_a_bench_with_too_few_seeds_does_not_change_the_verdict_of_the_others():
    found = pages.results(claim(IOU), known(*pair(0.1), *pair(0.1, seeds=1, bench="nuclei")))
    assert [own.verdict for own in found] == ["held", "too few seeds yet"]
    assert pages.verdict(claim(IOU), found) == "held"


def test_only_seeds_that_both_settings_have_are_compared():
    records = known(*pair(0.1), record("concat", 9, [0.9] * 4))
    assert pages.results(claim(IOU), records)[0].seeds == 3


def test_cells_that_were_tested_on_other_pictures_are_no_pair():
    records = [record("concat", 0, [0.5] * 4), record("none", 0, [0.4] * 4, units="4 groups cd")]
    with pytest.raises(ValueError, match="different pictures"):
        pages.results(claim(IOU), known(*records))


def test_a_difference_as_large_as_the_smallest_is_shown_in_four_of_five_trials():
    """The number under `would have been shown from`, against draws of the seeds' readings."""
    rng = np.random.default_rng(1)
    true = pages.results(claim(EARLY), known(*pair(0.0, seeds=5)))[0]
    deviation = np.sqrt(true.spread.seeds * 5)
    draws = rng.normal(true.smallest, deviation, (4000, 5))
    shown = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.03)


def test_what_is_missing_is_what_no_line_has(tmp_path):
    path = tmp_path / "cells.jsonl"
    assert cells.kept(path) == {}
    all_cells = [cells.Cell("pets", setting, 0, 64) for setting in ("concat", "none", "add")]
    assert cells.missing(claim(IOU, EARLY), all_cells, {}) == all_cells[:2]
    first = record("concat", 0, [0.5] * 4)
    del first["readings"]["early_iou"]
    path.write_text(f"{json.dumps(first)}\n")
    assert cells.missing(claim(IOU), all_cells, cells.kept(path)) == all_cells[1:2]
    assert cells.missing(claim(IOU, EARLY), all_cells, cells.kept(path)) == all_cells[:2]
    with path.open("a") as file:
        file.write(f"{json.dumps(record('concat', 0, [0.6] * 4))}\n")
    assert cells.kept(path)[all_cells[0]]["iou"] == [0.6] * 4
    assert cells.missing(claim(IOU, EARLY), all_cells, cells.kept(path)) == all_cells[1:2]


def test_readings_of_another_training_are_not_taken_over(tmp_path):
    path = tmp_path / "cells.jsonl"
    first, again, anew = (record("concat", 0, [score] * 4) for score in (0.5, 0.5, 0.6))
    first["readings"], again["readings"], anew["readings"] = {"a": 1, "b": 1}, {"b": 2}, {"b": 3}
    path.write_text("".join(f"{json.dumps(own)}\n" for own in (first, again)))
    cell = cells.Cell("pets", "concat", 0, 64)
    assert cells.kept(path)[cell]["readings"] == {"a": 1, "b": 2}
    path.write_text("".join(f"{json.dumps(own)}\n" for own in (first, anew)))
    assert cells.kept(path)[cell]["readings"] == {"b": 3}


def test_a_line_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text(f'{json.dumps(record("concat", 0, [0.5] * 4))}\n{{"bench": "pets", "se')
    with pytest.raises(ValueError, match=r"cells\.jsonl, line 2"):
        cells.kept(path)


def test_every_claim_has_settings_readings_and_an_experiment_that_exist():
    assert len(literature.CLAIMS) >= 15
    assert len({own.name for own in literature.CLAIMS}) == len(literature.CLAIMS)
    for own in literature.CLAIMS:
        for contrast in own.contrasts:
            assert contrast.reading in {*literature.BY_UNIT, *readings.READINGS}
            for setting in {contrast.more, contrast.less} - {contrast.less if isinstance(contrast.less, float) else ""}:
                assert setting in literature.SETTINGS
                assert literature.about(setting)


@pytest.mark.parametrize("own", literature.CLAIMS, ids=lambda own: own.name)
def test_the_experiment_of_a_page_trains_the_networks_of_its_rows(own):
    keys = ("skip", "match_parameters", "short_skips", "skip_flow", "skip_scale")
    trained = [
        [getattr(options.model, key) for key in keys]
        for _, options in sweep_of("ablate", Ablate, own.experiment.split(), preflight=lambda _: None)
    ]
    for setting in {side for contrast in own.contrasts for side in (contrast.more, contrast.less)}:
        if isinstance(setting, str):
            wanted = compose("ablate", Ablate, ["experiment=skip_ablation", *literature.SETTINGS[setting]])
            assert [getattr(wanted.model, key) for key in keys] in trained, setting


@pytest.mark.parametrize("bench", cells.BENCHES)
def test_the_options_of_every_cell_are_accepted(bench, tmp_path):
    for name in ("nuclei", "em"):
        (tmp_path / name).mkdir()
    (tmp_path / "weights.pth").touch()
    paths = {"pets": tmp_path, "sets": tmp_path, "weights": tmp_path / "weights.pth"}
    for setting in literature.SETTINGS if bench == "pets" else ("concat",):
        cell = cells.Cell(bench, setting, 1, 64)
        options = compose("ablate", Ablate, cell.overrides(paths))
        assert options.seed == 1
        assert "/" not in cell.name
        pictures = int(cells.BENCHES[bench].pictures.split()[0]) * (options.data.crops or 1)
        assert math.ceil(pictures / options.data.batch_size) * options.trainer["max_epochs"] == 220


def test_every_reading_is_a_number_of_a_real_run(tiny, tmp_path):
    run = tiny(
        *("name=pets_concat_64px_seed0", "gradients.every_n_steps=2", "gradients.routes_every_n_steps=2"),
        "data.size=32",
    )
    asked, folder = readings.evaluate_options(readings.READINGS), tmp_path / "evaluation"
    evaluate(options_of([f"checkpoint={run.path}", f"output={folder}", *asked]))
    own = results.read(run.path).runs[0]
    found = {name: reading.read(own, folder) for name, reading in readings.READINGS.items()}
    assert np.isfinite([*found.values()]).all(), found
    flow = own.gradient_flow
    stem = flow[flow.kind == "exit"].block.iloc[0]
    shares = flow[(flow.kind == "exit") & (flow.block == stem)]
    levels = shares[shares.metric.str.fullmatch(r"share_level\d")]
    assert found["skip_exit_share"] == pytest.approx(np.median(levels.groupby("step").value.sum()))
    val = own.metrics[own.metrics.name == "val/iou"]
    assert found["early_iou"] == val.value.iloc[0]


def test_the_pages_are_those_of_the_numbers(tmp_path):
    """`python scripts/claims.py --pages` after a change of either."""
    there = [Path("README.md"), Path("docs/claims.md"), Path("docs/laboratory.md")]
    (tmp_path / "docs").mkdir()
    for path in there:
        (tmp_path / path).write_text((ROOT / path).read_text())
    summaries.write(cells.kept(), tmp_path)
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.md")}
    there += [path.relative_to(ROOT) for path in (ROOT / "docs/claims").glob("*.md")]
    assert written == {path: (ROOT / path).read_text() for path in there}


def test_the_settings_are_compared_with_concat_and_corrected_over_the_table():
    records = pair(0.1)
    add = [record("add", own["seed"], [*np.array(own["iou"]) - 0.001]) for own in records if own["setting"] == "concat"]
    own = known(*records, *add)
    for about in own.values():
        about["parameters"] = 14_328_209
    lines = summaries.compared(own, ("pets", 64)).splitlines()
    concat, sums = lines[2].split(" | "), [np.mean(r["iou"]) for r in records if r["setting"] == "concat"]
    assert concat[:3] == ["| concat", "14.33", f"{np.mean(sums):.3f} ({min(sums):.3f} to {max(sums):.3f})"]
    assert concat[3:] == ["", " |"]
    assert lines[3].startswith("| add | 14.33 |")
    found = pages.results(claim(literature.Contrast("iou", "none", "concat")), own)[0]
    assert pages.interval(found).strip("*") in lines[4]
    assert "**" in lines[4]
    assert len(lines) == 5


def test_the_lesions_have_students_interval_over_seeds():
    records = pair(0.1)
    concat = [own for own in records if own["setting"] == "concat"]
    for own, value in zip(concat, (0.1, 0.2, 0.3), strict=True):
        own["readings"] |= dict.fromkeys(literature.LESIONS, value)
    few = [record(own["setting"], own["seed"], own["iou"], bench="em") for own in concat]
    few[0]["readings"] |= dict.fromkeys(literature.LESIONS, 0.1)
    own = known(*records, *few, *pair(0.1, bench="nuclei"))
    lines = summaries.lesions(own, pages.benches_of(own)).splitlines()
    assert lines[0] == "| cut by the mean | IoU lost, Pets, 64 px | IoU lost, EM, crops of 64 px |", (
        "none was cut on nuclei"
    )
    assert lines[-1] == "| all | +0.200 [-0.048, +0.448] | – |"  # 4.3027 x 0.1 / sqrt(3); one seed has no interval


def test_the_figures_of_experiment_files_stand_on_the_pages_that_they_name():
    files = [path.read_text() for path in (ROOT / "conf/experiment").glob("*.yaml")]
    stated = [re.sub(r"\n# +", " ", text.partition("# Result:")[2]).partition("\n")[0] for text in files]
    checked = 0
    for result in stated:
        names = re.findall(r"\b(\w+)\.md", result)
        found = "".join((ROOT / f"docs/claims/{name}.md").read_text() for name in names)
        for figure in re.findall(r"-?\b\d\.\d{3}\b", result) if names else ():
            assert re.search(rf"{'-' if figure[0] == '-' else '[+]'}{figure.lstrip('-')}\b", found), (figure, result)
            checked += 1
    assert checked > 20
