"""Evaluation of a checkpoint: the numbers of the run again, and other data."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from PIL import Image

from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.options.command_schema import Evaluate
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_resumed_run, train
from unetseg.training import precision


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """Return a finished run folder."""
    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "name=one", "model.skip=add")
    return RunFolder(train(compose("train", Train, [*TINY, *own]))["folder"])


def scored(*overrides: str):
    options = options_of(["accelerator=cpu", *overrides])
    assert options is not None
    return evaluate(options)


def test_the_scores_of_the_run_come_out_again_from_its_folder(run):
    again, first = scored(f"checkpoint={run.path}"), json.loads(run.summary.read_text())
    for name in ("iou", "iou_per_image", "dice", "boundary_iou"):
        assert again[f"test/{name}"] == first[f"test/{name}"]
    assert run.per_image.read_text() == (run.path / "evaluation/synthetic_test/per_image.csv").read_text()


def test_a_checkpoint_is_scored_and_looked_into_in_float32_also_where_bfloat16_is_faster(run, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "best_precision", lambda accelerator: precision.MIXED)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    assert scored(f"checkpoint={run.best}", f"output={tmp_path}/own")["precision"] == "32-true"
    other = torch.load(run.best, weights_only=True) | {"precision": "bf16-mixed"}
    torch.save(other, tmp_path / "other.ckpt")
    asked = (f"checkpoint={tmp_path}/other.ckpt", f"output={tmp_path}/mixed", "mechanism=[sharpness]")
    assert scored(*asked)["precision"] == "bf16-mixed"
    rises = pd.read_csv(tmp_path / "mixed/sharpness.csv").rise.to_numpy()
    assert (rises * 2**16 % 1 != 0).all(), "losses in bfloat16 would differ by multiples of a power of 2"


def test_a_training_in_float64_goes_on_and_is_scored_to_the_last_bit(tiny, tmp_path, capsys):
    whole, halved = (
        tiny(f"name={name}", "trainer.precision=64-true", f"trainer.max_epochs={epochs}", "optimizer.ema=0.5",
             "optimizer.schedule=constant")
        for name, epochs in (("whole", 2), ("halved", 1))
    )  # fmt: skip
    train(options_of_resumed_run([f"resume={halved.path}", "trainer.max_epochs=2"]))
    one, other = (torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, halved))
    assert all(weight.dtype != torch.float32 for weight in one.values())
    assert all(torch.equal(one[name], other[name]) for name in one)
    capsys.readouterr()
    asked = (f"checkpoint={whole.path}", f"output={tmp_path}/scores", "mechanism=[rank,sharpness]", "lesion=true")
    again, own = scored(*asked), json.loads(whole.summary.read_text())
    assert {key: again[key] for key in own if key.startswith("test/")}.items() <= own.items()
    assert "scored in 64-true" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["nonsense", 3, ["32-true"], True, "\x1b[31m"])
def test_a_checkpoint_with_a_number_format_that_is_none_is_refused(run, tmp_path, given):
    torch.save(torch.load(run.best, weights_only=True) | {"precision": given}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"can't be loaded.*precision"):
        scored(f"checkpoint={tmp_path}/odd.ckpt", f"output={tmp_path}/odd")


def test_results_are_kept_side_by_side_and_never_overwritten(run, tmp_path):
    folders = [scored(f"checkpoint={run.best}", "split=val")["folder"] for _ in range(2)]
    assert [folder.rpartition("/")[2] for folder in folders] == ["synthetic_val", "synthetic_val_2"]
    (tmp_path / "per_image.csv").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        scored(f"checkpoint={run.best}", f"output={tmp_path}")
    assert (tmp_path / "per_image.csv").read_text() == "mine"


def test_results_are_not_written_through_a_link(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "outside").mkdir()
    (copy / "evaluation").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="evaluation is a link"):
        scored(f"checkpoint={copy}")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.quick
def test_breeds_are_scored_apart_and_add_up(run, tmp_path, figures):
    content = scored(f"checkpoint={run.best}", f"output={tmp_path}/out")
    groups, each = pd.read_csv(tmp_path / "out/per_group.csv"), pd.read_csv(tmp_path / "out/per_image.csv")
    assert groups.images.sum() == content["test/images"] == len(each) == 7
    for _, row in groups.iterrows():
        of_group = each[each.group == row.group]
        assert row.iou_per_image == pytest.approx(of_group.iou.mean())
        for score in ("hd95", "nsd"):
            assert row[score] == pytest.approx(of_group[score].mean(), nan_ok=True)
            assert row[f"{score}_images"] == of_group[score].count()
    assert (tmp_path / "out/figures/predictions.png").stat().st_size > 10_000
    edges = pd.read_csv(tmp_path / "out/edge_distance.csv")
    assert edges.pixels.sum() == 7 * 64 * 64
    assert (tmp_path / "out/figures/edge_distance.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "out/summary.json").read_text())["split"] == "test"


def test_surfaces_and_confidence_are_scored_of_every_picture_and_class(run, tmp_path, capsys, figures):
    content = scored(f"checkpoint={run.best}", "tolerance=1", f"output={tmp_path}/out")
    printed = capsys.readouterr().out
    each, classes, bins = (
        pd.read_csv(tmp_path / f"out/{name}.csv") for name in ("per_image", "per_class", "calibration")
    )
    assert each.hd95.mean() == pytest.approx(content["test/hd95"])
    assert classes.nsd[1] == pytest.approx(each.nsd.mean()) == pytest.approx(content["test/nsd"])
    assert classes.hd95_images[1] == each.hd95.count() == content["test/hd95_images"]
    assert bins.pixels.sum() == classes.pixels.sum() == 7 * 64 * 64
    gaps = (bins.pixels * (bins.confidence - bins.accuracy).abs()).sum() / bins.pixels.sum()
    assert content["test/ece"] == pytest.approx(gaps)
    assert f"NSD {content['test/nsd']:.3f} at 1 px, over {content['test/nsd_images']} of 7 images" in printed
    assert (tmp_path / "out/figures/calibration.png").stat().st_size > 5_000
    at_two = json.loads(run.summary.read_text())
    assert at_two["test/nsd_tolerance"] == 2
    assert at_two["test/nsd"] > content["test/nsd"]
    assert at_two["test/hd95"] == content["test/hd95"]


def test_data_options_can_be_changed_one_by_one(run, tmp_path):
    content = scored(f"checkpoint={run.best}", "data.border=ignore", f"output={tmp_path}/out")
    assert content["data"]["border"] == "ignore"
    assert content["data"]["size"] == 64
    assert content["test/iou"] != json.loads(run.summary.read_text())["test/iou"]


def test_other_data_is_scored_at_the_size_of_the_model(run, drawn_set, tmp_path):
    content = scored(f"checkpoint={run.best}", "data=pets", f"data.root={drawn_set}", "data.workers=0")
    assert content["test/iou"] == json.loads(run.summary.read_text())["test/iou"]
    assert content["data"]["size"] == 64


def test_a_folder_without_lists_is_scored_whole(run, drawn_set, tmp_path):
    """Each picture has the scores that it has as one of a split."""
    root = tmp_path / "set"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for path in sorted((drawn_set / "images").glob("*.jpg"))[:9]:
        shutil.copy(path, root / "images")
        trimap = np.array(Image.open(drawn_set / f"annotations/trimaps/{path.stem}.png"))
        Image.fromarray((trimap != 2).astype(np.uint8)).save(root / f"masks/{path.stem}.png")
    own = (f"checkpoint={run.best}", "data=folder", f"data.root={root}", "data.workers=0")
    scored(*own, "split=all", f"output={tmp_path}/all")
    whole = pd.read_csv(tmp_path / "all/per_image.csv")
    assert sorted(whole["name"]) == sorted(path.stem for path in (root / "images").iterdir())
    for split, names in (("train", whole["name"][:3]), ("val", whole["name"][3:5]), ("test", whole["name"][5:])):
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    parts = []
    for split in ("train", "val", "test"):
        scored(*own, f"split={split}", f"output={tmp_path}/{split}")
        parts.append(pd.read_csv(tmp_path / f"{split}/per_image.csv"))
    columns = ["name", "iou", "boundary_iou"]
    expected = pd.concat(parts)[columns].sort_values("name", ignore_index=True)
    pd.testing.assert_frame_equal(whole[columns].sort_values("name", ignore_index=True), expected)


@pytest.fixture
def alone(run, tmp_path):
    """The checkpoint, copied out of its run folder."""
    return shutil.copy(run.best, tmp_path / "model.ckpt")


def test_a_checkpoint_outside_of_its_folder_carries_its_data_options(run, alone, tmp_path):
    content = scored(f"checkpoint={alone}")
    assert content["test/iou"] == json.loads(run.summary.read_text())["test/iou"]
    assert content["folder"] == f"{tmp_path}/evaluation/synthetic_test"
    assert content["data"]["size"] == 64


@pytest.mark.parametrize(
    "above", ["lr: 0.1", "a: &a [*a]", "- data", "", "data: {name: ../../x}\nmodel: {}\ntrainer: {}"]
)
def test_another_programs_config_makes_no_run_folder(alone, tmp_path, above):
    (tmp_path / "project/checkpoints").mkdir(parents=True)
    path = shutil.move(alone, tmp_path / "project/checkpoints/unet.ckpt")
    (tmp_path / "project/config.yaml").write_text(above)
    options = options_of([f"checkpoint={path}"])
    assert (options.data.name, options.data.size) == ("synthetic", 64)


def test_what_the_user_gives_holds_before_what_the_checkpoint_knows(alone, tmp_path, drawn_set):
    options = options_of([f"checkpoint={alone}", "data.size=96", "data.border=ignore", "split=val"])
    assert (options.data.size, options.data.border, options.split) == (96, "ignore", "val")
    (tmp_path / "images").mkdir()
    options = options_of([f"checkpoint={alone}", "data=folder", f"data.root={tmp_path}"])
    assert (options.data.size, options.data.classes) == (64, ["background", "pet"])


def test_an_option_that_does_not_exist_is_told_with_the_nearest(run):
    with pytest.raises(UserError, match=r"data\.bordr is not an option\n.*\n.*data\.border"):
        options_of([f"checkpoint={run.path}", "data.bordr=ignore"])


def test_a_record_of_a_stranger_is_text(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    copy = shutil.copytree(run.path, tmp_path / "copy")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("border: pet", "border: ${oc.env:SECRET}"))
    with pytest.raises(UserError, match=r"data\.border=\$\{oc\.env:SECRET\} is not accepted"):
        options_of([f"checkpoint={copy}"])


def test_data_of_other_classes_is_refused(run):
    with pytest.raises(UserError, match=r"knows 2 classes .* the data has 3"):
        scored(f"checkpoint={run.best}", "data.target=trimap")


@pytest.mark.parametrize("classes", ["[pet,background]", "[background,cat]"])
def test_classes_are_compared_by_name_and_order(run, tmp_path, classes):
    with pytest.raises(UserError, match=r"knows 2 classes \(background, pet\), the data has 2"):
        scored(f"checkpoint={run.best}", "data=folder", f"data.root={tmp_path}", f"data.classes={classes}")


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
        scored(f"checkpoint={path}")
    assert not (tmp_path / "ran").exists()


def test_a_missing_checkpoint_is_told_before_anything_is_imported():
    with pytest.raises(UserError, match="a checkpoint file or a run folder that exists"):
        compose("evaluate", Evaluate, ["checkpoint=nowhere.ckpt"])
