"""Options that do nothing beside others are refused where they are given, and may lie idle where they aren't."""

import pytest

from unetseg import launch
from unetseg.errors import UserError
from unetseg.options.compose import compose, compose_runs
from unetseg.options.idle import NEEDS
from unetseg.options.recorded import apply_overrides, defaults
from unetseg.options.schema import Train

IDLE = [
    ("optimizer.patience=3", "optimizer.schedule=cosine", "optimizer.schedule=plateau"),
    ("model.strict_weights=false", "model.weights=imagenet", "model.weights=hf:me/encoder"),
    ("data.border=ignore", "data.target=trimap", "data.target=pet"),
    ("data.foreground=0.5", "data.crop=null", "data.crop=64"),
    ("data.crops=2", "data.crop=null", "data.crop=64"),
    ("gradients.routes_every_n_steps=5", "gradients.routes=none", "gradients.routes=exits"),
    ("wandb.mode=offline", "logger=csv", "logger=wandb"),
    ("wandb.entity=we", "logger=tensorboard", "logger=wandb"),
    ("wandb.log_model=true", "logger=mlflow", "logger=wandb"),
    ("wandb.project=skips", "logger=csv", "logger=mlflow"),
    ("wandb.images=false", "logger=none", "logger=tensorboard"),
    ("gradients.routes_every_n_steps=5", "gradients.every_n_steps=0", "gradients.every_n_steps=5"),
]


def test_each_need_is_tested():
    assert sorted((need.option, need.other) for need in NEEDS) == sorted(
        (option.partition("=")[0], other.partition("=")[0]) for option, other, _ in IDLE
    )


@pytest.mark.parametrize(("option", "without", "needed"), IDLE)
def test_an_option_that_does_nothing_is_refused_with_what_it_needs(option, without, needed):
    with pytest.raises(UserError, match="does nothing with") as caught:
        compose("train", Train, ["data=synthetic", without, option])
    assert f"{option} does nothing with {without}" in str(caught.value)
    assert needed.partition("=")[0] in str(caught.value)
    key, _, value = option.partition("=")
    assert compose("train", Train, ["data=synthetic", needed, option])
    assert compose("train", Train, ["data=synthetic", without])
    section, name = key.split(".")
    with pytest.raises(UserError, match="does nothing with"):
        compose("train", Train, ["data=synthetic", without, f"++{section}={{{name}:{value}}}"])


def test_in_a_sweep_an_option_may_do_nothing_in_some_of_the_runs(monkeypatch):
    given = ["data=synthetic", "optimizer.patience=3"]
    cosine, plateau = ([*given, f"optimizer.schedule={name}"] for name in ("cosine", "plateau"))
    assert [run.optimizer.patience for run in compose_runs("train", Train, [cosine, plateau])] == [3, 3]
    poly = [*given, "optimizer.schedule=poly"]
    with pytest.raises(UserError, match=r"optimizer\.patience=3 does nothing with optimizer\.schedule=cosine"):
        compose_runs("train", Train, [cosine, poly])
    monkeypatch.setenv(launch.CELL, "1")  # the process of such a run
    assert compose("train", Train, cosine).optimizer.patience == 3


def test_a_recorded_run_may_have_an_idle_value():
    recorded = defaults("train", Train, "synthetic")
    recorded["optimizer"]["patience"] = 3
    assert apply_overrides("train", Train, recorded, ["seed=1"]).optimizer.patience == 3
    with pytest.raises(UserError, match=r"optimizer\.patience=4 does nothing"):
        apply_overrides("train", Train, recorded, ["optimizer.patience=4"])
