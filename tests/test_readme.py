"""The README speaks of every option, and of no other."""

import re

from conftest import ROOT

from unetseg.config import Train
from unetseg.validation import describe

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
