"""The command `unetseg`: one entry point for all commands."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

from unetseg import __version__
from unetseg.console import main as console
from unetseg.options.choices import COMMANDS as WITH_OPTIONS

ENTRY = [sys.executable, "-c", "from unetseg.console.main import main; main()"]
"""What the script that pip installs does."""


def unetseg(*arguments, folder=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*ENTRY, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


def test_the_entry_point_is_declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"unetseg": "unetseg.console.main:main"}


def test_alone_it_says_what_there_is():
    done = unetseg()
    assert done.returncode == 0
    for name in (*console.COMMANDS, *console.OWN):
        assert f"\n  {name} " in done.stdout
    assert console.COMMANDS.keys() == WITH_OPTIONS.keys()


def test_a_misspelt_command_is_refused_with_the_nearest():
    done = unetseg("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("unetseg: trian is not a command\n  accepted: train")
    assert done.stderr.endswith("try: unetseg train\n")


@pytest.mark.parametrize("command", console.COMMANDS)
def test_a_stray_word_is_refused_by_every_command(command):
    done = unetseg(command, "WORD")
    assert done.returncode == 2
    assert done.stderr.startswith(f"unetseg.{command}: WORD is not an option of {command}\n  accepted: OPTION=VALUE")
    assert "usage: " not in done.stderr, "no text of Hydra's"


@pytest.mark.parametrize("name", ["doctor", "completion"])
def test_help_of_a_command_is_that_command_s(name):
    assert unetseg("help", name).stdout == unetseg(name, "--help").stdout


def test_it_has_a_version():
    assert unetseg("--version").stdout == unetseg("train", "--version").stdout == f"unetseg {__version__}\n"


def test_a_wrong_option_is_refused_as_by_the_module(tmp_path):
    by_module = [sys.executable, "-m", "unetseg.train", "skip=none"]
    module = subprocess.run(by_module, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    done = unetseg("train", "skip=none", folder=tmp_path)
    assert (done.returncode, done.stderr) == (module.returncode, module.stderr)
    assert done.returncode == 2


def test_a_training_on_two_processes_runs_and_records_a_command_that_works_anywhere(drawn, tmp_path):
    several = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1", "gradients.every_n_steps=0"]
    done = unetseg("train", *TINY, *several, f"data.root={drawn}", "name=two", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/two/summary.json").read_text())
    assert summary["devices"] == 2
    assert summary["command"].startswith("python -m unetseg.train data=synthetic ")
    assert "next: " in done.stdout
