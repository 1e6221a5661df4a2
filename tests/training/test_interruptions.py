"""Nothing is lost when a training is killed, asked to stop, runs out of disk, or meets a loss that isn't a number."""

import importlib.util
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_sharer
from multiprocessing.connection import Listener
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import HANG, ROOT, TINY, Forked

from unetseg.errors import Halt, UserError
from unetseg.model import checkpoint
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.runs.wandb_run import earlier_run_id
from unetseg.train import train
from unetseg.training.failures import explain_system_errors

NET = [option for option in TINY if option.startswith(("model", "trainer.precision", "data.workers"))]
LONG = ("trainer.max_epochs=500", "trainer.log_every_n_steps=1")


@pytest.fixture
def soak(drawn):
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts/soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.start = Forked
    return module


def test_a_run_that_is_killed_three_times_ends_as_the_undisturbed_one(soak, tmp_path):
    assert soak.soak(tmp_path, 3, 0, ["data.train_images=30", "trainer.max_epochs=4", *NET], longest=0.2) == []


def test_the_comparison_of_the_kill_test_sees_what_differs(soak, tiny, tmp_path):
    one, other = (tiny(f"name={name}", f"seed={seed}", "trainer.max_epochs=1") for seed, name in enumerate("ab"))
    lines = other.metrics.read_text().splitlines(keepends=True)
    other.metrics.write_text("".join([*lines, lines[-1]]))
    found = soak.differences(one.path, other.path)
    assert {"last.ckpt: state_dict", "last.ckpt: optimizer_states", "metrics.csv", "per_image.csv"} <= set(found)
    assert found[-1].endswith("stands 2 times")


GROUP = (*TINY, *LONG, "data.workers=2", "gradients.every_n_steps=0", "name=run")
"""A training with loader processes, to which the signals of a terminal or scheduler go as well."""


def begun(drawn, tmp_path, log):
    """Return the folder and the process of a training, in its first epoch."""
    run = RunFolder(tmp_path / "run")
    process = Forked([*GROUP, f"data.root={drawn}", f"output={tmp_path}"], log)

    def trains():
        assert process.poll() is None, "it ended before its first step"
        return run.metrics.exists() and "train/loss" in run.metrics.read_text()

    wait_for(trains)
    return run, process


class Terminal:
    """A terminal in which a training runs: the first that a new session opens is the one that Ctrl-C is typed in."""

    def __init__(self):
        self.keyboard, self.screen = pty.openpty()
        self.path, self.text, self.open = os.ttyname(self.screen), b"", True
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while self.open:
            if select.select([self.keyboard], [], [], 0.05)[0]:
                self.text += os.read(self.keyboard, 4096)

    def close(self):
        self.open = False
        self.reader.join()  # a terminal that somebody still reads from does not go away
        os.close(self.screen)
        os.close(self.keyboard)


@pytest.mark.parametrize(("how", "status"), [("killpg", 75), ("Ctrl-C", -signal.SIGINT), ("ssh is lost", 75)])
def test_a_run_that_is_asked_to_stop_writes_its_checkpoint_and_says_how_to_go_on(drawn, tmp_path, how, status):
    """Whole process groups are asked: by a scheduler, by Ctrl-C in a terminal, and when the terminal goes away."""
    terminal, log = Terminal(), tmp_path / "log"
    run, process = begun(drawn, tmp_path, log if how == "killpg" else terminal.path)
    if how == "killpg":
        os.killpg(process.pid, signal.SIGUSR1)
    elif how == "Ctrl-C":
        os.write(terminal.keyboard, b"\x03")
    else:
        terminal.close()
    assert process.wait(HANG) == status, (terminal.text, log.exists() and log.read_text())
    step = torch.load(run.last, weights_only=True)["global_step"]
    rows = pd.read_csv(run.metrics)
    assert rows[rows.name == "train/loss"].step.tolist() == list(range(step)), "the last step is recorded, and no other"
    if how != "ssh is lost":
        said = log.read_text() if how == "killpg" else terminal.text.decode()
        assert f"stopped after step {step}" in said
        assert f"try: python -m unetseg.train resume={run.path}" in said
        assert "Traceback" not in said
        terminal.close()


def children_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_loader_process_that_the_kernel_kills_ends_the_run_with_how_to_go_on(drawn, tmp_path):
    log = tmp_path / "log"
    run, process = begun(drawn, tmp_path, log)
    os.kill(children_of(process)[0], signal.SIGKILL)
    assert process.wait(HANG) == 1, log.read_text()
    noticed = "is killed by signal: Killed", "exited unexpectedly"  # by torch, whichever way is quicker
    assert any(f"a loader process {how}: the machine may have run out" in log.read_text() for how in noticed)
    assert f"try: python -m unetseg.train resume={run.path} data.workers=0" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_loader_processes_end_with_a_training_that_is_killed(drawn, tmp_path):
    _, process = begun(drawn, tmp_path, tmp_path / "log")
    loaders = children_of(process)
    assert len(loaders) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait(HANG)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in loaders))


@pytest.mark.parametrize("listens", [True, False])
def test_a_loader_process_that_is_gone_when_its_batch_is_fetched_is_said_as_well(tmp_path, listens):
    """The third way in which a kill is noticed: multiprocessing asks the process for the memory of its batch."""
    said = "a loader process exited unexpectedly(.|\n)*resume=.* data.workers=0"
    with Listener() as listener, ThreadPoolExecutor(1) as pool:
        address = listener.address
        if listens:
            pool.submit(lambda: listener._listener.accept().close())
        else:
            listener.close()
        with pytest.raises(Halt, match=said), explain_system_errors(RunFolder(tmp_path)):
            resource_sharer._resource_sharer.get_connection((address, 0))
    with pytest.raises(EOFError), explain_system_errors(RunFolder(tmp_path)):
        raise EOFError  # of anything else


def test_what_fails_while_a_checkpoint_is_written_is_not_called_a_damaged_checkpoint(drawn, tmp_path):
    class Failing(L.Callback):
        def state_dict(self):
            raise KeyError("of its own making")

    with pytest.raises(KeyError, match="of its own making"):
        train(compose("train", Train, [*TINY, f"data.root={drawn}", f"output={tmp_path}"]), callbacks=[Failing()])


@pytest.mark.parametrize("text", [
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...",
    "unable to write to file </torch_7_1_0>: No space left on device (28)",
    "unable to allocate shared memory(shm) for file </torch_7_1>",
])  # fmt: skip
def test_too_little_shared_memory_is_said(tmp_path, text):
    said = r"--shm-size=2g .*data.workers=0 or a smaller data.batch_size(.|\n)*resume="
    with pytest.raises(Halt, match=said), explain_system_errors(RunFolder(tmp_path)):
        raise RuntimeError(text)


def wait_for(condition, seconds=HANG):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a best and a last checkpoint, and not for a second last one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can make a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_run_with_a_message_and_the_last_checkpoint_whole(drawn, tmp_path, small_disk):
    run, log = RunFolder(small_disk / "run"), tmp_path / "log"
    options = [*TINY, "trainer.max_epochs=3", "checkpoint.every_n_steps=2", f"data.root={drawn}"]
    assert Forked([*options, f"output={small_disk}", "name=run"], log).wait(HANG) == 1, log.read_text()
    text = log.read_text()
    assert f"no room to write {run.checkpoints}" in text
    assert f"resume={run.path}" in text
    assert "No space left on device" in text
    assert "Traceback" not in text
    assert {path.name for path in run.checkpoints.iterdir()} <= {"best.ckpt", "last.ckpt"}
    checkpoint.load(run.last)
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    assert Forked([f"resume={run.path}"], log).wait(HANG) == 0, log.read_text()
    undisturbed = compose("train", Train, [*options, f"output={tmp_path}", "name=whole"])
    assert run.metrics.read_text() == RunFolder(train(undisturbed)["folder"]).metrics.read_text()


class Sick(torch.nn.Module):
    """A loss that is NaN at certain batches."""

    def __init__(self, loss, batches):
        super().__init__()
        self.loss, self.batches, self.count = loss, batches, 0

    def forward(self, logits, target):
        self.count += self.training
        sick = self.training and self.count - 1 in self.batches
        return self.loss(logits, target) * (float("nan") if sick else 1.0)


@pytest.fixture
def sick(tiny):
    """Return a function that trains with losses that are NaN at the given batches."""

    class Infect(L.Callback):
        def __init__(self, batches):
            self.batches = batches

        def on_fit_start(self, trainer, module):
            module.loss = Sick(module.loss, self.batches)

    def run(batches, *overrides):
        often = ("trainer.log_every_n_steps=1", "gradients.every_n_steps=2")
        return tiny(*often, *overrides, callbacks=[Infect(batches)])

    return run


def test_a_loss_that_is_not_a_number_stops_the_run_with_the_pictures_and_the_last_reading(sick, tmp_path):
    with pytest.raises(Halt, match="the loss of step 8 is NaN or inf") as caught:
        sick([8], "name=run")
    lines = str(caught.value).splitlines()
    assert lines[1].count(",") == 3, "the four pictures of the batch"
    assert "rms at step 6: stem " in lines[2]
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_no_checkpoint_is_written_with_the_weights_of_a_broken_step(sick, tmp_path):
    with pytest.raises(Halt):
        sick([3], "name=run", "checkpoint.every_n_steps=4")
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_batch_that_is_left_out_leaves_no_trace_but_its_record(sick):
    run = sick([1, 4], "guards.nonfinite_loss=skip", "trainer.max_epochs=1", "name=run")
    table = pd.read_csv(run.left_out)
    assert table.step.tolist() == [1] * 4 + [4] * 2
    assert set(table.reason) == {"nonfinite_loss"}
    losses = pd.read_csv(run.metrics).query("name == 'train/loss'").set_index("step").value
    assert losses.index[losses.isna()].tolist() == [1, 4]
    content = torch.load(run.last, weights_only=True)
    assert all(weight.isfinite().all() for weight in content["state_dict"].values())
    taken = {int(state["step"]) for state in content["optimizer_states"][0]["state"].values()}
    assert taken == {3}, "five batches, three steps"
    assert content["state_dict"]["model.net.encoder.model.bn1.num_batches_tracked"] == 3


def test_when_every_batch_is_broken_skipping_ends(sick):
    with pytest.raises(Halt, match="10 batches in a row"):
        sick(range(100), "guards.nonfinite_loss=skip", "trainer.max_epochs=4")


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path):
    run = RunFolder(tmp_path)
    assert earlier_run_id(run) is None
    for name in ("offline-run-20260101_101010-abc123", "run-20260102_101010-abc123"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert earlier_run_id(run) == "abc123"


def test_a_global_batch_is_shared_out_and_the_learning_rate_scaled(tiny):
    import json

    run = tiny("data.global_batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1",
               "data.batch_size=2", "optimizer.lr_scaling=sqrt", "optimizer.lr=0.001")  # fmt: skip
    found = json.loads(run.summary.read_text())
    assert (found["devices"], found["batch_size"], found["global_batch_size"]) == (1, 4, 8)
    assert found["lr"] == pytest.approx(0.002)


def test_a_global_batch_that_cannot_be_shared_out_is_refused_and_leaves_nothing_behind(tiny, tmp_path):
    with pytest.raises(UserError, match=r"global_batch_size=7(.|\n)*multiple of 2"):
        tiny("data.global_batch_size=7", "trainer.accumulate_grad_batches=2")
    assert not list(tmp_path.iterdir())
