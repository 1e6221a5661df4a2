"""Every argument of Lightning's Trainer does what Lightning's users expect, or is refused before anything runs."""

import json

import pandas as pd
import pytest
import torch

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.trainer import OURS, lightnings_arguments, trainer_arguments

SMALL = ("data.size=32", "data.train_images=12", "data.test_images=2", "data.batch_size=2", "gradients.every_n_steps=0")

TOGETHER = {
    "accelerator": "cpu",
    "strategy": "auto",
    "devices": "1",
    "num_nodes": "1",
    "precision": "64-true",
    "max_epochs": "3",
    "min_epochs": "1",
    "max_steps": "3",
    "min_steps": "1",
    "max_time": "00:01:00:00",
    "limit_train_batches": "4",
    "limit_val_batches": "1.0",
    "limit_test_batches": "1",
    "val_check_interval": "2",
    "check_val_every_n_epoch": "null",
    "num_sanity_val_steps": "1",
    "log_every_n_steps": "1",
    "enable_progress_bar": "true",
    "enable_model_summary": "true",
    "accumulate_grad_batches": "2",
    "gradient_clip_val": "0.5",
    "gradient_clip_algorithm": "norm",
    "deterministic": "warn",
    "benchmark": "false",
    "profiler": "simple",
    "detect_anomaly": "true",
    "sync_batchnorm": "true",
}
"""All that is taken, with a sensible value, in one run."""


def refusal(*overrides):
    with pytest.raises(UserError) as caught:
        compose("train", Train, ["data=synthetic", *overrides])
    return str(caught.value)


def test_each_argument_is_tried_below_or_is_refused():
    assert set(TOGETHER) == set(trainer_arguments())
    assert set(TOGETHER) | set(OURS) == set(lightnings_arguments())


def test_all_that_is_taken_works(tiny):
    run = tiny(*SMALL, *(f"trainer.{name}={value}" for name, value in TOGETHER.items()))
    table = pd.read_csv(run.metrics)
    assert table[table.name == "train/loss"].step.max() == 2, "three steps of two batches"
    assert (table.name == "val/iou").sum() >= 2
    assert json.loads(run.summary.read_text())["test/images"] == 2
    content = torch.load(run.last, weights_only=True)
    assert content["global_step"] == 3
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("given", sorted(f"trainer.{name}=1" for name in OURS))
@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_what_is_not_taken_is_refused_with_the_reason(given, plus):
    text = refusal(f"{plus}{given}")
    assert f"{given.removesuffix('=1')} is not taken: " in text
    assert given.removeprefix("trainer.").removesuffix("=1") not in text.partition("accepted:")[2].partition("\n")[0]


@pytest.mark.parametrize(
    "given",
    [
        "max_epochs=0", "max_epochs=-2", "max_epochs=true", "max_steps=0", "accumulate_grad_batches=0",
        "check_val_every_n_epoch=0", "limit_test_batches=0", "limit_test_batches=0.0", "limit_train_batches=0",
        "strategy=ddp_spawn",
    ],
)  # fmt: skip
def test_a_value_that_no_run_can_follow_is_refused(given):
    assert f"trainer.{given.partition('=')[0]}=" in refusal(f"trainer.{given}")


@pytest.mark.parametrize(
    "given", ["profiler=fast", "max_time=soon", "limit_test_batches=0.01", "val_check_interval=99"]
)
def test_what_only_lightning_knows_to_be_wrong_is_a_users_error_and_leaves_nothing_behind(tiny, tmp_path, given):
    with pytest.raises(UserError, match=given.partition("=")[0]):
        tiny(*SMALL, f"trainer.{given}", "name=run")
    assert not list(tmp_path.iterdir()), "the same name works once the argument is mended"


def test_a_run_without_validation_and_without_a_known_end_keeps_and_tests_its_last_weights(tiny, capsys):
    run = tiny(*SMALL, "trainer.max_epochs=-1", "trainer.max_time={seconds: 1}", "trainer.limit_val_batches=0")
    content = torch.load(run.last, weights_only=True)
    assert content["global_step"] == pd.read_csv(run.metrics).step.max()
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3
    assert not run.best.exists()
    assert "the last weights are tested" in capsys.readouterr().out
    assert run.summary.exists()
