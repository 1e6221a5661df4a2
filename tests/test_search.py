"""A search: each trial once, the bad ones ended early, and what is killed goes on as if nothing had been."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY

from unetseg import ablate
from unetseg.errors import UserError
from unetseg.options.command import sweep_of
from unetseg.options.command_schema import Report
from unetseg.options.compose import compose_runs, runs_of
from unetseg.options.schema import Ablate
from unetseg.report import report
from unetseg.runs import sweep
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun
from unetseg.runs.tables import read_trials

optuna = pytest.importorskip("optuna")
from unetseg.options.space import space_of  # noqa: E402
from unetseg.runs import search  # noqa: E402

SPACE = space_of(["optimizer.lr=interval(0,1)", "model.skip=concat,add"])[1]
EPOCHS = 4

STUB = """
    # Stands in for unetseg.train: val/iou is 1 - |lr - 0.3| at the end of four epochs.
    import pathlib, sys, time
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    folder = pathlib.Path(given["output"].strip('"'), given["name"].strip('"'))
    folder.mkdir(parents=True, exist_ok=True)
    print("begins", flush=True)
    if (folder.parent / f"broken_{folder.name}").exists():
        raise SystemExit("out of luck")
    with (folder / "metrics.csv").open("a") as file:
        for epoch in range(len((folder / "metrics.csv").read_text().splitlines()), 4):
            value = (1 - abs(float(given["optimizer.lr"]) - 0.3)) * (1 + epoch) / 4
            print(f"{epoch},{epoch},val/iou,{value}", file=file, flush=True)
            time.sleep(SECONDS)
    (folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Return a function that makes the search of a folder, with a quick stand-in for training."""

    def make(
        name: str = "one", trials: int = 5, seconds: float = 0.0, changes: dict[str, str] | None = None
    ) -> search.Search:
        folder = tmp_path / name
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        script = tmp_path / "stub.py"
        text = textwrap.dedent(STUB).replace("SECONDS", str(seconds))
        for before, after in (changes or {}).items():
            assert before in text
            text = text.replace(before, after)
        script.write_text(text)
        monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(script)))

        def run(number, values):
            place = folder / search.trial_name(number)
            overrides = [f"{key}={value}" for key, value in values.items()]
            log = folder / "logs" / f"{place.name}.log"
            return SweepRun(
                place.name, overrides, SimpleNamespace(trainer={"max_epochs": EPOCHS}), RunFolder(place), log
            )

        return search.Search(folder, SPACE, trials, 7, run)

    return make


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return [*csv.DictReader(file)]


def finish(study: search.Search, jobs: int = 1) -> list[dict[str, str]]:
    for _ in study.run(jobs):
        pass
    return rows(study.folder)


def begun(folder: Path) -> dict[str, int]:
    """Return how often each trial's process has begun."""
    return {log.stem: log.read_text().count("begins") for log in sorted((folder / "logs").glob("*.log"))}


def test_a_trials_value_is_its_best_validation_iou(searched):
    study = searched()
    table = finish(study)
    assert [row["state"] for row in table] == ["finished"] * 5
    for row in table:
        assert float(row["val/iou"]) == pytest.approx(1 - abs(float(row["optimizer.lr"]) - 0.3), abs=1e-12)
    best = max(table, key=lambda row: float(row["val/iou"]))
    run, iou, values = study.ranked()[0]
    assert (run.name, repr(iou), str(values["optimizer.lr"])) == (best["folder"], best["val/iou"], best["optimizer.lr"])


@pytest.mark.parametrize(("checkpoint", "share"), [("last.ckpt", 1 / 4), ("best.ckpt", 1)])
def test_a_trials_value_is_that_of_the_checkpoint_that_it_tested(searched, checkpoint, share):
    falling = {"(1 + epoch) / 4": "(4 - epoch) / 4", '"{}"': f'\'{{"checkpoint": "{checkpoint}"}}\''}
    study = searched(trials=2, changes=falling)
    for row in finish(study):
        assert float(row["val/iou"]) == pytest.approx(share * (1 - abs(float(row["optimizer.lr"]) - 0.3)), abs=1e-12)
    assert [repr(iou) for _, iou, _ in study.ranked()] == sorted(row["val/iou"] for row in rows(study.folder))[::-1]


def test_jobs_run_at_once_and_end_at_the_number_of_trials(searched):
    study = searched(trials=5, seconds=0.2)
    at_once = 0
    for _ in study.run(2):
        at_once = max(at_once, sum(run.state == "running" for run in study.runs))
    assert at_once == 2
    assert len(rows(study.folder)) == study.finished == 5


def test_a_stopped_search_goes_on_to_the_trials_of_one_that_was_not(searched):
    whole = finish(searched("whole", trials=4))
    stopped = searched("stopped", trials=4, seconds=0.4)
    running = stopped.run(1)
    while len(stopped.runs) < 3 or not stopped.runs[2].validations():
        next(running)
    running.close()
    assert [row["state"] for row in rows(stopped.folder)] == ["finished", "finished", "running"]
    assert finish(searched("stopped", trials=4)) == whole
    assert begun(stopped.folder) == {"trial_000": 1, "trial_001": 1, "trial_002": 2, "trial_003": 1}
    more = finish(searched("stopped", trials=6))
    assert more[:4] == whole
    assert len(more) == 6


def test_a_trial_that_ended_while_nobody_watched_is_counted_and_not_trained_again(searched, tmp_path):
    study = searched(trials=1)
    study.study.ask(SPACE)
    folder = study.folder / "trial_000"
    folder.mkdir()
    (folder / "metrics.csv").write_text("0,0,val/iou,0.25\n1,1,val/iou,0.75\n")
    (folder / "config.yaml").touch()
    (folder / "summary.json").write_text("{}")
    table = finish(searched(trials=1))
    assert [(row["state"], row["val/iou"]) for row in table] == [("finished", "0.75")]
    assert begun(study.folder) == {}


def test_a_trial_that_was_killed_while_it_was_drawn_is_none(searched):
    study = searched(trials=2)
    study.study.ask().suggest_float("optimizer.lr", 0, 1)
    table = finish(searched(trials=2))
    assert [row["state"] for row in table] == ["failed", "finished", "finished"]


def test_a_study_with_trials_of_another_space_is_refused(searched):
    """What such a trial names would be typed in nobody's command."""
    study = searched(trials=1)
    study.study.ask({**SPACE, "model.skip": optuna.distributions.CategoricalDistribution(["strange:Skip"])})
    with pytest.raises(UserError, match=r"study\.db was altered: trial 0 has values of another space"):
        searched(trials=1)


@pytest.mark.quick
def test_a_bad_trial_is_pruned_and_counts_once(searched):
    """Optuna's MedianPruner measures by the finished trials, once there are five: here they are all at 1."""
    good = {"params": {"optimizer.lr": 0.3, "model.skip": "add"}, "distributions": SPACE, "value": 1.0}
    study = searched(trials=6)
    for _ in range(5):
        study.study.add_trial(optuna.trial.create_trial(**good, intermediate_values=dict.fromkeys(range(EPOCHS), 1.0)))
    study = searched(trials=6, seconds=0.6)
    table = finish(study)
    assert [row["state"] for row in table] == ["finished"] * 5 + ["pruned"]
    assert int(table[5]["validations"]) < EPOCHS
    assert not study.runs[5].folder.summary.exists()
    assert len(finish(searched(trials=6))) == 6


@pytest.mark.parametrize(("every", "first"), [(1, 6), (5, 10), (10, 10)])
def test_none_is_pruned_in_the_first_quarter_of_its_epochs_however_rare_validations_are(every, first, tmp_path):
    """A quarter of 20 epochs are 5; the validation after more of them is the first that may end a trial."""
    run = SweepRun("run", [], SimpleNamespace(trainer={"max_epochs": 20}), RunFolder(tmp_path), tmp_path / "log")
    bad = SimpleNamespace(should_prune=lambda: True)
    ended = []
    for epoch in range(every - 1, 20, every):
        with run.folder.metrics.open("a") as file:
            print(f"{7 * epoch},{epoch},val/iou,0.1", file=file)
        ended += [epoch + 1] if search._is_bad(bad, run) else []
    assert ended[0] == first
    assert run.progress() == (20, 0.1)
    assert len(run.validations()) == 20 // every


def test_the_option_that_sets_the_best_apart_is_the_important_one(searched):
    study = searched(trials=40)
    for number in range(40):
        values = {"optimizer.lr": number / 40, "model.skip": ("add", "concat")[number % 2]}
        study.study.add_trial(optuna.trial.create_trial(params=values, distributions=SPACE, value=number / 40))
        shares = study.importance()
        assert (len(shares) == 2) == (number + 1 >= search.ENOUGH)
    assert shares["optimizer.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_a_trial_that_fails_is_replaced_by_the_next_command_only(searched):
    study = searched(trials=3)
    (study.folder / "broken_trial_001").touch()
    assert [row["state"] for row in finish(study)] == ["finished", "failed", "finished"]
    assert "out of luck" in ablate.failures(study.runs)
    table = read_trials(study.folder / "trials.csv", [*SPACE])
    assert table["val/iou"].isna().tolist() == [False, True, False]
    again = searched(trials=3)
    assert [row["state"] for row in finish(again)] == ["finished", "failed", "finished", "finished"]
    assert ablate.failures(again.runs) == ""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_whose_options_do_not_go_together_has_failed(searched, tmp_path, monkeypatch):
    stub = searched(trials=1)  # which stands in for training
    stub.lock.release()
    monkeypatch.setattr(search.optuna.samplers, "TPESampler", optuna.samplers.BruteForceSampler)
    given = ["data=synthetic", "search=optuna", "trials=3", f"output={tmp_path}", "name=s", "optimizer.lr=0.3"]
    given += ["optimizer.schedule=cosine,plateau", "optimizer.warmup_epochs=0,1"]
    runs = ablate.ablate(sweep_of("ablate", Ablate, given, preflight=lambda options: None), given)
    assert sorted(row["state"] for row in rows(tmp_path / "s")) == ["failed", "finished", "finished"]
    failed = ablate.failures(runs)
    assert "don't go together" in failed
    assert "warmup_epochs=0 with schedule=plateau" in failed
    assert "1 of 3 runs failed" in failed


def test_a_second_process_is_refused(searched):
    folder = searched().folder
    code = f"import fcntl, sys, time; f = open({str(folder / '.lock')!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
    other = subprocess.Popen(
        [sys.executable, "-c", code + "print('locked', flush=True); sys.stdin.read()"], stdin=-1, stdout=-1
    )
    try:
        assert other.stdout.readline()
        with pytest.raises(UserError, match=r"is being searched by another process\n.*jobs=N.*\n  try: wait for it"):
            searched()
    finally:
        other.kill()
        other.wait()


QUICK = """
import sys
from unetseg import ablate
from unetseg.runs import sweep
sweep.TRAIN = sys.executable, sys.argv.pop(1)
ablate.main()
"""
TRAINER = """
    # Stands in for unetseg.train: its options, folder and files. It waits in an epoch while a file holds it.
    import pathlib, sys, time
    sys.path.insert(0, {root!r})
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.runs.folder import RunFolder
    from unetseg.train import options_of_resumed_run
    given = sys.argv[1:]
    options = options_of_resumed_run(given) or compose("train", Train, given)
    run = RunFolder.resume(options) if options.resume else RunFolder.create(options)
    print("resumes" if options.resume else "begins", flush=True)
    with run.metrics.open("a") as file:
        for epoch in range(len(run.metrics.read_text().splitlines()), 3):
            print(f"{{epoch}},{{epoch}},val/iou,{{options.optimizer.lr + epoch / 10}}", file=file, flush=True)
            while (pathlib.Path(__file__).parent / f"hold_{{run.path.name}}").exists():
                time.sleep(0.02)
    run.summary.write_text("{{}}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent on Linux")
def test_after_kill_9_the_same_command_takes_up_the_trial_that_was_running(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER).format(root=str(ROOT)))
    hold = tmp_path / "hold_trial_001"
    hold.touch()
    folder = tmp_path / "suche?, a=b 100%"  # what Hydra or a URL would take apart
    own = ["data=synthetic", "optimizer.lr=interval(0.1,0.5)", "search=optuna", "trials=3", f"output='{folder}'"]
    command = [sys.executable, "-c", QUICK, str(script), *own, "name=s"]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    second = RunFolder(folder / "s/trial_001")
    while not (second.metrics.is_file() and "val/iou" in second.metrics.read_text()):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    hold.unlink()
    before = rows(folder / "s")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 trials, 1 of them finished before" in done.stdout
    assert "all 3 runs are done" in done.stdout
    after = rows(folder / "s")
    assert [row["state"] for row in before] == ["finished", "running"]
    assert [row["state"] for row in after] == ["finished"] * 3
    assert [row["optimizer.lr"] for row in before] == [row["optimizer.lr"] for row in after[:2]]
    assert (folder / "s/logs/trial_001.log").read_text().split() == ["begins", "resumes"]
    for row in after:
        assert float(row["val/iou"]) == pytest.approx(float(row["optimizer.lr"]) + 0.2)
    other = subprocess.run([*command, "seed=1"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "holds something else: seed: 0 -> 1" in other.stderr


def test_a_real_search_ends_in_a_report_by_validation_and_a_command_for_the_test(drawn, tmp_path, capsys):
    tiny = [option for option in TINY if "size=64" not in option and "max_epochs" not in option]
    own = ["data.size=32", f"data.root={drawn}", f"output={tmp_path}", "name=s", "trainer.max_epochs=1"]
    sweep_options = ["search=optuna", "trials=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    found = ablate.call(*tiny, *own, *sweep_options)
    said = capsys.readouterr().out
    table = rows(found.folder)
    assert [row["state"] for row in table] == ["finished"] * 2
    for row in table:
        summary = json.loads((found.folder / row["folder"] / "summary.json").read_text())
        assert summary["val/iou"] == pytest.approx(float(row["val/iou"]), abs=1e-6)
    further = re.search(r"did not use: (python.*)", said)[1]
    words = shlex.split(further)[3:]
    jobs = runs_of(words)
    assert [options.seed for options in compose_runs("ablate", Ablate, jobs)] == [1, 2, 3]

    page = report(Report(runs=str(found.folder), output=None, wandb=False, plan=None, pooled=False, trust=False))
    text = page.with_name("report.md").read_text()
    best = max(table, key=lambda row: float(row["val/iou"]))
    assert f"{best['folder']} has the best validation IoU".replace("_", "\\_") in text
    assert "an optimistic estimate" in text
    assert further in text
    assert "IoU over the set" not in text, "no trial is chosen by its test score"
