"""Evaluation of a checkpoint: the numbers of the run again, and other data."""

import json
import shutil

import pandas as pd
import pytest
import torch
from conftest import TINY

from unetseg.errors import UserError
from unetseg.evaluate import data_of_the_run, evaluate
from unetseg.options.compose import compose
from unetseg.options.schema import Evaluate, Train


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """Return a finished run folder."""
    from unetseg.runs.folder import RunFolder
    from unetseg.train import train

    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "name=one", "model.skip=add")
    return RunFolder(train(compose("train", Train, [*TINY, *own]))["folder"])


def scored(*overrides: str):
    overrides = ["accelerator=cpu", *data_of_the_run(list(overrides)), *overrides]
    return evaluate(compose("evaluate", Evaluate, overrides))


def test_the_scores_of_the_run_come_out_again_from_its_folder(run):
    again, first = scored(f"checkpoint={run.path}"), json.loads(run.summary.read_text())
    for name in ("iou", "iou_per_image", "dice", "boundary_iou"):
        assert again[f"test/{name}"] == first[f"test/{name}"]
    assert run.per_image.read_text() == (run.path / "evaluation/synthetic_test/per_image.csv").read_text()


def test_results_are_kept_side_by_side_and_never_overwritten(run, tmp_path):
    folders = [scored(f"checkpoint={run.best}", "split=val")["folder"] for _ in range(2)]
    assert [folder.rpartition("/")[2] for folder in folders] == ["synthetic_val", "synthetic_val_2"]
    (tmp_path / "per_image.csv").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        scored(f"checkpoint={run.best}", f"output={tmp_path}")
    assert (tmp_path / "per_image.csv").read_text() == "mine"


def test_breeds_are_scored_apart_and_add_up(run, tmp_path):
    content = scored(f"checkpoint={run.best}", f"output={tmp_path}/out")
    groups, each = pd.read_csv(tmp_path / "out/per_group.csv"), pd.read_csv(tmp_path / "out/per_image.csv")
    assert groups.images.sum() == content["test/images"] == len(each) == 7
    for _, row in groups.iterrows():
        assert row.iou_per_image == pytest.approx(each[each.group == row.group].iou.mean())
    assert (tmp_path / "out/figures/predictions.png").stat().st_size > 10_000
    edges = pd.read_csv(tmp_path / "out/edge_distance.csv")
    assert edges.pixels.sum() == 7 * 64 * 64
    assert (tmp_path / "out/figures/edge_distance.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "out/summary.json").read_text())["split"] == "test"


def test_data_options_can_be_changed_one_by_one(run, tmp_path):
    content = scored(f"checkpoint={run.best}", "data.border=ignore", f"output={tmp_path}/out")
    assert content["data"]["border"] == "ignore"
    assert content["data"]["size"] == 64
    assert content["test/iou"] != json.loads(run.summary.read_text())["test/iou"]


def test_other_data_can_be_named(run, drawn_set, tmp_path):
    content = scored(f"checkpoint={run.best}", "data=pets", f"data.root={drawn_set}", "data.size=64", "data.workers=0")
    assert content["test/iou"] == json.loads(run.summary.read_text())["test/iou"]


def test_a_moved_checkpoint_still_works_with_named_data(run, drawn_set, tmp_path):
    shutil.copy(run.best, tmp_path / "model.ckpt")
    own = ["data=pets", f"data.root={drawn_set}", "data.size=64", "data.workers=0"]
    content = scored(f"checkpoint={tmp_path}/model.ckpt", *own)
    assert content["folder"] == f"{tmp_path}/evaluation/pets_test"


def test_data_of_other_classes_is_refused(run):
    with pytest.raises(UserError, match=r"knows 2 classes .* the data has 3"):
        scored(f"checkpoint={run.best}", "data.target=trimap")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "foreign", "code"])
def test_a_file_that_is_no_checkpoint_is_refused_and_nothing_of_it_runs(run, tmp_path, kind):
    path = tmp_path / "model.ckpt"

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    if kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "code":
        torch.save({"hyper_parameters": Bomb()}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"text", "truncated": run.best.read_bytes()[:5000]}[kind])
    with pytest.raises(UserError, match=r"model\.ckpt can't be loaded"):
        scored(f"checkpoint={path}", "data=synthetic")
    assert not (tmp_path / "ran").exists()


def test_a_missing_checkpoint_is_told_before_anything_is_imported():
    with pytest.raises(UserError, match="a checkpoint file or a run folder that exists"):
        compose("evaluate", Evaluate, ["checkpoint=nowhere.ckpt"])
