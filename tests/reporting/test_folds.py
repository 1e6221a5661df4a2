"""The report of a cross-validation: folds are no settings, and their pictures are not pooled as if they were alike."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_report import lead, made, rows, undrawn, write_classes, write_run  # noqa: F401 (a fixture)

from unetseg.evaluation.statistics import compare
from unetseg.reporting import comparisons, scores
from unetseg.reporting.results import read
from unetseg.runs.run import Sweep

FOLDS, SEEDS = (0, 1, 2), (0, 1)


def write_fold(root: Path, skip: str, fold: int, seed: int, folds: int = 3) -> None:
    """Write a run whose test pictures are those of its fold."""
    folder = root / f"{skip}_fold={fold}_seed{seed}"
    write_run(folder, skip, seed, folds=folds, fold=fold)
    for name in ("per_image.csv",):
        table = pd.read_csv(folder / name)
        table["name"] = f"fold{fold}_" + table.name
        level = np.random.default_rng(fold).normal(0, 0.02) * (skip == "none")
        table[["iou", "boundary_iou"]] += level
        table.to_csv(folder / name, index=False)


@pytest.fixture
def runs(tmp_path, undrawn) -> Path:  # noqa: F811
    for skip in ("concat", "none"):
        for fold in FOLDS:
            for seed in SEEDS:
                write_fold(tmp_path / "runs", skip, fold, seed)
    return tmp_path / "runs"


def by_fold(runs: Path, skip: str) -> np.ndarray:
    """Return the mean IoU of each seed and fold, SxK."""
    tables = [[pd.read_csv(runs / f"{skip}_fold={fold}_seed{seed}/per_image.csv") for fold in FOLDS] for seed in SEEDS]
    return np.array([[table.iou.mean() for table in of_seed] for of_seed in tables])


def test_a_fold_is_no_setting_and_every_run_counts(runs, tmp_path):
    sweep = read(runs)
    assert [(setting.name, setting.seeds, setting.folds) for setting in sweep.settings] == [
        ("concat", [0, 1], [0, 1, 2]),
        ("none", [0, 1], [0, 1, 2]),
    ]
    assert (len(sweep.runs), sweep.repeated) == (12, [])
    table = rows(made(runs, tmp_path / "out"), "Settings")
    assert table["concat"][-2:] == ["0, 1", "0, 1, 2"]


@pytest.mark.quick
def test_settings_are_paired_within_fold_and_seed_and_a_fold_counts_once(runs):
    (pair,) = comparisons.pairs(read(runs).settings, "fold")[0]["iou"]
    expected = compare(by_fold(runs, "none"), by_fold(runs, "concat"), folds=True)
    assert (pair.result.difference, pair.result.low, pair.result.p) == pytest.approx(
        (expected.difference, expected.low, expected.p)
    )
    assert (pair.result.units, pair.result.seeds, pair.images) == (3, 2, 120)


def test_the_answer_says_how_many_folds_seeds_and_pictures(runs, tmp_path):
    text = made(runs, tmp_path / "out", plan=0.02)
    assert "IoU per fold" in lead(text, "Answer")
    assert (
        "The unit is the fold: 3 folds of a cross-validation, 2 seeds and 120 test images, each tested once a" in text
    )
    assert "Intervals cover the choice of seeds and of test folds." in text
    assert lead(text, "Plan").startswith("There is no plan over folds")
    assert rows(text, "Paired differences")["none − concat"][4:6] == ["2", "3"]


def test_a_missing_fold_is_said_and_the_others_are_compared(runs, tmp_path):
    shutil.rmtree(runs / "none_fold=2_seed1")
    text = made(runs, tmp_path / "out")
    assert "none − concat is compared on folds 0 and 1 with seeds 0 and 1 alone: none lacks fold 2 with seed 1." in text
    assert "2 folds of a cross-validation, 2 seeds and 80 test images" in text


def test_the_most_seeds_and_folds_are_compared_of_which_nothing_is_missing(runs):
    for fold in FOLDS[1:]:
        shutil.rmtree(runs / f"none_fold={fold}_seed1")
    cells = comparisons.common_cells(read(runs).settings)
    assert (cells.seeds, cells.folds) == ([0], [0, 1, 2])


def test_one_fold_in_common_says_nothing_of_others(runs, tmp_path):
    for fold in FOLDS[1:]:
        for seed in SEEDS:
            shutil.rmtree(runs / f"none_fold={fold}_seed{seed}")
    text = made(runs, tmp_path / "out")
    assert (
        "none and concat are not compared: they have fold 0 alone in common, which says nothing about others." in text
    )


def test_of_one_fold_alone_nothing_is_claimed_of_the_others(runs, tmp_path):
    for folder in runs.glob("*_fold=[02]_*"):
        shutil.rmtree(folder)
    text = made(runs, tmp_path / "out")
    assert "One fold alone, fold 1 of 3 (from 0): nothing is said about the other folds." in text
    assert rows(text, "Paired differences")["none − concat"][4:6] == ["2", "40"]  # images, as ever


def test_one_seed_decides_nothing_over_folds_either(runs, tmp_path):
    for folder in runs.glob("*_seed1"):
        shutil.rmtree(folder)
    text = made(runs, tmp_path / "out")
    assert lead(text, "Answer").startswith("Between concat and none one seed decides nothing")
    assert rows(text, "Paired differences")["none − concat"][2:] == ["–", "–", "1", "3", "one seed"]


def test_a_picture_that_two_folds_test_makes_them_incomparable(runs, tmp_path):
    for table in runs.glob("*/per_image.csv"):
        pd.read_csv(table).assign(name=[f"picture_{i}" for i in range(40)]).to_csv(table, index=False)
    assert "none and concat are not compared: their test images differ." in made(runs, tmp_path / "out")


def test_groups_count_within_their_fold(runs):
    for path in runs.glob("*/per_image.csv"):
        table = pd.read_csv(path)
        number = table.name.str.extract(r"_(\d+)$", expand=False).astype(int)
        table.assign(group=np.where(number < 30, "a", "b" + number.astype(str))).to_csv(path, index=False)
    run = read(runs).settings[0].runs[0]
    sweep = read(runs)
    cells = comparisons.common_cells(sweep.settings)
    of_folds, _, images = comparisons._unit_scores(sweep.settings, "iou", cells, "fold")
    first = run.per_image.groupby("group").iou.mean().mean()
    assert images == 120
    assert of_folds[0, 0, 0] == pytest.approx(first)


def test_folds_that_are_no_numbers_are_damage(runs):
    path = runs / "none_fold=2_seed1/config.yaml"
    options = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(options | {"data": options["data"] | {"fold": "two"}}))
    assert read(runs).damaged[0][1] == "config.yaml can't be read: data.folds or data.fold is no number"


def test_the_score_of_a_class_is_the_mean_of_a_seeds_folds(runs, tmp_path):
    for skip in ("concat", "none"):
        for fold in FOLDS:
            for seed in SEEDS:
                road = 0.3 + 0.1 * fold + 0.2 * seed
                write_classes(runs / f"{skip}_fold={fold}_seed{seed}", {"sky": 0.9, "road": road, "car": 0.5})
    tables = scores.class_iou(read(runs))
    assert [table.road.tolist() for table in tables.values()] == [pytest.approx([0.4, 0.6])] * 2
    assert "## Classes" in made(runs, tmp_path / "out")


def test_the_table_of_a_sweep_has_a_column_of_folds(runs):
    table = Sweep(runs).table
    assert set(table.setting) == {"concat", "none"}
    assert sorted(set(table.fold)) == [0, 1, 2]
