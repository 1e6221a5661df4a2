"""Several processes, however they are launched: one run folder, one log, and each picture counted once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pandas as pd
import pytest
from conftest import HANG, ROOT, TINY

from unetseg import launch
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHON": sys.executable}
PAIR = ("trainer.sync_batchnorm=false", "data.batch_size=2", "gradients.every_n_steps=2")


def wait_for(condition, seconds=HANG):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_machines_train_one_run_by_torchrun(drawn_set, drawn, tmp_path):
    """Two addresses of the loopback range stand for the machines."""
    own = [
        "trainer.max_epochs=1",
        "trainer=ddp_multinode",
        "trainer.devices=1",
        f"data.root={drawn}",
        f"output={tmp_path}/runs",
    ]
    port = str(free_port())
    processes = []
    for rank in range(2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                    f"--node-rank={rank}", "--master-addr=127.0.0.2", f"--master-port={port}",
                    f"--local-addr=127.0.0.{rank + 2}", "-m", "unetseg.train"]  # fmt: skip
        with (tmp_path / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen([*torchrun, *TINY, *PAIR, *own], env=ENVIRONMENT, stdout=log, stderr=log))
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    assert [process.wait(HANG) for process in processes] == [0, 0], [log.read_text()[-2000:] for log in logs]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name in logs[0].read_text()
    assert folder.name not in logs[1].read_text(), "the first process speaks"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["devices"], summary["batch_size"], summary["global_batch_size"]) == (2, 2, 4)
    assert summary["test/images"] == 7
    assert pd.read_csv(folder / "per_image.csv").name.is_unique


SRUN = """#!/usr/bin/env bash
# Two tasks on this machine; SIGUSR1 goes to both, the status is the highest of theirs.
shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 SLURM_NTASKS=2 SLURM_NODELIST=localhost "$@" >> {log} 2>&1 &
    tasks+=($!)
done
trap 'kill -USR1 "${{tasks[@]}}"' USR1
echo $$ > {pid}
highest=0
for task in "${{tasks[@]}}"; do
    wait "$task"; status=$?
    while kill -0 "$task" 2> /dev/null; do wait "$task"; status=$?; done
    if [ $status -gt $highest ]; then highest=$status; fi
done
exit $highest
"""


def test_the_slurm_script_stops_in_time_is_queued_again_and_goes_on(drawn_set, drawn, tmp_path):
    """Stand-ins for srun and scontrol do on this machine what SLURM does."""
    log, pid, requeued = (tmp_path / name for name in ("log", "pid", "requeued"))
    for name, text in (
        ("srun", SRUN.format(log=log, pid=pid)),
        ("scontrol", f"#!/bin/sh\necho $* >> {requeued}\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNS": str(tmp_path),
        "SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "unetseg",
    }  # fmt: skip
    run = RunFolder(tmp_path / "slurm_4711")
    epochs = [f"data.root={drawn}", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    job = ["bash", ROOT / "scripts/slurm/train.sbatch", *TINY, *PAIR, *epochs]

    first = subprocess.Popen(job, env=environment)
    wait_for(lambda: run.metrics.exists() and "val/iou," in run.metrics.read_text())
    os.kill(int(pid.read_text()), signal.SIGUSR1)
    assert first.wait(HANG) == 75, log.read_text()
    assert requeued.read_text() == "requeue 4711\n"
    assert "stopped after step" in log.read_text()

    assert subprocess.run(job, env=environment, timeout=HANG).returncode == 0, log.read_text()
    assert requeued.read_text() == "requeue 4711\n"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"slurm_4711"}
    with run.metrics.open() as file:
        rows = Counter(tuple(line.split(",")[::2]) for line in file)
    assert max(rows.values()) == 1, "each step is there once"
    assert pd.read_csv(run.metrics).query("name == 'train/loss'").step.tolist() == list(range(3 * 4)), (
        "of nine pictures a process the last would be a batch alone"
    )


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, True),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
    ids=str,
)
def test_the_first_process_is_known_whatever_launched_it(monkeypatch, given, first):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch.is_first() == first


def test_several_machines_without_a_launcher_are_refused_with_what_is_missing():
    with pytest.raises(UserError, match=r"trainer\.num_nodes=2 without MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        launch.decide_on_first(lambda: "runs/one", 2)


def test_each_trainer_of_conf_composes():
    devices = {}
    for name in ("cpu", "gpu", "ddp", "ddp_multinode"):
        trainer = compose("train", Train, ["data=synthetic", f"trainer={name}"]).trainer
        devices[name] = trainer["accelerator"], trainer["devices"], trainer.get("strategy"), trainer.get("num_nodes")
    assert devices == {
        "cpu": ("cpu", 1, None, None),
        "gpu": ("gpu", 1, None, None),
        "ddp": ("auto", "auto", "ddp", None),
        "ddp_multinode": ("auto", "auto", "ddp", 2),
    }


def test_gradient_probes_are_refused_where_weights_are_shared_out():
    with pytest.raises(UserError, match=r"try: gradients\.every_n_steps=0"):
        compose("train", Train, ["data=synthetic", "trainer.strategy=fsdp"])
