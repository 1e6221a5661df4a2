"""A multirun on a cluster: one job for each run, launched by Hydra's submitit plugin."""

import json
import subprocess
import sys

import hydra
import pytest
from conftest import TINY

from unetseg.options.compose import CONF

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


def test_the_slurm_launcher_of_conf_composes():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = hydra.compose("train", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.tasks_per_node == 1


def test_a_multirun_is_launched_by_submitit(drawn_set, drawn, tmp_path):
    own = [f"data.root={drawn}", f"output={tmp_path}/out", "trainer.max_epochs=1", "model.skip=none", "seed=0"]
    launcher = ["hydra/launcher=submitit_local", f"hydra.launcher.submitit_folder={tmp_path}/jobs"]
    command = [sys.executable, "-m", "unetseg.train", "-m", *TINY, *own, *launcher]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "out").iterdir()
    assert json.loads((run / "summary.json").read_text())["skip"] == "none"
    assert "processes of their own" in done.stdout
