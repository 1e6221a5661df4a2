"""What every command does with names, endings and outputs."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from unetseg.errors import UserError
from unetseg.options.command import TolerantStream, _check_names, check_flags, check_words, exit_on_error
from unetseg.options.command_schema import Evaluate, Report
from unetseg.options.compose import compose, runs_of, values_of
from unetseg.options.schema import Train


def options(*overrides):
    return compose("train", Train, ["data=synthetic", *overrides])


@pytest.mark.parametrize("name", ["20240501", "007", "1e3", "1_000", "-5", "3.50", "true-colours"])
def test_a_name_may_look_like_a_number(name):
    assert options(f"name={name}", f"wandb.project={name}").name == name


def test_classes_may_be_numbers(tmp_path):
    given = ["data=folder", f"data.root={tmp_path}", "model.weights=null", "data.classes=[0,1,2]"]
    assert compose("train", Train, given).data.classes == ["0", "1", "2"]


@pytest.mark.parametrize("key", ["output", "resume", "data.root"])
def test_a_tilde_is_the_home_folder(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").touch()
    assert values_of([f"{key}=~/mine"])[key] == str(tmp_path / "mine")
    found = options(f"{key}=~/mine").model_dump()
    assert (found["data"]["root"] if key == "data.root" else found[key]) == str(tmp_path / "mine")


def test_a_misspelt_option_of_the_data_is_told_with_those_of_the_same_data(tmp_path):
    with pytest.raises(UserError, match=r"data\.clases is not an option\n  accepted: data\.classes, "):
        compose("train", Train, ["data=folder", f"data.root={tmp_path}", "data.clases=[a,b]"])


def test_an_option_of_other_data_is_told_with_where_it_belongs(tmp_path):
    with pytest.raises(UserError) as caught:
        compose("train", Train, ["data=folder", f"data.root={tmp_path}", "data.target=pet"])
    problem, accepted, *_ = str(caught.value).splitlines()
    assert problem == "data.target is not an option of data=folder, but of data=pets, synthetic"
    assert "data.target" not in accepted


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-m", "seed=0,1"], ["data=synthetic"]])
def test_no_flag_is_needed(arguments):
    check_flags("train", Train, arguments)


@pytest.mark.parametrize("arguments", [["--epochs", "3"], ["--epochs=3"], ["data=synthetic", "--epochs", "3"]])
def test_a_flag_of_another_program_is_told_with_the_option(arguments):
    with pytest.raises(UserError, match=r"--epochs is not a flag of train(.|\n)*try: trainer\.max_epochs=3"):
        check_flags("train", Train, arguments)


@pytest.mark.parametrize(
    ("command", "schema", "word", "advice"),
    [
        ("train", Train, "none", "model.skip=none"),
        ("train", Train, "synthetic", "data=synthetic"),
        ("train", Train, "epochs", "trainer.max_epochs=..."),
        ("train", Train, "folder-of-mine", "data=folder data.root=folder-of-mine"),
        ("evaluate", Evaluate, "folder-of-mine", "checkpoint=folder-of-mine"),
        ("report", Report, "folder-of-mine", "runs=folder-of-mine"),
        ("train", Train, "WORD", "--help"),
    ],
)
def test_a_word_that_is_no_option_is_told_with_the_likeliest(command, schema, word, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder-of-mine").mkdir()
    with pytest.raises(UserError) as caught:
        check_words(command, schema, [word])
    problem, accepted, way = str(caught.value).splitlines()
    assert problem == f"{word} is not an option of {command}"
    assert accepted.startswith("  accepted: OPTION=VALUE, and --help, --version")
    assert way == f"  try: {advice}"


def test_what_hydra_removes_is_no_word_too_many():
    check_words("train", Train, ["data=synthetic", "~trainer.precision"])


def test_one_name_for_several_runs_of_a_sweep_is_refused():
    with pytest.raises(UserError, match=r"name=x would be the folder of 2 runs(.|\n)*output=runs/x"):
        _check_names([options(*run) for run in runs_of(["name=x", "seed=0,1"])])
    _check_names([options(*run) for run in runs_of(["name=x,y", "seed=0"])])
    _check_names([options(*run) for run in runs_of(["seed=0,1"])])


@pytest.mark.parametrize(("number", "status"), [(errno.EROFS, 2), (errno.ENOTDIR, 2), (errno.ENOSPC, 1)])
def test_what_cannot_be_written_is_said(number, status, capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error("unetseg.train"):
        raise OSError(number, os.strerror(number), "runs/x")
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(f"unetseg.train: runs/x can't be read or written: {os.strerror(number)}")


def test_other_errors_stay_what_they_are():
    with pytest.raises(ConnectionResetError), exit_on_error("unetseg.train"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_after_ctrl_c_a_command_dies_of_it_so_that_a_loop_of_the_shell_ends():
    code = "from unetseg.options import command\nwith command.exit_on_error('unetseg.train'): raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "unetseg.train: stopped\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_letters_shows_others(encoding):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding)
    print("━ läuft", file=TolerantStream(stream), flush=True)
    assert buffer.getvalue().startswith(rb"\u2501 l")


def test_an_output_whose_reader_is_gone_takes_no_more():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        lasting = TolerantStream(stream)
        for _ in range(3):
            print("x" * 10000, file=lasting, flush=True)


def test_an_output_that_is_full_is_an_error():
    with open("/dev/full", "w") as stream:
        with pytest.raises(OSError, match="No space left"):
            print("x", file=TolerantStream(stream), flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left of it


@pytest.mark.parametrize("wrong", ["data=1.5", "data=true", "data=null", "=3", "@x=3", "data={a:1}"])
def test_what_is_no_group_and_no_option_is_told(wrong):
    with pytest.raises(UserError):
        compose("train", Train, [wrong])


def test_values_that_cannot_be_enumerated_are_no_sweep():
    with pytest.raises(UserError, match="commas between"):
        runs_of(["seed=interval(0,3)"])
