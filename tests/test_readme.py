"""The README speaks of every option, and of no other."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from unetseg.options.command import OUR_FLAGS
from unetseg.options.compose import compose_runs, experiment_axes, runs_of
from unetseg.options.schema import Ablate, Train
from unetseg.options.validation import describe

TEXT = (ROOT / "README.md").read_text()


def test_every_option_of_train_stands_in_the_readme():
    for data in ("pets", "folder", "synthetic"):
        for key in describe(Train, {"data": {"name": data}}):
            section, _, name = key.partition(".")
            shown = {
                f"`{key}`",
                f"`{name}`",
                f"`{section}.*`",
                f"{key}=",
                f"`{section}`" if name == "name" else f"`{key}`",
            }
            assert any(form in TEXT for form in shown), key


def test_every_option_in_the_readme_exists():
    known = {key for data in ("pets", "folder", "synthetic") for key in describe(Train, {"data": {"name": data}})}
    for key in re.findall(r"(?<![/\w])((?:model|data|optimizer|wandb|trainer)\.[a-z_]+)(?=[=`])", TEXT):
        assert key in known, key


def commands():
    """Return the words of every training and sweep in the README and docs/, in blocks and within lines."""
    found = []
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text().replace("\\\n", " ")
        spans = re.findall(r"(?<!`)`(python -m unetseg[^`]+)`(?!`)", text)
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m unetseg")]
        found += [shlex.split(command, comments=True)[2:] for command in (*spans, *lines)]
    doors = ("unetseg.train", "unetseg.ablate")
    return [words for words in found if words[0] in doors and not {"resume=runs/NAME", "experiment=..."} & {*words}]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_training_in_the_readme_and_docs_is_accepted(words, drawn_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet50_imagenet.safetensors").touch()
    door, *options = words
    schema = {"unetseg.train": Train, "unetseg.ablate": Ablate}[door]
    stands_for = {"PETS": str(drawn_set), "FOLDER": str(drawn_set), "NAME": "flow"}
    filled = [re.sub("PETS|FOLDER|NAME", lambda match: stands_for[match[0]], option) for option in options]
    overrides = [option for option in filled if "=" in option]
    assert {option for option in options if "=" not in option} <= OUR_FLAGS
    jobs = runs_of([*experiment_axes(door[8:], schema, overrides), *overrides])
    assert len(compose_runs(door[8:], schema, jobs)) == len(jobs)
