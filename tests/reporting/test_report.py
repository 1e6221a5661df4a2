"""The report of an ablation: its numbers against pandas, its words against the intervals, its page in a browser."""

import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY
from PIL import Image

from unetseg.errors import UserError
from unetseg.evaluation.shifts import CONDITIONS
from unetseg.evaluation.statistics import Components, Smallest, compare, holm, seed_interval
from unetseg.names import EXITS
from unetseg.options.command_schema import Report
from unetseg.options.compose import compose
from unetseg.options.recorded import defaults
from unetseg.options.schema import Train
from unetseg.report import report
from unetseg.reporting import comparisons, sentences
from unetseg.reporting.results import Run, Setting, Sweep, read, setting_names
from unetseg.runs.folder import RunFolder

EFFECT = {"concat": 0.0, "none": -0.1, "add": 0.0}
"""What a setting adds to the IoU of each image."""
SEEDS = (0, 1)
IMAGES = [f"picture_{i}" for i in range(40)]
BLOCKS = ("stem", "encoder1", "decoder1", "head")


def write_run(folder: Path, skip: str, seed: int, **changes: object) -> None:
    """Write a run folder as a training leaves it, but for the checkpoints."""
    rng = np.random.default_rng((seed, sorted(EFFECT).index(skip)))
    options = compose("train", Train, [*TINY, f"model.skip={skip}", f"seed={seed}", "output=gone"]).model_dump()
    options["data"] |= changes
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    of_image = np.random.default_rng(9).uniform(0.5, 0.8, len(IMAGES))
    iou = of_image + EFFECT[skip] + rng.normal(0, 0.01, len(IMAGES))
    per_image = pd.DataFrame({"name": IMAGES, "group": "", "iou": iou, "dice": iou, "boundary_iou": iou / 2})
    per_image.sample(frac=1, random_state=seed).to_csv(folder / "per_image.csv", index=False)
    summary = {"test/iou": 0.6 + EFFECT[skip] + seed / 100, "parameters": 14e6, "flops": 2e9, "images_per_second": 30}
    summary |= {"folder": "/gone", "command": "python -m unetseg.train -m here", "versions": {"torch": "2.15.0"}}
    summary |= {"git_commit": "a647ebb", "machine": "x86_64", "epochs": 3, "seconds": 75.0, "precision": "32-true"}
    (folder / "summary.json").write_text(json.dumps(summary))
    names = ("val/iou", "val/boundary_iou", "train/loss")
    rows = [(epoch, epoch, name, 0.3 + epoch / 10 + EFFECT[skip]) for epoch in range(3) for name in names]
    pd.DataFrame(rows, columns=["step", "epoch", "name", "value"]).to_csv(folder / "metrics.csv", index=False)
    flow = []
    for step in (0, 25):
        flow += [(step, 0, "skip", f"level{i}", "skip_share", 0.1 * i * (skip != "none")) for i in (1, 2)]
        flow += [(step, 0, "block", block, "rms", 10.0 ** -(i + 2)) for i, block in enumerate(BLOCKS)]
        exits = {"level1": 0.2 + seed / 10 + step / 1000, "level2": -0.1, "bottleneck": 0.9 - seed / 10 - step / 1000}
        if skip == "none":
            exits = {"bottleneck": 1.0}
        for block in ("stem", "encoder1", "encoder"):
            flow += [(step, 0, "exit", block, f"share_{name}", share) for name, share in exits.items()]
        short = {"encoder1.0": 0.4 + seed / 10, "encoder1.1": 0.6, "encoder2.0": 0.3 + step / 1000}
        flow += [(step, 0, "short", block, "identity_share", share) for block, share in short.items()]
        if skip == "add":
            reuse = {"reuse_0_1": 0.3, "reuse_0_2": 0.2, "reuse_0_out": 0.5, "reuse_1_2": 0.2, "reuse_1_out": 0.8}
            reuse |= {"weight_0_1": 0.01, "weight_0_2": 0.02, "weight_1_2": 0.03}
            flow += [(step, 0, "dense", "encoder1", metric, value + seed / 100) for metric, value in reuse.items()]
        flow += [(step, 0, "net", "all", "vanishing_slope", 0.1), (step, 0, "net", "all", "centre_dip", -2.5)]
    columns = ["step", "epoch", "kind", "block", "metric", "value"]
    pd.DataFrame(flow, columns=columns).to_csv(folder / "gradient_flow.csv", index=False)
    edges = pd.DataFrame(
        {"from_px": [1, 2], "to_px": [1, np.inf], "pixels": [100, 300], "errors": [40 + 20 * seed, 30]}
    )
    edges.assign(error_rate=edges.errors / edges.pixels).to_csv(folder / "edge_distance.csv", index=False)


def write_classes(folder: Path, iou: dict[str, float]) -> None:
    """Write a per_class.csv with the columns that a report needs."""
    pixels = [100 * (position + 1) for position in range(len(iou))]
    table = pd.DataFrame({"class": [*iou], "iou": [*iou.values()], "pixels": pixels})
    table.to_csv(folder / "per_class.csv", index=False)


def write_lesions(folder: Path) -> None:
    """Write the tables of an evaluation with lesion=true of two levels."""
    folder.mkdir(parents=True)
    ends = {f"{name}{end}": 0.01 for name in ("iou_loss", "boundary_iou_loss") for end in ("", "_low", "_high")}
    lost = [{"cut": "mean", "levels": levels, **ends} for levels in ("1", "2", "1+2")]
    lost[1]["iou_loss"] = 0.044
    pd.DataFrame(lost).to_csv(folder / "lesion.csv", index=False)
    ends = {f"{name}{end}": 0.02 for name in ("iou", "boundary_iou") for end in ("", "_low", "_high")}
    worth = [{"cut": cut, "level": level, **ends} for cut in ("zero", "mean") for level in (1, 2)]
    pd.DataFrame(worth).to_csv(folder / "shapley.csv", index=False)


def write_shifts(folder: Path, skip: str, seed: int) -> None:
    """Write the table of an evaluation with shift=true: concat is ahead, and behind under the strongest noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for (shift, strength), number in itertools.product(CONDITIONS, range(8)):
        ahead = 0.1 if skip == "concat" else 0.0
        if shift == "noise" and strength == 5 and skip == "concat":
            ahead = -0.2
        score = 0.5 + ahead + 0.01 * number + 0.001 * seed - 0.02 * strength + 0.0001 * ((7 * number + seed) % 3)
        rows.append({"name": f"p{number}", "group": "", "shift": shift, "strength": strength, "iou": score})
    pd.DataFrame(rows).assign(boundary_iou=0.25).to_csv(folder / "shift_per_image.csv", index=False)


def write_freeu(folder: Path) -> None:
    """Write the table of an evaluation with freeu=[1.2,0.9]."""
    changes = [
        {"part": "none", "levels": "", "b": 1, "s": 1},
        {"part": "backbone", "levels": "1", "b": 1.2, "s": 1},
        {"part": "both", "levels": "3+4", "b": 1.2, "s": 0.9},
    ]
    ends = {f"{name}_difference{end}": 0.01 for name in ("iou", "boundary_iou") for end in ("", "_low", "_high")}
    table = pd.DataFrame([row | ends for row in changes])
    table.loc[2, "iou_difference"] = 0.033
    table.to_csv(folder / "freeu.csv", index=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Three settings with two seeds; of a fourth one cell is missing and one unfinished."""
    root = tmp_path_factory.mktemp("sweep")
    cells = [(skip, seed) for skip, seed in itertools.product([*EFFECT, "placebo"], SEEDS)]
    for skip, seed in cells[:-2]:
        write_run(root / f"{skip}_seed{seed}", skip, seed)
    shutil.copytree(root / "add_seed1", root / "placebo_seed1")
    (root / "placebo_seed1/summary.json").unlink()
    write_lesions(root / "none_seed0/evaluation/synthetic_test")
    write_freeu(root / "none_seed0/evaluation/synthetic_test")
    (root / "none_seed0/wandb/files").mkdir(parents=True)
    shutil.copy(root / "add_seed1/config.yaml", root / "none_seed0/wandb/files")  # inside a run: no run
    (root / "other").mkdir()
    (root / "other/config.yaml").write_text("services: []")  # another program's
    record = {"command": "python -m unetseg.ablate there", "experiment": None, "axes": {}}
    record["cells"] = [{"name": f"{skip}_seed{seed}", "overrides": []} for skip, seed in cells]
    (root / "sweep.json").write_text(json.dumps(record))
    return root


def made(runs: Path, output: Path, **options: object) -> str:
    """Return the Markdown of a report."""
    report(
        Report.model_validate(
            {
                "runs": str(runs),
                "output": str(output),
                "wandb": False,
                "plan": None,
                "pooled": False,
                "trust": False,
                **options,
            }
        )
    )
    return (output / "report.md").read_text()


@pytest.fixture(scope="module")
def output(sweep, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "report"
    made(sweep, folder)
    return folder


@pytest.fixture(scope="module")
def text(output) -> str:
    return (output / "report.md").read_text()


def test_options_that_change_no_result_make_no_setting():
    run = defaults("train", Train, "synthetic")
    assert len({*setting_names([run, run | {"trust": True, "data": run["data"] | {"check": False}}])}) == 1
    assert len({*setting_names([run, run | {"data": run["data"] | {"size": 32}}])}) == 2


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leave the panels of charts empty, which takes a third of the time."""
    from unetseg.reporting import charts

    monkeypatch.setattr(charts, "_panel", lambda figure, name, alt: charts.Panel(name, b"", alt))


@pytest.fixture
def copy(sweep, tmp_path, undrawn) -> Path:
    """A sweep that a test may change."""
    return Path(shutil.copytree(sweep, tmp_path / "copy"))


def rows(text: str, section: str) -> dict[str, list[str]]:
    """Return the cells of a section's table rows, the last of each name, by the first cell."""
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines}


def lead(text: str, section: str) -> str:
    return text.partition(f"## {section}\n\n**")[2].partition("**")[0]


def scores(root: Path, skip: str, metric: str) -> pd.Series:
    """Return the mean over the seeds of each image."""
    tables = [pd.read_csv(root / f"{skip}_seed{seed}/per_image.csv", index_col="name") for seed in SEEDS]
    return sum(table[metric] for table in tables) / len(SEEDS)


def test_settings_are_listed_in_the_order_of_the_sweep_with_means_over_seeds(sweep, text):
    table = rows(text, "Settings")
    assert [name for name in table if name in EFFECT] == ["concat", "none", "add"]
    for skip, effect in EFFECT.items():
        assert table[skip][0] == f"{0.605 + effect:.3f} ({0.6 + effect:.3f} to {0.61 + effect:.3f})"
        assert table[skip][1].startswith(f"{scores(sweep, skip, 'iou').mean():.3f} [")
        assert table[skip][3:] == ["14.00", "2.00", "30.0", "0, 1"]  # no activations in these summaries: no column


def test_differences_pair_the_same_images_and_seeds(sweep, text):
    table = rows(text, "Paired differences")  # the second table, of Boundary IoU
    assert {"none − concat", "add − concat", "add − none"} < table.keys()
    for other, base in (("none", "concat"), ("add", "concat"), ("add", "none")):
        expected = (scores(sweep, other, "boundary_iou") - scores(sweep, base, "boundary_iou")).mean()
        mean, span, p, smallest, seeds, images, shown = table[f"{other} − {base}"]
        smallest, ends = smallest.split(" ", 1)
        assert mean == f"{expected:+.3f}".replace("-", "−")
        assert (seeds, images, shown) == ("2", "40", "no" if "none" not in (other, base) else "yes")
        low, high = (float(end.replace("−", "-")) for end in span.strip("[]").split(", "))
        assert low < expected < high
        floor, ceiling = (float(end) for end in ends.strip("[]").split(", "))
        assert 0 < floor < float(smallest) < ceiling
        assert (p == "< 0.001" or float(p.lstrip("\\<")) < 0.05) == (shown == "yes")


def test_the_answer_claims_what_was_shown_and_says_how_small_the_rest_must_be(text):
    answer = lead(text, "Answer")
    assert answer.startswith("With two seeds only, which hardly tell how far trainings spread: compared with concat, ")
    assert "IoU per image is lower with none; no difference from concat in IoU per image was shown for add" in answer
    assert re.search(r"\(by estimate 0\.\d{3} \[0\.\d{3}, more than 1\] could have been\)\.$", answer)
    assert "Intervals cover the choice of seeds and of test images." in text
    assert "2 of 3 in IoU per image" in lead(text, "Paired differences")


def test_one_seed_decides_nothing(copy, tmp_path):
    for folder in copy.glob("*_seed1"):
        shutil.rmtree(folder)
    text = made(copy, tmp_path / "out", plan=0.02)
    assert lead(text, "Answer") == (
        "Between concat and none and add one seed decides nothing; the same command with seed=0,1,2 would."
    )
    assert lead(text, "Paired differences").startswith("One seed decides nothing; the same command with seed=0,1,2")
    assert lead(text, "Settings").endswith("one seed decides nothing; the same command with seed=0,1,2 would.")
    for row in ("none − concat", "add − concat"):
        assert rows(text, "Paired differences")[row][2:] == ["–", "–", "1", "40", "one seed"]
    assert lead(text, "Plan").startswith("A plan needs two settings with two seeds each")
    assert not re.search(r"higher|lower with|choice of seeds|\| yes|p = ", text)


def with_groups(root: Path) -> None:
    """Give the images eight groups of five, of which each setting has its own level."""
    for table in root.glob("*_seed?/per_image.csv"):
        scores = pd.read_csv(table)
        number = scores.name.str.removeprefix("picture_").astype(int) // 5
        level = np.random.default_rng(len(table.parent.name)).normal(0, 0.03, 8)[number]
        scores.assign(group="patient_" + number.astype(str), iou=scores.iou + level).to_csv(table, index=False)


@pytest.mark.quick
def test_groups_are_the_unit_where_there_are_any(copy, tmp_path):
    with_groups(copy)
    text = made(copy, tmp_path / "out")
    table = rows(text, "Paired differences")
    images, alone = copy / "add_seed0/per_image.csv", copy / "concat_seed0/per_image.csv"
    assert table["add − concat"][5] == "8"  # groups
    assert "The unit is the group (8 groups, 40 images)" in text
    assert "Compared with concat, IoU per group" in text or "in IoU per group" in lead(text, "Answer")
    first = text.partition("*IoU per group, on the same groups and seeds.*")[0].partition("## Paired differences")[2]
    row = next(line for line in first.splitlines() if line.startswith("| add − concat"))
    spans = [[float(n.replace("−", "-")) for n in s.split(", ")] for s in re.findall(r"\[([+−].*?)\]", row)]
    assert spans[0][1] - spans[0][0] > 1.2 * (spans[-1][1] - spans[-1][0])  # as if images were independent
    assert images.exists()
    assert alone.exists()


def test_images_without_a_score_are_left_out_of_both_settings_and_counted(copy, tmp_path):
    table = pd.read_csv(copy / "none_seed1/per_image.csv")
    table.loc[table.name.isin(["picture_3", "picture_8"]), ["iou", "dice", "boundary_iou"]] = np.nan
    table.to_csv(copy / "none_seed1/per_image.csv", index=False)
    text = made(copy, tmp_path / "out")
    assert rows(text, "Paired differences")["none − concat"][5] == "38"
    assert rows(text, "Paired differences")["add − concat"][5] == "40"
    assert "Left out of both settings, as a run has no score for them (all pixels ignored): 2 images." in text
    assert "nan" not in text


def test_a_plan_says_how_many_seeds_show_a_difference(copy, tmp_path):
    text = made(copy, tmp_path / "out", plan=0.02)
    found = re.match(
        r"To show a difference of 0\.02 four times in five takes (\d+) seeds in IoU per image "
        r"\(by the spread so far, (\d+) to (\d+); there are 2\) with these 40 images; \d+ seeds in Boundary IoU",
        lead(text, "Plan"),
    )
    value, low, high = map(int, found.groups())
    assert 2 <= low <= value <= high
    assert len(rows(text, "Plan")) == 4  # head, rule, and a row a metric: the last of each stays
    assert (tmp_path / "out/figures/plan_iou.png").exists()


def test_pooling_is_said_and_uses_the_spread_of_all_settings(copy, tmp_path):
    own, pooled = (made(copy, tmp_path / str(number), pooled=flag) for number, flag in enumerate((False, True)))
    assert "pooled=true: the spread over seeds is taken as the same for all settings" in pooled
    assert "pooled=true" not in own
    assert rows(own, "Paired differences")["add − concat"][0] == rows(pooled, "Paired differences")["add − concat"][0]
    assert rows(own, "Paired differences")["add − concat"][1] != rows(pooled, "Paired differences")["add − concat"][1]


def test_a_plan_asks_for_more_images_only_where_they_would_help():
    for of_seeds, of_units, help in ((0.3, 0.01, False), (0.001, 1.0, True)):
        parts = Components(seeds=of_seeds**2, units=of_units**2, rest=0.0)
        plan = comparisons.Plan("iou", parts, parts, parts, units=40, level=0.05)
        assert plan.seeds(0.02, 1) == [None] * 3
        assert plan.units_help(0.02) == help
        told = sentences.describe_plan("IoU", [None] * 3, "40 images", [2], units_help=help)
        assert told.endswith("(more images are needed)" if help else "the trainings spread too far")


def test_pooling_that_can_not_be_done_is_not_claimed(copy, tmp_path):
    shutil.rmtree(copy / "none_seed1")
    text = made(copy, tmp_path / "out", pooled=True)
    assert "pooled=true changed nothing: it needs settings that all have the same test images" in text
    assert "is taken as the same for all settings" not in text


def test_what_images_would_have_given_is_pooled_as_groups_are(copy):
    with_groups(copy)
    settings = read(copy).settings
    (own, *_), (pooled, *_) = (comparisons.pairs(settings, "group", pooled=flag)[0]["iou"] for flag in (False, True))
    freedoms = [pair.by_image.spread.seeds_freedom for pair in (own, pooled)]
    assert freedoms == [1, 2]
    assert [pair.result.spread.seeds_freedom for pair in (own, pooled)] == freedoms


def test_an_image_without_a_group_is_a_group_of_its_own(copy, tmp_path):
    for table in copy.glob("*_seed?/per_image.csv"):
        scores = pd.read_csv(table)
        number = scores.name.str.removeprefix("picture_").astype(int)
        scores.assign(group=np.where(number < 20, "patient_" + (number // 5).astype(str), "")).to_csv(
            table, index=False
        )
    assert "The unit is the group (24 groups, 40 images)" in made(copy, tmp_path / "out")


def test_groups_of_one_image_each_are_said_to_be(copy, tmp_path):
    for table in copy.glob("*_seed?/per_image.csv"):
        scores = pd.read_csv(table)
        scores.assign(group=scores.name).to_csv(table, index=False)
    text = made(copy, tmp_path / "out")
    assert "The unit is the group, and each of the 40 groups is one image." in text
    assert "as if images were independent" not in text


def test_equal_settings_with_groups_have_no_width_to_compare(copy, tmp_path):
    with_groups(copy)
    shutil.rmtree(copy / "none_seed0"), shutil.rmtree(copy / "none_seed1")
    for seed in SEEDS:
        shutil.copy(copy / f"concat_seed{seed}/per_image.csv", copy / f"add_seed{seed}/per_image.csv")
    text = made(copy, tmp_path / "out")
    assert "The unit is the group (8 groups, 40 images)" in text
    assert "nan" not in text
    assert "times as wide" not in text


def test_pairs_with_one_seed_in_common_are_named(copy, tmp_path):
    path = copy / "add_seed0/config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"seed": 7}))
    text = made(copy, tmp_path / "out")
    assert "Only one seed is in common in add − concat and add − none: there they cover the images only." in text


def test_no_rounding_hides_what_was_shown():
    assert [sentences.p_value(p) for p in (0.0496, 0.04996, 0.0504, 0.2, 1e-4)] == [
        *("0.0496", "0.04996", "0.050", "0.200", "< 0.001"),
    ]
    a = np.array([[4e-4, 4.1e-4, 3.9e-4], [4.1e-4, 4e-4, 4.1e-4]])
    mean, ends = sentences.mean_and_interval(compare(a, np.zeros_like(a)))
    low, high = (float(end) for end in ends.strip("[]").split(", "))
    assert 0 < low < float(mean) < high


def made_up(settings: int, seeds: int, images: int, groups: int, generator: np.random.Generator) -> list[Setting]:
    """Return settings whose scores are drawn, some of them with a true difference."""
    effects = generator.choice([0, 0, 0.02, -0.05, 0.2], size=settings)
    spread = generator.choice([0.001, 0.01, 0.03], size=2)
    found = []
    for number in range(settings):
        runs = []
        for seed in range(seeds - int(number == 1 and generator.random() < 0.3) or 1):
            run = Run(RunFolder("gone"), "gone", {"seed": seed}, {"test/iou": 0.5})
            names = [f"{image:03d}" for image in range(images)]
            iou = 0.5 + effects[number] + generator.normal(0, spread[0]) + generator.normal(0, spread[1], images)
            table = pd.DataFrame({"iou": iou, "boundary_iou": iou / 2}, index=names)
            table["group"] = [f"g{image % groups}" for image in range(images)] if groups else ""
            run.__dict__["per_image"] = table
            runs.append(run)
        found.append(Setting(f"setting{number}", "#000000", "-", runs))
    return found


NAMES = r"((?:setting\d(?:, | and )?)+)"


def told(pattern: str, sentence: str) -> set[str]:
    """Return the settings that a part of a sentence names."""
    return {name for part in re.findall(pattern, sentence) for name in re.findall(r"setting\d", part)}


def test_no_sentence_contradicts_its_interval():
    """Every template of the answer, over made-up sweeps: what is said of each setting is what its interval allows."""
    generator, kinds = np.random.default_rng(0), set()
    for _ in range(250):
        settings = made_up(*(int(generator.choice(n)) for n in ((2, 3, 6), (1, 2, 3, 5), (12, 40), (0, 5))), generator)
        unit = comparisons.unit(Sweep(settings, [], [], {}))
        pairs, left_out = comparisons.pairs(settings, unit, pooled=bool(generator.random() < 0.3))
        assert not left_out
        together = [pair for found in pairs.values() for pair in found if not pair.one_seed]
        assert [pair.p for pair in together] == holm([pair.result.p for pair in together])  # over all metrics at once
        for metric, found in pairs.items():
            for base in settings:
                mine = {pair.other.name: pair for pair in found if pair.base is base}
                if not mine:
                    continue
                sentence = sentences.compare_with_base(base, found, comparisons.METRICS[metric])
                higher, lower = told(f"higher with {NAMES}", sentence), told(f"lower with {NAMES}", sentence)
                not_shown, single = (
                    told(f"shown for {NAMES}", sentence),
                    told(rf"between {base.name} and {NAMES}", sentence.lower()),
                )
                parts = [higher, lower, not_shown, single]
                assert sorted(name for part in parts for name in part) == sorted(mine), sentence  # each once
                for name in higher | lower:
                    pair = mine[name]
                    assert pair.p < 0.05
                    assert (pair.result.low > 0) if name in higher else (pair.result.high < 0)
                for name in not_shown:
                    pair = mine[name]
                    assert pair.p >= 0.05
                    assert abs(pair.result.difference) < pair.smallest.value
                    assert sentences.estimate(pair) in sentence
                    if pair.excludes_zero:
                        assert "after Holm's correction, although 0 lies outside" in sentence
                for name in single:
                    assert mine[name].result.seeds == 1
                    assert "one seed decides nothing" in sentence.lower()
                assert ("With two seeds only" in sentence) == any(pair.result.seeds == 2 for pair in mine.values())
                assert not any(float(size) > 1 for size in re.findall(r"[0-9]+[.][0-9]+", sentence)), sentence
                for name, pair in mine.items():
                    words = sentences.describe_pair(pair, unit)
                    allowed = "" if name in higher | lower else "of these two" if name in single else "not "
                    assert (allowed in words) if allowed else words.endswith("]")
                kinds |= {kind for kind, part in zip("hlns", parts, strict=True) if part}
                kinds |= {"Holm"} if "after Holm" in sentence else set()
            shown = sum(pair.shown for pair in found)
            count = sentences.differences({"IoU": found})
            decided = [pair for pair in found if not pair.one_seed]
            assert f"{shown} of {len(decided)} in IoU" in count if decided else "ne seed decides nothing" in count
    assert kinds == {*"hlns", "Holm"}


def test_two_seeds_are_said_of_the_pairs_that_have_them():
    generator = np.random.default_rng(0)
    settings = made_up(3, 3, 12, 0, generator)
    settings[2] = replace(settings[2], runs=settings[2].runs[:2])
    pairs, _ = comparisons.pairs(settings, "image")
    assert sentences.compare_with_base(settings[0], pairs["iou"], "IoU").startswith(
        f"With two seeds only in {settings[2].name} − {settings[0].name}, which hardly tell how far trainings spread: "
    )


def test_no_difference_of_scores_is_larger_than_1():
    assert sentences.estimate(SimpleNamespace(smallest=Smallest(1.047, 0.8, 3.2))) == "more than 1 [0.800, more than 1]"


def best(**means: float) -> str:
    settings = []
    for name, mean in means.items():
        run = Run(RunFolder(Path(name)), name, {"seed": 0}, {"test/iou": mean})
        settings.append(Setting(name, "", "-", [run]))
    return sentences.best(Sweep(settings, [], [], {}))


def test_the_range_of_iou_is_told_of_settings_that_have_one():
    assert best(a=0.642, b=0.6421).startswith("Test IoU over the set is 0.642 with a and b;")
    told = best(a=math.nan, b=0.6, c=0.5)
    assert told.startswith("Test IoU over the set reaches from 0.500 (c) to 0.600 (b; one seed); a run of a has none;")
    assert best(a=math.nan) == "No setting has a test IoU in all of its runs: in some no test pixel was scored."


def test_groups_that_can_not_be_the_unit_are_named(copy, tmp_path):
    path = copy / "add_seed0/per_image.csv"
    table = pd.read_csv(path)
    table.assign(group=[str(i % 8) for i in range(len(table))]).to_csv(path, index=False)
    text = made(copy, tmp_path / "report")
    assert "The unit is the image, because" in text
    assert "names no groups" in text
    assert "too narrow" in text


def test_the_last_epoch_of_each_run_is_its_own(copy, tmp_path):
    path = copy / "none_seed1/metrics.csv"
    table = pd.read_csv(path)
    later = table[table.epoch == 2].assign(epoch=3, value=0.1)  # this run went on for an epoch, which was worse
    pd.concat([table, later]).to_csv(path, index=False)
    summary = json.loads((copy / "none_seed1/summary.json").read_text())
    (copy / "none_seed1/summary.json").write_text(json.dumps(summary | {"epochs": 4}))
    told = lead(made(copy, tmp_path / "report"), "Learning curves")
    assert "none 0.250" in told  # the mean of 0.400 and 0.100
    assert "5 of 6 runs were best in their last epoch" in told


def test_a_pair_uses_the_seeds_that_both_have(copy, tmp_path):
    shutil.rmtree(copy / "add_seed1")
    text = made(copy, tmp_path / "out")
    assert rows(text, "Paired differences")["add − none"][4] == "1"
    assert "With add there is one seed: there they cover the images only" in text
    assert "between concat and add one seed decides nothing" in lead(text, "Answer")


def test_cells_that_are_not_finished_are_named(text, copy, tmp_path):
    said = "2 of 8 cells are not in this report; missing: placebo\\_seed0; unfinished: placebo\\_seed1."
    assert said in text.partition("## Settings")[0]
    (copy / "sweep.json").unlink()
    assert "1 of 7 cells is not in this report; unfinished: placebo\\_seed1." in made(copy, tmp_path / "out")


def test_without_a_record_concat_comes_first_then_the_names(copy, tmp_path):
    (copy / "sweep.json").unlink()
    names = [name for name in rows(made(copy, tmp_path / "out"), "Settings") if name in EFFECT]
    assert names == ["concat", "add", "none"]


def test_a_moved_sweep_gives_the_same_report(output, sweep, tmp_path):
    made(Path(shutil.copytree(sweep, tmp_path / "moved")), tmp_path / "out")
    assert (tmp_path / "out/report.md").read_bytes() == (output / "report.md").read_bytes()
    assert (tmp_path / "out/report.html").read_bytes() == (output / "report.html").read_bytes()


def test_settings_with_different_test_images_are_not_compared(copy, tmp_path):
    for seed in SEEDS:
        path = copy / f"none_seed{seed}/per_image.csv"
        path.write_text(path.read_text().replace("picture_7,", "picture_70,"))
    text = made(copy, tmp_path / "out")
    assert "none and concat are not compared: their test images differ." in text
    assert "none − concat" not in text
    assert "add − concat" in text
    assert "Not shown: the settings have no images with scores in common." in text


def test_other_options_that_differ_are_part_of_the_setting(tmp_path, undrawn):
    for root, changes in (("sizes", {"size": 96}), ("workers", {"workers": 3})):
        write_run(tmp_path / root / "a", "add", 0)
        write_run(tmp_path / root / "b", "add", 1, **changes)
    assert {"add size=64", "add size=96"} < rows(made(tmp_path / "sizes", tmp_path / "out"), "Settings").keys()
    assert rows(made(tmp_path / "workers", tmp_path / "out"), "Settings")["add"][-1] == "0, 1"


def test_a_run_that_was_repeated_counts_once(copy, tmp_path):
    shutil.copytree(copy / "add_seed0", copy / "add_seed0_again")
    text = made(copy, tmp_path / "out")
    assert "Left out, because another run has the same options and seed: add\\_seed0." in text
    assert rows(text, "Settings")["add"][-1] == "0, 1"


def test_gradients_edges_lesions_and_freeu_are_told(text):
    assert "the greatest skip share (median over steps) is 0.20, level 2 of concat" in lead(text, "Gradient flow")
    assert "It is 0 throughout with none." in text
    assert rows(text, "Gradient flow")["add"] == ["+0.100", "−2.500", "0.605"]
    assert rows(text, "Errors by distance to the edge")["add"] == ["50.0", "10.0"]  # (40 + 60) / 200, 60 / 600
    assert lead(text, "Lesions").endswith("level 2 of none (seed 0): 0.044 [0.010, 0.010].")
    assert "is both, levels 3+4 of none: 0.033 [0.010, 0.010]." in lead(text, "FreeU")


def test_a_frozen_encoder_has_no_gradient_beside_those_of_others(copy, tmp_path):
    for seed in SEEDS:
        file = copy / f"concat_seed{seed}/gradient_flow.csv"
        flow = pd.read_csv(file)
        assert "stem" in set(flow.block)
        flow[~flow.block.isin(["stem", *(f"encoder{n}" for n in range(1, 5))])].to_csv(file, index=False)
    told = lead(made(copy, tmp_path / "out"), "Gradient flow")
    assert told.startswith("The gradient of the stem (rms, median over steps) is ")
    assert "with concat, the" not in told


def test_differences_under_shift_are_told_with_their_change(copy, tmp_path):
    for skip, seed in itertools.product(("concat", "none"), SEEDS):
        write_shifts(copy / f"{skip}_seed{seed}/evaluation/pets_test", skip, seed)
    text = made(copy, tmp_path / "out")
    told = lead(text, "Under shift")
    assert "0.400 (noise) with concat and 0.100 (speckle) with none" in told
    assert "A difference in IoU changes: none − concat by +0.300 [+0.300, +0.300] under noise." in told
    assert "The order is reversed: none − concat is +0.200 [+0.200, +0.200] under noise, −0.100" in told
    assert "| noise | none − concat | −0.100 [−0.100, −0.100] | −0.100 " in text
    assert "| +0.200 [+0.200, +0.200] | +0.300 [+0.300, +0.300] | \\< 0.001 |" in text
    assert rows(text, "Under shift")["blur"][-2:] == ["+0.000 [+0.000, +0.000]", "1.000"], "Boundary IoU is the same"


def test_the_exits_of_the_gradient_are_told(output, text):
    """Seeds 0 and 1 have 0.2125 and 0.3125 at level 1 in the median of two readings, less 0.1 at level 2."""
    told = lead(text, "By which exit the gradient came")
    assert told.startswith("Of the stem's gradient, the share that came by a long skip")
    assert "0.16 (0.11 to 0.21) with concat" in told
    assert "0.00 (0.00 to 0.00) with none" in told
    section = (output / "report.html").read_text().partition("By which exit the gradient came</h2>")[2]
    legend = re.sub("<[^>]*>", " ", section.partition('class="legend"')[2].partition("</div>")[0]).split()
    assert legend == [">", *EXITS], "the colours are explained, and are not the settings'"
    table = rows(text, "By which exit the gradient came")
    assert table["add"] == ["encoder", "0.26 (0.21 to 0.31)", "−0.10 (−0.10 to −0.10)", "", "", "0.84 (0.79 to 0.89)"]


def test_the_short_skips_are_told_with_the_spread_over_readings_and_seeds(text):
    """Stage 1 has (0.4 + 0.6) / 2 in seed 0, 0.05 more in seed 1; stage 2 has 0.3 and 0.325 in the two readings."""
    section = "Short skips inside the encoder"
    told = lead(text, section)
    assert "0.45 (0.43 to 0.48) with concat" in told  # (1.0 + 0.3 to 0.425) / 3
    assert "is 0.81 with add" in told
    assert rows(text, section)["concat"] == ["0.53 (0.50 to 0.55)", "0.31 (0.30 to 0.33)"]


def test_a_scatter_needs_more_than_a_handful_of_runs(sweep, output, monkeypatch, tmp_path):
    from unetseg.reporting import mechanisms

    assert not (output / "figures/vanishing_slope.png").exists(), "six runs are in the table only"
    monkeypatch.setattr(mechanisms, "FEWEST_DOTS", 6)
    made(sweep, tmp_path / "out")
    assert (tmp_path / "out/figures/vanishing_slope.png").exists()


def test_panels_that_are_compared_have_one_y_axis(sweep, monkeypatch):
    from unetseg.reporting import charts, sections

    limits: dict[str, set[tuple[float, float]]] = {}

    def keep_limits(figure, name: str, alt: str) -> charts.Panel:
        if figure.axes:
            limits.setdefault(name.rstrip("0123456789"), set()).add(figure.axes[0].get_ylim())
        return charts.Panel(name, b"", alt)

    monkeypatch.setattr(charts, "_panel", keep_limits)
    sections.report(read(sweep))
    assert [len(limits[kind]) for kind in ("skip_share_level", "exits_")] == [1, 1]


def test_commands_versions_and_runs_are_listed(text):
    part = text.partition("## Behind the numbers")[2]
    assert "```\npython -m unetseg.ablate there\npython -m unetseg.train -m here\n```" in part
    assert "| torch | 2.15.0 |" in part
    assert "| add | add\\_seed1 | 1 | 0.610 | 3 | 1:15 |" in part
    assert "/gone" not in text


def test_the_page_needs_nothing_else_and_markdown_finds_its_pictures(output, text):
    page = (output / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http" not in page
    pictures = set(re.findall(r"figures/([\w.]+png)", text))
    assert pictures == {path.name for path in (output / "figures").iterdir()}
    assert {"differences_iou.png", "val_iou.png", "gradient_3.png", "skip_share_level2.png", "exits_3.png"} < pictures


def test_names_from_outside_are_escaped(copy, tmp_path):
    record = json.loads((copy / "sweep.json").read_text())
    (copy / "sweep.json").write_text(json.dumps(record | {"command": "<script>alert(1)</script>"}))
    made(copy, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1  # the page's own


def test_only_a_report_is_replaced(copy, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    made(copy, out)  # an empty folder
    (out / "figures/mine.png").write_bytes(b"mine")
    shutil.rmtree(copy / "add_seed0"), shutil.rmtree(copy / "add_seed1")
    made(copy, out)
    assert "add" not in rows((out / "report.md").read_text(), "Settings")
    assert not (out / "figures/gradient_3.png").exists()
    assert (out / "figures/mine.png").read_bytes() == b"mine"
    for name, content in (("notes.txt", "mine"), ("report.html", "<html>mine</html>")):
        foreign = tmp_path / name.partition(".")[0]
        foreign.mkdir()
        (foreign / name).write_text(content)
        with pytest.raises(UserError, match="exists and holds no report"):
            made(copy, foreign)
        assert [(path.name, path.read_text()) for path in foreign.iterdir()] == [(name, content)]


def test_a_folder_without_a_finished_run_is_refused(tmp_path, copy):
    with pytest.raises(UserError, match="holds no run folder"):
        made(tmp_path / "copy/other", tmp_path / "out")
    with pytest.raises(UserError, match="1 run folders, none of them finished"):
        made(copy / "placebo_seed1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = [sys.executable, "-m", "unetseg.report", "runs=nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "runs=nowhere is not accepted\n  accepted: a folder that exists" in done.stderr


@pytest.mark.parametrize("refuses", [False, True])
def test_wandb_gets_the_text_after_the_local_report_is_written(sweep, tmp_path, monkeypatch, undrawn, refuses):
    from unetseg.runs import wandb_report

    calls = []

    def publish(**arguments):
        assert (tmp_path / "out/report.html").exists()
        if refuses:
            raise UserError("no key")
        calls.append(arguments)
        return "https://address"

    monkeypatch.setattr(wandb_report, "publish", publish)
    if refuses:
        with pytest.raises(UserError, match="no key"):
            made(sweep, tmp_path / "out", wandb=True)
        return
    made(sweep, tmp_path / "out", wandb=True)
    (call,) = calls
    assert (call["project"], call["entity"], call["sweep_output"]) == ("unetseg", None, "gone")
    headings, texts = zip(*call["sections"], strict=True)
    assert headings[:3] == ("Answer", "Settings", "Paired differences")
    assert "| concat | 0.605" in texts[1]
    assert not any("figures/" in text or "<img" in text for text in texts)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory) -> Path:
    """Two real runs."""
    from unetseg.train import train

    root = tmp_path_factory.mktemp("trained")
    for skip in ("concat", "none"):
        own = (f"data.root={drawn}", f"output={root}", f"model.skip={skip}", f"name={skip}", "trainer.max_epochs=1")
        train(compose("train", Train, [*TINY, *own]))
    return root


@pytest.fixture(scope="module")
def of_trained(trained) -> Path:
    made(trained, trained / "report")
    return trained / "report"


def test_images_are_predicted_anew_and_shown_side_by_side(trained, of_trained):
    text = (of_trained / "report.md").read_text()
    tables = [pd.read_csv(trained / f"{skip}/per_image.csv", index_col="name") for skip in ("concat", "none")]
    mean = (sum(table.iou for table in tables) / 2).sort_values(ascending=False)
    part = text.partition("## Best, median and worst images")[2].partition("\n## ")[0].replace("\\", "")
    assert (
        f"best: {mean.index[0]}, mean IoU {mean.iloc[0]:.3f} | truth | concat {tables[0].iou[mean.index[0]]:.3f}"
        in part
    )
    assert f"worst: {mean.index[-1]}, mean IoU {mean.iloc[-1]:.3f}" in part
    assert part.count("| truth |") == 6


def test_all_images_are_in_a_gallery_the_worst_first(trained, of_trained, monkeypatch, tmp_path):
    from unetseg.reporting import sections

    text = (of_trained / "report.md").read_text()
    tables = [pd.read_csv(trained / f"{skip}/per_image.csv", index_col="name") for skip in ("concat", "none")]
    worst = (sum(table.iou for table in tables) / 2).sort_values()
    part = text.partition("test images by their mean IoU over all settings and seeds")[2].replace("\\", "")
    assert [f"{name} {iou:.3f}" for name, iou in worst.items()] == re.findall(
        r"\d+: (\S+ \d\.\d{3}) \|", part.partition("\n## ")[0]
    )
    assert f"{len(worst)} of {len(worst)} scored test images" in text
    thumbnails = sorted((of_trained / "figures").glob("gallery_*.jpeg"))
    assert len(thumbnails) == len(worst)
    assert max(path.stat().st_size for path in thumbnails) < 30_000
    monkeypatch.setattr(sections, "GALLERY", 2)
    assert f"2 of {len(worst)} scored test images" in made(trained, of_trained)
    assert len([*(of_trained / "figures").glob("gallery_*.jpeg")]) == 2, "those of the earlier report are removed"


def test_without_data_or_checkpoint_the_images_are_left_out_and_the_reason_is_given(trained, tmp_path, undrawn):
    copy = Path(shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("report")))
    options = yaml.safe_load((copy / "none/config.yaml").read_text())
    options["data"]["root"] = "nowhere"
    (copy / "none/config.yaml").write_text(yaml.safe_dump(options))
    said = lead(made(copy, tmp_path / "out"), "Best, median and worst images")
    assert re.match(r"Not shown: the data or the checkpoint of none can't be read \(.*nowhere", said)
    (copy / "none/checkpoints/best.ckpt").unlink()
    said = lead(made(copy, tmp_path / "out"), "Best, median and worst images")
    assert said == "Not shown: not there any more: none/checkpoints/best.ckpt."


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    for flag in (
        *flags,
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('user')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["output", "of_trained"])
def test_the_page_is_whole_in_a_browser(browser, request, which, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 2, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((request.getfixturevalue(which) / "report.html").as_uri())
    assert browser.get_log("browser") == []
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) > 10
    assert min(sizes) > 0
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return innerWidth") == width


def open_page(browser, page: Path, width: int, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.as_uri())


def test_a_picture_is_enlarged_by_mouse_and_keyboard_and_closed_by_escape(browser, output):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, output / "report.html", 1280, "light")
    button, dialog = browser.find_element(By.CLASS_NAME, "zoom"), browser.find_element(By.TAG_NAME, "dialog")
    small = button.find_element(By.TAG_NAME, "img")
    for enlarge, close in (
        (button.click, lambda: dialog.send_keys(Keys.ESCAPE)),
        (lambda: button.send_keys(Keys.ENTER), lambda: browser.switch_to.active_element.send_keys(Keys.ENTER)),
    ):
        enlarge()
        large = dialog.find_element(By.TAG_NAME, "img")
        assert large.get_attribute("src") == small.get_attribute("src")
        assert large.get_attribute("alt") == dialog.find_element(By.TAG_NAME, "p").text
        assert large.size["width"] > small.size["width"]
        close()
        assert not dialog.is_displayed()
        assert browser.switch_to.active_element == button


def test_the_page_is_dark_where_it_is_asked_for_and_its_figures_stay_on_white(browser, output):
    brightness = {}
    for scheme in ("light", "dark"):
        open_page(browser, output / "report.html", 1280, scheme)
        colours = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
        )
        brightness[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours]
    (page, ink), (dark_page, dark_ink) = brightness["light"], brightness["dark"]
    assert page - ink > 180
    assert dark_ink - dark_page > 180
    corner = np.asarray(Image.open(output / "figures/differences_iou.png").convert("RGBA"))[0, 0]
    assert corner.tolist() == [255] * 4


def test_a_table_with_more_columns_than_fit_has_a_shadow_at_its_end(browser, output):
    """At 390 px; the shadow is gone when the table is scrolled to its end."""
    from selenium.webdriver.common.by import By

    open_page(browser, output / "report.html", 390, "light")
    box = next(
        box
        for box in browser.find_elements(By.CLASS_NAME, "scroll")
        if browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth + 60", box)
    )
    darkest = []
    for place in (0, 10_000):
        browser.execute_script("arguments[0].scrollIntoView(); arguments[0].scrollLeft = arguments[1]", box, place)
        picture = np.asarray(Image.open(io.BytesIO(box.screenshot_as_png)).convert("L"))
        darkest.append(int(picture[2, -3:].min()))  # above the words of the first row
    assert darkest[0] < 200 < 250 < darkest[1]


def test_each_class_is_in_a_table_with_its_interval_over_seeds(tmp_path, undrawn):
    for seed, road in enumerate((0.5, 0.6, 0.7)):
        write_run(tmp_path / f"runs/concat_seed{seed}", "concat", seed)
        write_classes(tmp_path / f"runs/concat_seed{seed}", {"sky": 0.9, "road": road, "NA": np.nan})
    write_run(tmp_path / "runs/none_seed0", "none", 0)
    write_classes(tmp_path / "runs/none_seed0", {"sky": 0.8, "road": 0.4, "NA": np.nan})
    _, _, section = made(tmp_path / "runs", tmp_path / "report").partition("## Classes")
    section = section.partition("\n## ")[0]
    low, high = seed_interval([0.5, 0.6, 0.7])
    assert "from 0.550 (road) to 0.875 (sky)" in section, "by the mean over all runs"
    assert f"| road | 33.33 | 0.600 [{low:.3f}, {high:.3f}] | 0.400 |" in section
    assert "| NA | 50.00 | – | – |" in section


@pytest.mark.parametrize("classes", [{"background": 0.9, "pet": 0.5}, {"sky": 0.9, "road": 0.5, "car": 0.3}])
def test_classes_are_reported_where_there_are_three_and_every_run_has_them(tmp_path, undrawn, classes):
    for seed in SEEDS:
        write_run(tmp_path / f"runs/concat_seed{seed}", "concat", seed)
    write_classes(tmp_path / "runs/concat_seed0", classes)
    if len(classes) < 3:
        write_classes(tmp_path / "runs/concat_seed1", classes)
    assert "## Classes" not in made(tmp_path / "runs", tmp_path / "report")
