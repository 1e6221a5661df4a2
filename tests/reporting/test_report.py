"""The report of an ablation: its numbers against pandas, its words against the intervals, its page in a browser."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Report, Train
from unetseg.report import report

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
        flow += [(step, 0, "net", "all", "vanishing_slope", 0.1), (step, 0, "net", "all", "centre_dip", -2.5)]
    columns = ["step", "epoch", "kind", "block", "metric", "value"]
    pd.DataFrame(flow, columns=columns).to_csv(folder / "gradient_flow.csv", index=False)
    edges = pd.DataFrame(
        {"from_px": [1, 2], "to_px": [1, np.inf], "pixels": [100, 300], "errors": [40 + 20 * seed, 30]}
    )
    edges.assign(error_rate=edges.errors / edges.pixels).to_csv(folder / "edge_distance.csv", index=False)


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
            {"runs": str(runs), "output": str(output), "wandb": False, "plan": None, "pooled": False, **options}
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
        assert mean == f"{expected:+.4f}".replace("-", "−")
        assert (seeds, images, shown) == ("2", "40", "no" if "none" not in (other, base) else "yes")
        low, high = (float(end.replace("−", "-")) for end in span.strip("[]").split(", "))
        assert low < expected < high
        assert float(smallest) > 0
        assert (p == "< 0.001" or float(p.lstrip("\\<")) < 0.05) == (shown == "yes")


def test_the_answer_claims_what_was_shown_and_says_how_small_the_rest_must_be(text):
    answer = lead(text, "Answer")
    assert answer.startswith("Compared with concat, IoU per image is lower with none; no difference was shown for add")
    assert re.search(r"the smallest that could have been: 0\.0\d\d\)\.$", answer)
    assert "Intervals cover the choice of seeds and of test images." in text
    assert "2 of 3 in IoU per image" in lead(text, "Paired differences")


def test_with_one_seed_nothing_is_said_about_another_training(copy, tmp_path):
    for folder in copy.glob("*_seed1"):
        shutil.rmtree(folder)
    text = made(copy, tmp_path / "out")
    assert "One seed each: seeds were not varied, so the intervals cover the images only; nothing is said" in text
    assert "choice of seeds" not in text


def test_a_pair_uses_the_seeds_that_both_have(copy, tmp_path):
    shutil.rmtree(copy / "add_seed1")
    text = made(copy, tmp_path / "out")
    assert rows(text, "Paired differences")["add − none"][4] == "1"
    assert "With add seeds were not varied (one seed)" in text


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
    assert "Not shown: the settings have different test images." in text


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


def test_gradients_edges_and_lesions_are_told(text):
    assert "the greatest skip share (median over steps) is 0.20, level 2 of concat" in lead(text, "Gradient flow")
    assert "It is 0 throughout with none." in text
    assert rows(text, "Gradient flow")["add"] == ["+0.100", "−2.500", "0.605"]
    assert rows(text, "Errors by distance to the edge")["add"] == [
        "50.0\N{NO-BREAK SPACE}%",
        "10.0\N{NO-BREAK SPACE}%",
    ]  # (40 + 60) / 200, 60 / 600
    assert lead(text, "Lesions").endswith("level 2 of none (seed 0): 0.044 [0.010, 0.010].")


def test_commands_versions_and_runs_are_listed(text):
    part = text.partition("## Behind the numbers")[2]
    assert "```\npython -m unetseg.ablate there\npython -m unetseg.train -m here\n```" in part
    assert "| torch | 2.15.0 |" in part
    assert "| add | add\\_seed1 | 1 | 0.6100 | 3 | 1:15 |" in part
    assert "/gone" not in text


def test_the_page_needs_nothing_else_and_markdown_finds_its_pictures(output, text):
    page = (output / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http" not in page
    pictures = set(re.findall(r"figures/([\w.]+png)", text))
    assert pictures == {path.name for path in (output / "figures").iterdir()}
    assert {"differences_iou.png", "val_iou.png", "gradient_3.png", "skip_share_level2.png"} < pictures


def test_names_from_outside_are_escaped(copy, tmp_path):
    record = json.loads((copy / "sweep.json").read_text())
    (copy / "sweep.json").write_text(json.dumps(record | {"command": "<script>alert(1)</script>"}))
    made(copy, tmp_path / "out")
    assert "<script" not in (tmp_path / "out/report.html").read_text()


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


def test_without_data_or_checkpoint_the_images_are_left_out_and_the_reason_is_given(trained, tmp_path, undrawn):
    copy = Path(shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("report")))
    options = yaml.safe_load((copy / "none/config.yaml").read_text())
    options["data"]["root"] = "nowhere"
    (copy / "none/config.yaml").write_text(yaml.safe_dump(options))
    said = lead(made(copy, tmp_path / "out"), "Best, median and worst images")
    assert re.match(r"Not shown: the data or the checkpoint of none can't be read \(.*nowhere", said)
    (copy / "none/checkpoints/best.ckpt").unlink()
    said = lead(made(copy, tmp_path / "out"), "Best, median and worst images")
    assert said == "Not shown: checkpoints/best.ckpt is not there any more (none)."


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
