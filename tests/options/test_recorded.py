"""What stands in a config.yaml is plain values: read within bounds, completed, validated, and never a command."""

import os
import time

import pytest
import yaml
from conftest import TINY

from unetseg.errors import UserError
from unetseg.options import plain_yaml, recorded
from unetseg.options.compose import compose
from unetseg.options.schema import Train


@pytest.fixture
def config(tmp_path):
    """The config.yaml of a small run."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(compose("train", Train, list(TINY)).model_dump(), sort_keys=False))
    return path


def options(path, *overrides) -> Train:
    return recorded.apply_overrides("train", Train, recorded.read_training(path), list(overrides))


def edited(path, change):
    """Change the values in a file."""
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_what_was_recorded_comes_back(config):
    assert options(config) == compose("train", Train, list(TINY))


def test_options_of_the_command_line_hold(config):
    given = [
        "model.skip=[none,concat,add,concat]",
        "++trainer.limit_train_batches=2",
        "~trainer.precision",
        "optimizer.lr=1",
    ]
    changed = options(
        config, *given, "model={initialisation: glorot, encoder: resnet18}", "data=synthetic", "hydra.verbose=false"
    )
    assert changed.model.skip == ["none", "concat", "add", "concat"]
    assert changed.model.initialisation == "glorot"
    assert changed.optimizer.lr == 1
    assert changed.trainer["limit_train_batches"] == 2
    assert "precision" not in changed.trainer
    assert changed.data.size == 64


@pytest.mark.parametrize("given", ["data=folder", "experiment=flow", "trainer=cpu", "recipe=synthetic"])
def test_a_group_of_options_beside_recorded_ones_is_refused(config, given):
    with pytest.raises(UserError, match=f"{given} beside options that are recorded"):
        options(config, given)


def test_options_that_an_earlier_version_lacked_are_the_defaults(config):
    edited(config, lambda values: (values["model"].pop("strict_weights"), values.pop("guards")))
    assert options(config) == compose("train", Train, list(TINY))


def test_arguments_of_the_trainer_are_not_completed(config):
    edited(config, lambda values: values["trainer"].pop("log_every_n_steps"))
    assert "log_every_n_steps" not in options(config).trainer


def test_values_are_text_and_neither_resolved_nor_composed(config, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    edited(config, lambda values: values["wandb"].update(project="${oc.env:SECRET}"))
    assert options(config).wandb.project == "${oc.env:SECRET}"


STRANGE = [
    ("+hydra", {"callbacks": {"evil": {"_target_": "os.system"}}}),
    ("hydra", {"run": {"dir": "/"}}),
    ("++trainer.callbacks", ["x"]),
    ("defaults", ["/data/../../x"]),
    ("_target_", "os.system"),
]


@pytest.mark.parametrize(("key", "value"), STRANGE, ids=[key for key, _ in STRANGE])
def test_keys_that_no_option_has_are_refused(config, key, value):
    edited(config, lambda values: values.update({key: value}))
    with pytest.raises(UserError, match="is not an option"):
        options(config)


@pytest.mark.parametrize("name", ["../../../x", "/etc/x", "folder/../pets", "", None, ["pets"], {"a": 1}, 3], ids=str)
def test_a_data_set_is_one_of_those_that_are_known(config, name):
    edited(config, lambda values: values["data"].update(name=name))
    with pytest.raises(UserError, match=r"data\.name=.* is not accepted"):
        options(config)


def test_an_encoder_is_one_of_those_that_are_known(config):
    edited(config, lambda values: values["model"].update(encoder="tu-hf-hub:me/model"))
    with pytest.raises(UserError, match=r"model\.encoder=tu-hf-hub:me/model is not accepted"):
        options(config)


def test_what_may_change_is_said_on_the_command_line_alone(config):
    edited(config, lambda values: values.update(allow_changes=["seed"], resume="/etc"))
    assert (options(config).allow_changes, options(config).resume) == ([], None)
    assert options(config, "allow_changes=[seed]").allow_changes == ["seed"]


NINE_TIMES = b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 115))
BAD = {
    "empty": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "text": b"hello",
    "NUL": b"a: \0",
    "NUL in quotes": b'a: "\\0"',
    "no UTF-8": b"a: \xff",
    "half a pair": b'a: "\\ud800"',
    "itself": b"a: &a [*a]",
    "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + NINE_TIMES,
    "merge": b"base: &base {a: 1}\nmore: {<<: *base}",
    "deep": b"a: " + b"[" * 500_000,
    "deep blocks": b"".join(b" " * n + b"a:\n" for n in range(1000)),
    "many": b"a: [" + b"1," * 400_000 + b"1]",
    "large": b"a: " + b"x" * 2**21,
    "object": b"a: !!python/object/apply:os.system [true]",
    "tag": b"a: !!binary aGVsbG8=",
    "date": b"a: 2024-05-01",
    "no date": b"a: 2024-99-99",
    "digits": b"a: " + b"9" * 500_000,
    "large number": b"a: 99999999999999999999",
    "no number": b"a: 0x_",
    "numbers for names": b"1: 2",
    "two documents": b"a: 1\n---\nb: 2",
    "no YAML": b"a: [",
    "of another program": b"lr: 0.1",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_are_no_options_is_named_within_a_second(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(UserError, match=r"config\.yaml"):
        recorded.read_training(path)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("kind", ["absent", "folder", "link", "pipe"])
def test_what_is_no_file_is_named(tmp_path, kind):
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"config\.yaml"):
        plain_yaml.read(path)
