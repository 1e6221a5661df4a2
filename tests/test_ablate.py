"""A sweep: each cell in a process of its own, and nothing trained twice, whatever is killed when."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import HANG, ROOT, TINY
from rich.console import Console

from unetseg import ablate
from unetseg.errors import UserError
from unetseg.options.compose import compose, compose_runs, runs_of
from unetseg.options.schema import Ablate, Train
from unetseg.options.settings import override
from unetseg.runs import sweep
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun
from unetseg.training import preflight

AXES = ["data=synthetic", "model.skip=concat,none", "seed=0,1"]

TRAINER = """
    # Stands in for unetseg.train: the same folder and files. It waits in an epoch while there is a file `held`.
    import json, os, pathlib, sys, time, yaml
    sys.path.insert(0, {root!r})
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.runs.folder import RunFolder
    from unetseg.train import options_of_resumed_run
    given = sys.argv[1:]
    options = options_of_resumed_run(given) or compose("train", Train, given)
    run = RunFolder.resume(options) if options.resume else RunFolder.create(options)
    print("begins", flush=True)
    if options.seed == {broken} and not pathlib.Path({mended!r}).exists():
        raise SystemExit("out of luck")
    with run.metrics.open("a") as file:
        done = len(run.metrics.read_text().splitlines())
        for epoch in range(done, options.trainer["max_epochs"]):
            time.sleep({seconds})
            print(f"{{epoch}},{{epoch}},val/iou,0.5", file=file, flush=True)
            while pathlib.Path({held!r}).exists():
                time.sleep(0.02)
    run.summary.write_text(json.dumps({{"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}}))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that puts a quick trainer in the place of the real one."""

    def install(broken=-1, seconds=0.02):
        script = tmp_path / "trainer.py"
        paths = {name: str(tmp_path / name) for name in ("mended", "held")}
        script.write_text(textwrap.dedent(TRAINER).format(root=str(ROOT), broken=broken, seconds=seconds, **paths))
        monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(script)))

    return install


def run_sweep(tmp_path, *overrides, axes=AXES):
    """Run a sweep in this process, as the door does; return its cells by name."""
    overrides = [*axes, f"output={tmp_path}/runs", "trainer.max_epochs=3", *overrides]
    jobs = runs_of(overrides)
    found = ablate.ablate(list(zip(jobs, compose_runs("ablate", Ablate, jobs), strict=True)))
    return {cell.name: cell for cell in found}


def test_every_cell_is_run_once_and_a_second_call_runs_none(fake, tmp_path, capsys):
    fake()
    first = run_sweep(tmp_path, "name=one")
    assert {name: cell.state for name, cell in first.items()} == dict.fromkeys(
        ["concat_seed0", "concat_seed1", "none_seed0", "none_seed1"], "done"
    )
    before = {name: cell.folder.summary.stat().st_mtime_ns for name, cell in first.items()}
    again = run_sweep(tmp_path, "name=one")
    assert {name: cell.folder.summary.stat().st_mtime_ns for name, cell in again.items()} == before
    assert "4 of them finished before" in capsys.readouterr().out
    assert all(cell.log.read_text().count("begins") == 1 for cell in again.values())


def test_runs_that_have_begun_do_not_need_what_their_weights_came_from(fake, tmp_path):
    fake()
    source = tmp_path / "encoder.pth"
    source.touch()
    given = ("name=one", f"model.weights={source}")
    cells = run_sweep(tmp_path, *given)
    source.unlink()
    half = cells["none_seed0"].folder
    half.summary.unlink()
    half.last.parent.mkdir(exist_ok=True)
    half.last.touch()
    again = run_sweep(tmp_path, *given)
    assert {cell.state for cell in again.values()} == {"done"}
    half.summary.unlink()
    half.last.unlink()
    with pytest.raises(UserError, match=r"encoder\.pth is not accepted"):
        run_sweep(tmp_path, *given)


def test_progress_is_a_line_a_cell_with_state_epoch_and_val_iou(fake, tmp_path, capsys):
    fake(seconds=1.2)
    run_sweep(tmp_path, "model.skip=none", "seed=0", axes=AXES[:1])
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert "none_seed0 running epoch 0/3" in lines
    assert any(re.fullmatch(r"none_seed0 running epoch [12]/3 val IoU 0\.5000 0:0\d left", line) for line in lines), (
        lines
    )
    assert lines[-1] == "none_seed0 done val IoU 0.5000"


def test_a_failing_cell_does_not_stop_the_others_and_is_tried_again(fake, tmp_path):
    fake(broken=0)
    first = run_sweep(tmp_path)
    assert [name for name, cell in first.items() if cell.state == "failed"] == ["concat_seed0", "none_seed0"]
    assert first["concat_seed1"].state == first["none_seed1"].state == "done"
    assert "out of luck" in first["none_seed0"].tail()
    (tmp_path / "mended").touch()
    assert {cell.state for cell in run_sweep(tmp_path).values()} == {"done"}


def test_the_door_lists_what_failed_with_its_log_and_exits_with_one(fake, tmp_path, capsys, monkeypatch):
    fake(broken=0)
    overrides = ["data=synthetic", "model.skip=concat,none", f"output={tmp_path}/runs", "trainer.max_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["ablate", *overrides])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    text = capsys.readouterr().err
    assert ended.value.code == 1
    assert text.count("out of luck") == 2
    assert "2 of 2 runs failed" in text


def test_more_seeds_go_on_in_the_same_folder_and_other_options_do_not(fake, tmp_path):
    fake()
    few = run_sweep(tmp_path, "seed=0", axes=AXES[:2])
    more = run_sweep(tmp_path, axes=[*AXES[:2], "seed=0,1,2"])
    other = run_sweep(tmp_path, "optimizer.lr=0.1", "seed=0", axes=AXES[:2])
    assert set(few) < set(more)
    assert few["none_seed0"].folder.path == more["none_seed0"].folder.path
    assert few["none_seed0"].folder.path.parent != other["none_seed0"].folder.path.parent


def test_a_folder_of_other_options_is_refused(fake, tmp_path):
    fake()
    run_sweep(tmp_path, "name=one")
    with pytest.raises(UserError, match=r"optimizer.lr: 0.001 -> 0.1.*\n.*\n  try: another name"):
        run_sweep(tmp_path, "name=one", "optimizer.lr=0.1")


@pytest.mark.quick
def test_the_record_of_the_sweep_names_its_cells_and_axes(fake, tmp_path):
    fake()
    found = run_sweep(tmp_path, "data.similarity=0,1", "model.skip=none", "seed=0", axes=AXES[:1])
    assert {name: cell.state for name, cell in found.items()} == {
        "none_similarity=0_seed0": "done",
        "none_similarity=1_seed0": "done",
    }
    record = json.loads((found["none_similarity=0_seed0"].folder.path.parent / "sweep.json").read_text())
    assert record["axes"] == {"data.similarity": [0.0, 1.0]}
    assert [cell["name"] for cell in record["cells"]] == list(found)


def test_jobs_run_at_once_and_share_the_gpus(fake, tmp_path, monkeypatch):
    fake(seconds=0.3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen = []
    real = sweep.SweepRun.poll
    monkeypatch.setattr(sweep.SweepRun, "poll", lambda cell: (real(cell), seen.append(cell.state)))
    found = run_sweep(tmp_path, "jobs=2")
    gpus = {json.loads(cell.folder.summary.read_text())["gpus"] for cell in found.values()}
    assert gpus == {"3", "5"}
    assert {cell.state for cell in found.values()} == {"done"}


@pytest.mark.parametrize(("gpus", "jobs", "shares"), [
    ([], 2, [[], []]), (["0", "1", "2", "3"], 2, [["0", "2"], ["1", "3"]]), (["7"], 3, [["7"], ["7"], ["7"]]),
    (["a", "b", "c"], 1, [["a", "b", "c"]])])  # fmt: skip
def test_gpus_are_dealt_out(gpus, jobs, shares):
    assert [sweep.share(gpus, jobs, slot) for slot in range(jobs)] == shares


@pytest.mark.parametrize("several", ["trainer.devices=2", "trainer.devices=auto", "++trainer.strategy=ddp"])
def test_several_devices_are_refused_in_a_multirun_with_the_way_on(several):
    with pytest.raises(UserError, match=r"(?s)in a multirun.*unetseg\.ablate"):
        preflight.one_device(compose("train", Train, ["data=synthetic", several]))


def command(tmp_path, drawn, *more):
    tiny = [override for override in TINY if "max_epochs" not in override]
    own = [f"data.root={drawn}", f"output={tmp_path}", "name=sweep", "trainer.max_epochs=3", *more]
    return [sys.executable, "-m", "unetseg.ablate", *tiny, "model.skip=concat,none", *own]


def wait_for(condition, process, seconds=HANG):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trainer_of(folder):
    """Return the process that trains in a folder."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_text().split("\0")
            except OSError:
                continue
            trains = "unetseg.train" in words or any(word.endswith("trainer.py") for word in words)
            place = {override("name", folder.name), override("output", str(folder.parent))}  # names are others' as well
            if trains and (override("resume", str(folder)) in words or place <= {*words}):
                return int(entry)
    return None


QUICK = """
import sys
from unetseg import ablate
from unetseg.runs import sweep
sweep.TRAIN = sys.executable, sys.argv.pop(1)
ablate.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_after_kill_9_of_a_child_and_of_ablate_the_same_command_finishes_the_sweep(fake, tmp_path):
    """The first cell is killed in its second epoch, then ablate itself in the second cell's second epoch.

    The trainer is a quick stand-in: that a killed training goes on to the same numbers is test_interruptions.py's.
    """
    fake()
    (tmp_path / "held").touch()
    folder = tmp_path / "läufe, a=b"  # what Hydra would take apart
    own = ["data=synthetic", "model.skip=concat,none", f"output='{folder}'", "name=sweep", "trainer.max_epochs=3"]
    command = [sys.executable, "-c", QUICK, str(tmp_path / "trainer.py"), *own]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first, second = (RunFolder(folder / "sweep" / f"{skip}_seed0") for skip in ("concat", "none"))
    wait_for(lambda: first.metrics.exists() and "val/iou" in first.metrics.read_text(), killed)
    os.kill(trainer_of(first.path), signal.SIGKILL)
    wait_for(lambda: second.metrics.exists() and "val/iou" in second.metrics.read_text(), killed)
    orphan = trainer_of(second.path)
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + HANG
    while trainer_of(second.path) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert trainer_of(second.path) is None, f"{orphan} outlived ablate"
    assert not any(run.summary.exists() for run in (first, second))

    (tmp_path / "held").unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all 2 runs are done" in done.stdout
    for run in (first, second):
        assert run.summary.exists()
        assert run.metrics.read_text().count("val/iou,") == 3
        assert (folder / f"sweep/logs/{run.path.name}.log").read_text().count("begins") == 2


def test_ctrl_c_ends_all_children_and_says_how_to_go_on(drawn_set, drawn, tmp_path):
    process = subprocess.Popen(command(tmp_path, drawn), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "sweep/concat_seed0"
    wait_for(lambda: (folder / "config.yaml").exists(), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGINT, "so that a shell's loop ends, too"
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert trainer_of(folder) is None


def test_a_damaged_table_of_a_cell_does_not_end_the_sweep(fake, tmp_path):
    fake()
    first = run_sweep(tmp_path, "name=one", "seed=0", "model.skip=none", axes=AXES[:1])
    ((name, cell),) = first.items()
    cell.folder.metrics.write_bytes(b"0,0,val/iou,0.5\n1,1,val/iou,word\n\xff\n2,2,val/iou,0.\xe9\n")
    assert cell.progress() == (1, 0.5)
    again = run_sweep(tmp_path, "name=one", "seed=0", "model.skip=none", axes=AXES[:1])
    assert again[name].state == "done"


def shown(states: list[str], lines: int) -> list[str]:
    """Return what a terminal of so many lines shows of runs in these states."""
    runs = [
        SweepRun(f"run{number}", [], SimpleNamespace(trainer={}), SimpleNamespace(metrics=Path("none")), Path(), state)
        for number, state in enumerate(states)
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(ablate._table(runs, len(runs), lines))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_a_terminal_shows_all_runs_where_they_fit():
    states = ["done", "failed", "running", "waiting"]
    assert [line.split()[0] for line in shown(states, 5)[:-1]] == ["run0", "run1", "run2", "run3"]
    assert shown(states, 5)[-1] == "1 of 4 runs done"


def test_of_more_runs_than_lines_those_are_shown_that_run_failed_or_ended_last():
    states = ["done"] * 50 + ["failed"] + ["done"] * 20 + ["running", "running"] + ["waiting"] * 9927
    lines = shown(states, 10)
    assert [line.split()[0] for line in lines[:-1]] == ["run50", *(f"run{n}" for n in range(65, 71)), "run71", "run72"]
    assert lines[-1] == "70 of 10000 runs done, 2 running, 1 failed, 9927 waiting"


@pytest.mark.parametrize("part", ["log", "folder"])
def test_no_log_is_written_through_a_link(fake, tmp_path, part):
    fake()
    logs = tmp_path / "runs/one/logs"
    other = tmp_path / "other"
    if part == "folder":
        logs.parent.mkdir(parents=True)
        other.mkdir()
        logs.symlink_to(other)
    else:
        logs.mkdir(parents=True)
        other.write_text("mine")
        (logs / "none_seed0.log").symlink_to(other)
    with pytest.raises(UserError, match="is a link"):
        run_sweep(tmp_path, "name=one", "seed=0", "model.skip=none", axes=AXES[:1])
    assert not list(other.iterdir()) if part == "folder" else other.read_text() == "mine"


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = ("optimizer.lr=0.00012345671", "optimizer.lr=0.00012345672")
    runs = [[*TINY, rate] for rate in rates]
    options = [compose("ablate", Ablate, run) for run in runs]
    folders = set()
    monkeypatch.setattr(ablate, "show", lambda runs, ticks, total: folders.update(run.name for run in runs))
    ablate.ablate(list(zip(runs, options, strict=True)))
    assert len(folders) == 2
    runs = [[*TINY, f"data.root={root}"] for root in ("x/a-b", "x/a/b")]
    options = [compose("ablate", Ablate, run) for run in runs]
    with pytest.raises(UserError, match="two runs of the sweep would have one folder"):
        ablate.ablate(list(zip(runs, options, strict=True)))
