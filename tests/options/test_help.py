"""The text of --help: purpose and examples first, every line fits, and nothing is shown as ???."""

import importlib

import pytest
from omegaconf import OmegaConf

from unetseg.options.choices import COMMANDS
from unetseg.options.compose import compose_config
from unetseg.options.help import WIDTH, help_text
from unetseg.options.validation import describe


@pytest.mark.quick
@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_the_purpose_and_examples_and_fits_a_terminal(command):
    schema, about = COMMANDS[command], importlib.import_module(f"unetseg.{command}").__doc__
    options = OmegaConf.to_container(compose_config(command, schema, []), resolve=True)
    text = help_text(command, schema, options, about)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert lines[0].endswith(".")
    assert lines[2].startswith(f"python -m unetseg.{command} ")
    assert "???" not in text
    assert all(f"  {key}=" in text for key in describe(schema, options) if not key.startswith("trainer."))
