"""A run's folder is made whole or counts as not begun, and no two runs get the same one."""

import errno
import os
import subprocess
import sys
from datetime import datetime

import pytest
import yaml

from unetseg.errors import UserError
from unetseg.options import settings
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs import folder
from unetseg.runs.folder import FOLDER_FOR_RANKS, RunFolder


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    monkeypatch.delenv(FOLDER_FOR_RANKS, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def options(tmp_path, *more):
    return compose("train", Train, ["data=synthetic", f"output={tmp_path}", *more])


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2030, 1, 1, 12)


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "datetime", Noon)
    runs = [RunFolder.create(options(tmp_path, f"optimizer.lr={lr}")) for lr in (0.1, 0.2, 0.3)]
    first = runs[0].path.name
    assert [run.path.name for run in runs] == [first, f"{first}_2", f"{first}_3"]
    assert [yaml.safe_load(run.config.read_text())["optimizer"]["lr"] for run in runs] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("left", [(), ("figures/",), ("figures/", ".lock"), ("figures/", "config.yaml"),
                                  ("figures/", ".lock", ".config.yaml.tmp")], ids=str)  # fmt: skip
def test_what_a_kill_leaves_of_a_folder_in_the_making_counts_as_not_begun(tmp_path, left):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).mkdir() if name.endswith("/") else (tmp_path / "run" / name).touch()
    run = RunFolder.create(options(tmp_path, "name=run"))
    assert run.begun
    assert yaml.safe_load(run.config.read_text())["name"] == "run"


@pytest.mark.parametrize("inside", ["config.yaml", "metrics.csv", "figures/curves.png", "notes.txt", "mine/empty/"])
def test_a_folder_that_holds_anything_is_refused_and_kept(tmp_path, inside):
    path = tmp_path / "run" / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if inside.endswith("/") else path.write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        RunFolder.create(options(tmp_path, "name=run"))
    assert path.is_dir() or path.read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        RunFolder.create(options(tmp_path, "name=run"))


def test_a_disk_that_is_full_while_a_folder_is_made_leaves_none(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(folder, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        RunFolder.create(options(tmp_path, "name=run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_process_is_making_is_left_to_it(tmp_path):
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 6); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process"):
            RunFolder.create(options(tmp_path, "name=run"))
    finally:
        other.kill()
        other.wait()
