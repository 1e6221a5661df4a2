"""The benchmark itself: what it computes from known numbers, and that a slow loader shows up where it belongs."""

import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "scripts"))

import benchmark
from benchmarks import breakdown, comparison, gradients, growth, held, int8, memory, pictures, report, startup, train
from benchmarks.comparison import Spread

from unetseg import launch
from unetseg.data.datamodule import SegmentationData
from unetseg.data.sources import find
from unetseg.errors import UserError

RESULT = report.Result(
    "resnet18, 2 rounds",
    [[{"": "ours", "images/s": 4.5678, "s": 1234.6, "times": Spread(0.5, 0.25, 0.75)}], [{"row": "step", "%": 97.25}]],
    {"ours, s": [1.0, 2.0]},
)


def test_all_take_turns_in_an_order_that_changes_and_the_warm_up_is_left_out():
    calls = []

    def measured(kind):
        calls.append(kind)
        return float(len(calls))

    kinds = {kind: lambda kind=kind: measured(kind) for kind in "abc"}
    found = comparison.interleaved(kinds, rounds=9, warm_up=1)
    rounds = ["".join(calls[first : first + 3]) for first in range(0, 30, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    before = {one + other for each in rounds for one, other in itertools.pairwise(each)}
    assert len(before) == 6, "each comes after each other one"
    for kind in "abc":
        assert found[kind].tolist() == [
            3 * number + each.index(kind) + 1 for number, each in enumerate(rounds) if number
        ]


def test_the_pause_before_a_turn_is_not_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(comparison.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    assert comparison.timed(lambda: now.append(now.pop() + 3.0), pause=0.5)() == 3
    assert now == [3.5]


def test_a_spread_is_the_median_with_the_middle_half_or_with_all():
    rounds = np.array([5.0, 1, 4, 2, 3])
    assert comparison.spread(rounds) == Spread(3, 2, 4)
    assert comparison.spread(rounds, whole=True) == Spread(3, 1, 5)


def test_ratios_are_taken_within_a_round():
    # the machine is half as fast in the second round, for all three alike
    limit = np.array([20.0, 10, 20])
    rows = train.comparison({"limit": limit, "ours": 0.9 * limit, "peer": 0.6 * limit})
    ours = {row[""]: row for row in rows}["ours"]
    assert ours["images/s"] == pytest.approx((18, 9, 18))
    assert ours["times the limit"] == pytest.approx((0.9, 0.9, 0.9))
    assert ours["times the peer"] == pytest.approx((1.5, 1.5, 1.5))


def test_the_cost_of_reading_gradients_every_few_steps():
    kinds = {"step": 2.0, "read": 2.5, "read, exits": 4.0, "watch, hooks only": 2.2, "watch, logging": 3.0}
    costs = gradients.extra_cost({kind: np.array([seconds]) for kind, seconds in kinds.items()})
    assert costs["every 25 steps"]["GradientFlow"] == pytest.approx(0.25 / 25)
    assert costs["every 25 steps"]["wandb.watch"] == pytest.approx((0.5 + 24 * 0.1) / 25)
    assert costs["every 1 step"]["GradientFlow with the exits"] == pytest.approx(1.0)
    (as_set,) = costs["as set: every 25, the exits every 250"].values()
    assert as_set == pytest.approx((9 * 0.25 + 1.0) / 250)


def test_start_up_is_held_against_the_imports_of_its_round():
    rows = startup.table({startup.IMPORTS: np.array([10.0, 20]), startup.FIRST_STEP: np.array([12.0, 25])})
    assert rows[1]["times the imports"] == pytest.approx((1.225, 1.2, 1.25))
    assert rows[1]["promised at most"] == "1.3 times the imports"


def test_linear_growth_has_the_exponent_1_and_quadratic_growth_2():
    around = growth.axes(images=8, size=64, epochs=2)
    assert [cell.size for cell in around["pixels"]] == [32, 64, 128]
    linear = {cell: cell.images * cell.size**2 * cell.epochs for line in around.values() for cell in line}
    measured = {
        "training": {cell: np.array([cost, 3 * cost]) for cell, cost in linear.items()},
        "whole run": {cell: np.array([cost**2, cost**2]) for cell, cost in linear.items()},
    }
    runs, exponents = growth.tables(around, measured)
    assert len(runs) == 9
    assert [row["exponent of"] for row in exponents] == ["images", "pixels", "epochs"]
    for row in exponents:
        assert row["training"] == pytest.approx((1, 1, 1))
        assert row["whole run"] == pytest.approx((2, 2, 2))


def test_an_epoch_has_the_images_asked_for_also_of_a_smaller_set(drawn_set, tmp_path):
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train

    root = pictures.link_pets(drawn_set, tmp_path / "pets", train_images=40)
    options = compose("train", Train, ["data=pets", f"data.root={root}", "model.weights=null"]).data
    splits = find({**options.model_dump(), "name": "pets", "root": root}, 0).splits
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 40, "val": 5, "test": 4}
    files = [examples[i].image for examples in splits.values() for i in range(len(examples))]
    assert len(set(files)) == len({path.name for path in files}) == 49
    assert all(path.is_file() for path in files)


def test_a_folder_without_the_layout_is_refused_with_a_way_on(tmp_path):
    with pytest.raises(UserError, match=r"no annotations/trainval\.txt and test\.txt"):
        pictures.official_layout(tmp_path)


def test_a_moment_counts_for_the_innermost_action_from_the_end_of_the_first_batch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(breakdown, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    rows = breakdown.Rows()

    def act(action, *inside, seconds=0.0):
        with rows.profile(action):
            for each in inside:
                act(*each[:-1], seconds=each[-1])
            now[0] += seconds

    batch = [
        ("[_TrainingEpochLoop].train_dataloader_next", 1.0),
        ("[Callback]FlowReadings.on_train_batch_start", 2.0),
        ("run_training_batch", ("[Strategy]SingleDeviceStrategy.training_step", (breakdown.METRICS, 3.0), 4.0), 5.0),
        ("[LightningModule]SegmentationModule.on_train_batch_end", 6.0),
        ("[Callback]Cost.on_train_batch_end", 7.0),
    ]
    for _ in range(2):
        act("run_training_epoch", *batch, *batch, (breakdown.VALIDATION, 100.0), seconds=50.0)
    assert rows.batches == 2
    assert rows.seconds == {
        breakdown.WAITING: 2 * 1,
        breakdown.FLOW: 2 * 2,
        breakdown.METRICS: 2 * 3,
        breakdown.STEP: 2 * (4 + 5),
        breakdown.OTHER: 2 * (6 + 7),
    }


def test_a_slow_loader_shows_up_as_waiting_for_data_and_nowhere_else(drawn, tmp_path, monkeypatch):
    slept = []
    loader_of = SegmentationData.train_dataloader

    def slow_loader(self):
        loader = loader_of(self)
        collate = loader.collate_fn

        def slow(examples):
            start = time.perf_counter()
            time.sleep(0.5)
            slept.append(time.perf_counter() - start)
            return collate(examples)

        loader.collate_fn = slow
        return loader

    monkeypatch.setattr(SegmentationData, "train_dataloader", slow_loader)
    own = ("data.size=32", "trainer.max_epochs=1", "gradients.every_n_steps=2", f"data.root={drawn}")
    parts = breakdown.breakdown([*TINY, *own, f"output={tmp_path}"])
    seconds = parts["seconds"]
    assert parts["batches"] == len(slept) - 1 == 4  # 18 images by 4; the first batch doesn't count
    assert seconds[breakdown.WAITING] > sum(slept[1:])
    # a moment counts once: the rows are what images_per_second comes from, so the sleep isn't in another row as well
    assert sum(seconds.values()) == pytest.approx((18 - 4) / parts["images_per_second"], rel=0.05)
    assert all(seconds[row] > 0 for row in breakdown.ROWS)
    waiting = train.shares(parts)[0]
    assert waiting["ours"] == "waiting for data"
    assert waiting["ms a step"] > 500


def test_what_is_patched_for_the_breakdown_is_put_back():
    from unetseg.training import module

    before = module.image_counts, module.SegmentationModule.log
    with breakdown.watched(breakdown.Rows()):
        assert module.image_counts is not before[0]
    assert (module.image_counts, module.SegmentationModule.log) == before


def test_the_json_and_the_markdown_agree_and_hold_all_measurements(tmp_path, capsys):
    json_file, markdown_file = tmp_path / "new" / "machine.json", tmp_path / "new" / "machine.md"
    json_file.parent.mkdir()
    report.write({"train": report.entry(RESULT, "python scripts/benchmark.py train")}, json_file)
    files = ["--json", str(json_file), f"--output={markdown_file}"]
    benchmark.main(["metrics", "--encoder", "resnet18", "--size=32", "--batch-size", "2", "--rounds", "2", *files])
    entries, text = json.loads(json_file.read_text()), markdown_file.read_text()
    assert text == report.markdown(entries)
    assert (
        re.findall("^## (.*)$", text, re.MULTILINE)
        == list(entries)
        == [
            "train",
            "metrics --encoder resnet18 --size=32 --batch-size 2 --rounds 2",
        ]
    )
    assert "`python scripts/benchmark.py metrics --encoder resnet18 --size=32 --batch-size 2 --rounds 2`" in text
    assert "| ours | 4.57 | 1,235 | 0.50 (0.25 to 0.75) |" in text
    assert "| step | 97.2 |" in text
    measured = entries["metrics --encoder resnet18 --size=32 --batch-size 2 --rounds 2"]
    seconds = {kind: np.array(values) for kind, values in measured["rounds"].items()}
    share = comparison.spread(100 * seconds["metrics, s"] / seconds["step, s"])
    assert measured["tables"] == [[{"": "metrics of a training batch", "% of a bare step": share._asdict()}]]
    assert f"| {share.median:.2f} ({share.low:.2f} to {share.high:.2f}) |" in text
    printed = capsys.readouterr().out
    assert "## metrics" in printed
    assert "## train" not in printed


def test_a_step_leaves_no_tensor_behind(drawn, tmp_path):
    """A process's memory moves by more than a leak of 100 steps: `python scripts/benchmark.py memory` takes 2,000."""
    long = ("data.size=32", "data.train_images=45", "data.batch_size=2", "trainer.max_epochs=4")
    own = (*long, "gradients.every_n_steps=10", f"data.root={drawn}", f"output={tmp_path}")
    found = dict(memory.trained([*TINY, *own], every=10, look=memory.in_tensors))
    assert found.keys() == set(range(10, 81, 10))
    assert found[30] == found[50] == found[70], "in the middle of the second epoch and of the others"
    kept = torch.ones(1000)
    before = memory.in_tensors()
    del kept
    assert memory.in_tensors() == before - 4000


IN_USE = """
import mmap, subprocess, sys
from benchmarks import memory

child = "kept = b'x' * (64 << 20); print(flush=True); input()"
before = memory.in_use()
kept = mmap.mmap(-1, 64 * memory.MIB)  # fresh pages, and not some that were freed
kept.write(b"x" * len(kept))
print(memory.in_use() - before)
child = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(memory.in_use() - before)
child.communicate(b"\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_memory_that_grows_is_seen_here_and_in_children():
    # In a process of its own: a test's worker may have children that start up just now.
    done = subprocess.run(
        [sys.executable, "-c", IN_USE], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    here, both = map(int, done.stdout.split())
    assert here == pytest.approx(64 * memory.MIB, rel=0.1)
    assert both > 2 * 64 * memory.MIB
    assert memory.growth([(step, 5000 + 100 * max(step, 50)) for step in range(100)]) == pytest.approx(100)


@pytest.mark.parametrize("what", benchmark.MEASUREMENTS)
def test_every_measurement_can_be_asked_for_with_exactly_its_own_options(what):
    arguments = vars(benchmark.parser().parse_args([what]))
    measure = importlib.import_module(f"benchmarks.{what}").measure
    assert arguments.keys() - {"what", "json", "output"} == inspect.signature(measure).parameters.keys()
    assert arguments.get("rounds", 2) >= 2
    assert f"\n{what} " in benchmark.__doc__


def test_int8_asks_for_runs(capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["int8"])
    assert caught.value.code == 2
    assert "int8 needs --checkpoint RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train", "--pets", "nowhere"], "no annotations/trainval.txt and test.txt"),
        (["metrics", "--encoder", "nope"], "nope"),
        (["metrics", "--size", "0"], "from 32 on, a multiple of 32"),
        (["metrics", "--size", "33"], "a multiple of 32"),
        (["metrics", "--rounds", "0"], "a whole number from 1 on"),
        (["train", "--workers", "-1"], "a whole number from 0 on"),
        (["metrics", "--json", "folder"], "is a folder"),
        (["metrics", "--json", "file/x.json"], "can't be written"),
        (["metrics", "--json", "damaged.json"], "holds no measurements"),
        (["metrics", "--json", "other.json"], "holds no measurements"),
        (["metrics", "--json", "list.json"], "holds no measurements"),
        (["metrics", "--json", "deep.json"], "holds no measurements"),
        (["metrics", "--json", "pipe"], "holds no measurements"),
        (["metrics", "--output", "by_hand.md"], "wasn't drawn from --json's measurements"),
        (["metrics", "--json", "one", "--output", "one"], "are one file"),
        (["metrics", "--out", "by_hand.md"], "unrecognized arguments"),
        (["train", "--steps", "1"], "a whole number from 2 on"),
        (["train", "--cache", "nope"], "invalid choice"),
        (["growth", "--size", "96"], "a multiple of 64"),
        (["growth", "--epochs", "1"], "a whole number from 2 on"),
    ],
    ids=" ".join,
)
def test_wrong_input_ends_with_status_2_before_a_measurement(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} has begun"))
    (tmp_path / "folder").mkdir()
    for name, content in (("file", ""), ("damaged.json", "{"), ("other.json", '{"a": 1}'), ("list.json", "[]")):
        (tmp_path / name).write_text(content)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "by_hand.md").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        benchmark.main(given)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert (tmp_path / "by_hand.md").read_text() == "mine"


def test_a_run_that_is_not_there_ends_with_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["int8", "--checkpoint", str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_what_was_added_during_a_measurement_stays(tmp_path, monkeypatch):
    file = tmp_path / "machine.json"

    def measured(**_):
        report.write({"train": report.entry(RESULT, "python scripts/benchmark.py train")}, file)
        return RESULT

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(measure=measured))
    benchmark.main(["metrics", "--json", str(file)])
    assert [*json.loads(file.read_text())] == ["train", "metrics"]


def test_what_is_put_in_the_place_of_the_tables_meanwhile_stays(tmp_path, monkeypatch):
    file, text = tmp_path / "machine.json", tmp_path / "machine.md"

    def measured(**_):
        text.write_text("mine")
        return RESULT

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(measure=measured))
    with pytest.raises(SystemExit):
        benchmark.main(["metrics", "--json", str(file), "--output", str(text)])
    assert text.read_text() == "mine"
    assert [*json.loads(file.read_text())] == ["metrics"], "the measurement isn't lost"


def test_runs_of_two_settings_are_not_one():
    known = {"classes": ["x"], "data": {"size": 64}, "model": {}}
    int8.check_alike(["a", "c"], [known, {**known}])
    with pytest.raises(UserError, match="b differs from a in its data"):
        int8.check_alike(["a", "c", "b"], [known, {**known}, known | {"data": {"size": 32}}])


def test_what_is_stopped_ends_with_a_message(monkeypatch, capsys):
    def stopped(**_):
        raise KeyboardInterrupt

    died = []
    monkeypatch.setattr(launch, "die_of_ctrl_c", lambda: died.append(True))
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(measure=stopped))
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["metrics"])
    assert (caught.value.code, died) == (130, [True])
    assert capsys.readouterr().err == "benchmark.py: stopped\n"


def test_help_waits_for_no_framework():
    code = "import sys, benchmark\ntry: benchmark.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.stdout.endswith("False\n")


def test_held_memory_is_compared_with_what_glibc_does_by_itself(monkeypatch):
    def limit(*arguments):
        by_itself = arguments[-1] == held.BY_ITSELF
        return {"images_per_second": 10.0 if by_itself else 12.0, "peak_memory": (3 if by_itself else 4) * 2**30}

    monkeypatch.setattr(held.processes, "limit", limit)
    rows = {row["freed memory"]: row for row in held.measure("resnet18", 32, 2, 2, 3).tables[0]}
    assert rows["held"]["times as glibc has it"] == pytest.approx((1.2, 1.2, 1.2))
    assert rows["held"]["peak memory, MiB"] == 4096
