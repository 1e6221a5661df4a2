"""W&B: online only with a key, and never in the way of the training."""

import numpy as np
import pandas as pd
import pytest
import wandb

from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs import wandb_run
from unetseg.runs.folder import RunFolder

OPTIONS = ["data=synthetic", "model.skip=[none,concat,add,concat]"]


@pytest.mark.parametrize(
    ("asked", "key", "mode"),
    [
        ("auto", True, "online"),
        ("auto", False, "offline"),
        ("offline", True, "offline"),
        ("disabled", True, "disabled"),
    ],
)
def test_auto_is_online_only_with_a_key(asked, key, mode, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda **_: key)
    assert wandb_run.wandb_mode(compose("train", Train, [*OPTIONS, f"wandb.mode={asked}"])) == mode


def test_without_a_network_an_online_run_goes_on_offline(tmp_path, monkeypatch, capsys):
    begin, modes = wandb.init, []

    def unreachable(mode, **arguments):
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("timed out")
        return begin(mode=mode, **arguments)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    logger = wandb_run.wandb_logger(compose("train", Train, OPTIONS), RunFolder(tmp_path))
    wandb_run.finish([logger])
    assert modes == ["online", "offline"]
    printed = capsys.readouterr().out
    assert "logged offline: timed out" in printed
    assert "wandb sync" in printed


def test_options_have_flat_names():
    flat = wandb_run.flat_config(compose("train", Train, OPTIONS))
    assert flat["skip"] == "none-concat-add-concat"
    assert flat["encoder"] == "resnet18"
    assert flat["data_size"] == 128
    assert not [key for key, value in flat.items() if isinstance(value, dict) or "." in key]


@pytest.mark.parametrize(("option", "pictures"), [("true", 1), ("false", 0)])
def test_pictures_of_the_validation_are_sent_only_where_they_may(option, pictures, tmp_path):
    from unetseg.training.build import make_watchers
    from unetseg.training.callbacks import SamplePictures

    _, watchers = make_watchers(compose("train", Train, [*OPTIONS, f"wandb.images={option}"]), RunFolder(tmp_path))
    assert sum(isinstance(watcher, SamplePictures) for watcher in watchers) == pictures


@pytest.mark.parametrize("classes", [["background", "pet"], ["sky", "road", "car"]])
def test_three_classes_and_more_have_an_iou_each_beside_the_curves(classes, tmp_path):
    logger = wandb_run.wandb_logger(compose("train", Train, [*OPTIONS, "wandb.mode=offline"]), RunFolder(tmp_path))
    table = pd.DataFrame({"class": classes, "iou": [0.5, 0.25, np.nan][: len(classes)]})
    wandb_run.log_summary(logger, {"test/iou": 0.375}, table)
    found = {key: value for key, value in dict(logger.experiment.summary).items() if key.startswith("test/iou")}
    wandb_run.finish([logger])
    by_class = {"test/iou_sky": 0.5, "test/iou_road": 0.25} if len(classes) > 2 else {}
    assert found == {"test/iou": 0.375} | by_class
    assert list(tmp_path.glob("wandb/offline-*/files/media/table/test/per_class*.json"))
