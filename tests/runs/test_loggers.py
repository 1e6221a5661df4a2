"""TensorBoard and MLflow: what W&B gets they get too, in files of the run's own, and a resumed run goes on in them."""

import time

import numpy as np
import pandas as pd
import pytest

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.runs.pictures import log_figure, log_predictions, log_summary, takers
from unetseg.train import options_of_resumed_run, train
from unetseg.training import build, preflight

PICTURES = [("a.png", np.full((8, 12, 3), 90, np.uint8), np.ones((8, 12), np.uint8), np.zeros((8, 12), np.uint8))]
QUICK = ("trainer.max_epochs=1", "gradients.every_n_steps=3", "trainer.log_every_n_steps=1")


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Return a function that makes a run's logger, sends it a picture, a figure and a summary, and returns it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = RunFolder(tmp_path / "runs/a")
    run.path.mkdir(parents=True)
    figure = tmp_path / "gradient_flow.png"

    def make(name):
        from PIL import Image

        Image.new("RGB", (20, 10)).save(figure)
        table, logger = build.make_loggers(compose("train", Train, ["data=synthetic", f"logger={name}"]), run)
        assert takers([table, logger]) == [logger], "metrics.csv takes no pictures"
        loggers = [table, logger]
        logger.log_metrics({"val/iou": 0.5}, step=3)
        log_predictions(loggers, PICTURES, ["background", "pet"], step=3)
        log_figure(loggers, "gradient/flow", figure, step=3)
        log_summary(loggers, {"parameters": 7, "skip": "add"}, pd.DataFrame({"class": ["pet"], "iou": [0.25]}))
        logger.finalize("success")
        return logger

    return make


def events(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_tensorboard_has_numbers_pictures_figures_and_texts_in_the_run_folder(logged, tmp_path):
    pytest.importorskip("tensorboard")
    logged("tensorboard")
    found = events(tmp_path / "runs/a/tensorboard")
    assert [(row.step, row.value) for row in found.Scalars("val/iou")] == [(3, 0.5)]
    (picture,) = found.Images("val/predictions/0")
    assert (picture.step, picture.width, picture.height) == (3, 24, 8)  # prediction and truth side by side
    assert found.Images("gradient/flow")[0].width == 20
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert "    encoder: resnet18" in texts["options/text_summary"]
    assert texts["summary/text_summary"] == "    parameters: 7\n    skip: add"
    assert "0.25" in texts["test/per_class/text_summary"]


def test_mlflow_has_them_in_a_database_beside_the_run_folders_and_goes_on(logged, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    logger = logged("mlflow")
    assert (tmp_path / "runs/mlflow.db").is_file()
    client, run = logger.experiment, logger.experiment.get_run(logger.run_id)
    assert run.data.metrics == {"val/iou": 0.5, "parameters": 7}
    assert run.data.params["encoder"] == "resnet18"
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    files = {path.name for path in (tmp_path / "runs/mlflow_artifacts").rglob("*") if path.is_file()}
    assert {"step_3.png", "gradient_flow.png", "per_class.csv"} <= files
    assert logged("mlflow").run_id == logger.run_id
    assert len(client.get_metric_history(logger.run_id, "val/iou")) == 2


def test_mlflow_keeps_the_best_val_iou_beside_its_curve(logged):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    logger = logged("mlflow")
    log_summary([logger], {"val/iou": 0.75}, pd.DataFrame({"class": ["pet"], "iou": [0.25]}))
    assert [row.value for row in logger.experiment.get_metric_history(logger.run_id, "val/iou")] == [0.5]
    assert logger.experiment.get_run(logger.run_id).data.metrics["val/iou_best"] == 0.75


@pytest.mark.parametrize("images", [True, False])
def test_a_resumed_run_goes_on_in_the_same_folder_of_tensorboard(tiny, images):
    pytest.importorskip("tensorboard")
    run = tiny("logger=tensorboard", f"wandb.images={str(images).lower()}", *QUICK)
    run.summary.unlink()
    time.sleep(1)  # files of one process and second are read by their numbers as texts, 10 before 9
    train(options_of_resumed_run([f"resume={run.path}", "trainer.max_epochs=2", "allow_changes=[trainer.max_epochs]"]))
    found = events(run.path / "tensorboard")
    assert [row.step for row in found.Scalars("train/loss")] == list(range(10))
    assert len(found.Scalars("val/iou")) == 2
    assert ("val/predictions/0" in found.Tags()["images"]) == images
    assert "gradient/flow" in found.Tags()["images"]
    assert pd.read_csv(run.metrics).query("name == 'train/loss'").step.tolist() == list(range(10))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_is_absent_is_named_before_anything_is_made(name, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda package: None)
    options = compose("train", Train, ["data=synthetic", f"logger={name}", "data.augment=false"])
    with pytest.raises(UserError, match=rf"logger={name} needs the library {name}(.|\n)*unetseg\[{name}\]"):
        preflight.train(options)
