"""Training from the options to a run folder, on drawn pictures."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from conftest import HANG, TINY, WIDTHS, Forked, forked, write_pairs
from PIL import Image

import unetseg
from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Ablate, Train


@pytest.fixture(scope="module")
def finished(drawn, tmp_path_factory):
    """Return one finished run folder that the tests of its content share."""
    from unetseg.runs.folder import RunFolder
    from unetseg.train import train

    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "name=one")
    return RunFolder(train(compose("train", Train, [*TINY, *own]))["folder"])


def test_a_run_folder_holds_what_is_promised(finished):
    present = {str(path.relative_to(finished.path)) for path in finished.path.rglob("*") if path.is_file()}
    assert present == {
        ".lock",
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "summary.json",
        "per_image.csv",
        "per_class.csv",
        "calibration.csv",
        "confusion.csv",
        "edge_distance.csv",
        "edge_distance_per_image.csv",
        "gradient_flow.csv",
        "figures/gradient_flow.png",
        "figures/gradient_routes.png",
        "figures/gradient_short.png",
        "figures/calibration.png",
        "figures/confusion.png",
        "figures/curves.png",
        "figures/edge_distance.png",
        "figures/predictions.png",
    }


@pytest.mark.quick
def test_the_summary_has_every_promised_entry(finished):
    summary = json.loads(finished.summary.read_text())
    promised = (
        "test/iou test/iou_per_image test/dice test/boundary_iou parameters flops images_per_second peak_memory "
        "seconds skip encoder seed versions git_commit"
    )
    assert set(promised.split()) <= summary.keys()
    net = smp.Unet("tu-test_resnet", encoder_weights=None, decoder_channels=WIDTHS)
    assert summary["parameters"] == sum(weight.numel() for weight in net.parameters())
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert 0 < summary["test/iou"] <= 1


def test_metrics_are_in_long_format(finished):
    table = pd.read_csv(finished.metrics)
    assert list(table.columns) == ["step", "epoch", "name", "value"]
    assert {"train/loss", "val/iou", "val/iou_per_image", "val/dice", "val/boundary_iou", "test/iou"} <= set(table.name)
    assert list(table[table.name == "val/iou"].epoch) == [0, 1]


def test_the_table_of_images_agrees_with_the_summary(finished):
    table = pd.read_csv(finished.per_image)
    summary = json.loads(finished.summary.read_text())
    assert list(table.columns) == ["name", "group", "iou", "dice", "boundary_iou", "hd95", "nsd"]
    assert len(table) == 7
    assert table.name.is_unique
    assert table.iou.mean() == pytest.approx(summary["test/iou_per_image"], abs=1e-12)
    logged = pd.read_csv(finished.metrics).set_index("name").value
    assert logged["test/iou"] == pytest.approx(summary["test/iou"], abs=1e-6)
    assert logged["test/boundary_iou"] == pytest.approx(summary["test/boundary_iou"], abs=1e-6)


def test_the_test_scores_are_those_of_the_best_checkpoint_counted_by_hand(finished):
    from unetseg.model import checkpoint
    from unetseg.model.segmenter import class_map

    model, _ = checkpoint.load(finished.best)
    options = compose("train", Train, [*TINY, *saved_data(finished)])
    data = make_data(options.data.model_dump(), 0)
    data.setup()
    intersection = union = 0
    for batch in data.test_dataloader():
        with torch.inference_mode():  # in float32, as TINY trains
            predicted = class_map(model(batch.images))
        intersection += ((predicted == 1) & (batch.masks == 1)).sum().item()
        union += ((predicted == 1) | (batch.masks == 1)).sum().item()
    assert json.loads(finished.summary.read_text())["test/iou"] == pytest.approx(intersection / union, abs=1e-12)


def saved_data(run):
    return [f"data.root={yaml.safe_load(run.config.read_text())['data']['root']}"]


def test_the_saved_config_is_complete_and_valid(finished):
    saved = yaml.safe_load(finished.config.read_text())
    assert Train.model_validate(saved).model_dump() == saved


def test_checkpoints_load_with_weights_only_and_hold_plain_values(finished):
    for path in (finished.best, finished.last):
        content = torch.load(path, weights_only=True)
        assert json.loads(json.dumps(content["hyper_parameters"])) == content["hyper_parameters"]
        assert content["hyper_parameters"]["model"]["skip"] == "concat"


@pytest.mark.quick
def test_the_same_seed_gives_the_same_metrics_to_the_last_digit(finished, tiny):
    again = tiny("name=again")
    assert again.metrics.read_text() == finished.metrics.read_text()
    assert again.per_image.read_text() == finished.per_image.read_text()


def test_another_seed_gives_other_metrics(finished, tiny):
    assert tiny("seed=1").metrics.read_text() != finished.metrics.read_text()


def test_workers_change_nothing_about_the_metrics(finished, tiny):
    assert tiny("data.workers=2").metrics.read_text() == finished.metrics.read_text()


def test_a_taken_name_is_refused_and_nothing_is_lost(finished):
    before = finished.metrics.read_text()
    from unetseg.train import train

    own = [*saved_data(finished), f"output={finished.path.parent}", "name=one"]
    with pytest.raises(UserError, match="nothing is overwritten"):
        train(compose("train", Train, [*TINY, *own]))
    assert finished.metrics.read_text() == before


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.skip=add", "loss=bce_dice", "data.border=ignore"),
        ("model.skip=[none,add,concat,none]", "data.target=trimap", "loss=cross_entropy"),
        (
            "model.encoder=densenet121",
            "model.skip=none",
            "loss=bce",
            "trainer.precision=32-true",
            "channels_last=false",
        ),
    ],
    ids=" ".join,
)
def test_settings_train(tiny, overrides):
    run = tiny("trainer.max_epochs=1", *overrides)
    assert 0 <= json.loads(run.summary.read_text())["test/iou"] <= 1


def test_a_compiled_training_is_the_same_but_for_the_compilers_rounding(tiny, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # compiles to the very operations, which round as they did
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    short = ("trainer.max_epochs=1", "gradients.every_n_steps=2")
    run = tiny("compile=true", *short)
    assert len(graphs) >= 2, "training and evaluation"
    plain = tiny(*short)
    assert run.metrics.read_text() == plain.metrics.read_text()
    assert run.gradient_flow.read_text() == plain.gradient_flow.read_text()
    costs = [json.loads(each.summary.read_text()) for each in (run, plain)]
    assert costs[0]["flops"] == costs[1]["flops"]
    weights = [torch.load(each.last, weights_only=True)["state_dict"] for each in (run, plain)]
    assert weights[0].keys() == weights[1].keys()


def test_own_pictures_of_three_classes_train(drawn_set, tmp_path):
    import numpy as np

    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for path in drawn_set.glob("annotations/trimaps/*.png"):
        mask = np.asarray(Image.open(path)) % 3
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "own/masks" / path.name)
        Image.open(drawn_set / f"images/{path.stem}.jpg").save(tmp_path / f"own/images/{path.stem}.png")
    from unetseg.train import train

    own = [override for override in TINY if "synthetic" not in override and "images=" not in override]
    options = ["data=folder", f"data.root={tmp_path}/own", "data.classes=[edge,animal,scene]", f"output={tmp_path}"]
    weights = ["model.encoder=resnet18", "model.weights=null", "trainer.max_epochs=1"]
    summary = train(compose("train", Train, [*own, *options, *weights]))
    assert summary["test/images"] == 4


def test_what_lightning_refuses_is_a_users_error(tiny):
    with pytest.raises(UserError, match=r"Lightning's Trainer refuses .*trainer\.accelerator=quantum"):
        tiny("trainer.accelerator=quantum")


def test_a_bad_picture_is_named_by_the_command_also_from_a_worker(drawn_set, tmp_path):
    import shutil

    shutil.copytree(drawn_set, tmp_path / "set")
    broken = sorted((tmp_path / "set/images").glob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:700])
    overrides = ["data=pets", f"data.root={tmp_path}/set", "data.size=64", "data.workers=2", "data.batch_size=4"]
    quick = ["model.encoder=resnet18", "model.weights=null", "logger=csv", f"output={tmp_path}/runs"]
    log = tmp_path / "log"
    assert Forked([*overrides, *quick, "trainer.enable_progress_bar=false"], log).wait(HANG) == 2, log.read_text()
    assert "unetseg.train: " in log.read_text()
    assert broken.name in log.read_text()
    assert "Traceback" not in log.read_text()


# The multirun runs as a command, because Hydra takes it from there, and its W&B runs are read back with W&B's own tool.


@pytest.fixture(scope="module")
def multirun(drawn, tmp_path_factory):
    """Return the folder and the output of a sweep of two skips in one process, logged to W&B offline."""
    folder, log = tmp_path_factory.mktemp("multirun"), tmp_path_factory.mktemp("log") / "log"
    tiny = [override for override in TINY if override != "logger=csv"]
    command = ["-m", *tiny, f"data.root={drawn}", "model.skip=concat,none", "output=runs"]
    assert Forked(command, log, folder).wait(HANG) == 0, log.read_text()
    return folder, log.read_text()


def inspect(run: Path, *flags: str):
    """Return what `wandb leet inspect --json` reads from an offline run."""
    binary = Path(sys.executable).with_name("wandb")
    done = subprocess.run([binary, "leet", "inspect", "--json", *flags, run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_multirun_gives_separate_run_folders_and_one_table(multirun):
    folder, output = multirun
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/summary.json"))]
    assert [summary["skip"] for summary in summaries] == ["concat", "none"]
    assert output.count("test_resnet") >= 2
    assert {path.name for path in folder.iterdir()} == {"runs"}, "Hydra leaves no folder of its own"


def test_a_multirun_gives_separate_wandb_runs_with_flat_config_curves_and_pictures(multirun):
    folder, output = multirun
    runs = sorted(folder.glob("runs/*/wandb/offline-run-*/*.wandb"))
    assert len(runs) == 2
    assert output.count("wandb sync") == 2
    for run, skip in zip(runs, ("concat", "none"), strict=True):
        text = inspect(run) + inspect(run, "--summary")
        assert "val/iou" in text
        assert "train/loss" in text
        assert "val/predictions" in text
        assert "gradient/skip_share/level1" in text
        assert "gradient/flow" in text
        assert '"skip"' in text
        assert skip in text
        assert list(run.parent.glob("files/media/images/val/predictions*.png"))
        assert list(run.parent.glob("files/media/images/mask/**/*.png"))


def test_online_without_a_key_is_refused_with_what_to_do(tmp_path, drawn):
    options = (*TINY, f"data.root={drawn}", "logger=wandb", "wandb.mode=online", f"output={tmp_path}")
    done = forked("unetseg.train", *options, environment={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 2, done.stderr
    assert "wandb.mode=offline" in done.stderr
    assert not list(tmp_path.glob("*seed0*")), "a refused command leaves nothing behind"


# A dry run


def folder_of_pictures(root: Path) -> Path:
    """Write pictures with masks of two halves."""
    images = np.random.default_rng(0).integers(0, 256, (12, 40, 48, 3), dtype=np.uint8)
    masks = [np.tile(np.arange(48) < 10 + i, (40, 1)).astype(np.uint8) for i in range(12)]
    return write_pairs(root, zip(images, masks, strict=True))


def dry(*overrides: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run `unetseg.train dry_run=true` in a folder of its own."""
    words = ["model.encoder=resnet18", "model.weights=null", "data.size=64", "data.workers=0", "dry_run=true"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd / "cache")}
    return forked("unetseg.train", *words, "trainer.accelerator=cpu", *overrides, folder=cwd, environment=environment)


def test_a_dry_run_tells_what_would_be_trained_and_makes_no_run_folder(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    words = ("data=folder", f"data.root={root}", "data.batch_size=3", "trainer.max_epochs=4", "name=one")
    done = dry(*words, "seed=0,1", "--multirun", "name=null", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("pictures: 8 for train, 2 for val, 2 for test; 3 steps an epoch (batches of 3)") == 2
    assert "12 steps in all" in done.stdout
    assert "14.33 M parameters: runs/folder_resnet18_concat_seed1_" in done.stdout
    assert "background" in done.stdout  # the table of the data
    assert done.stdout.count("dry_run=true: nothing was trained, and no run folder made") == 2
    assert not [path for path in (tmp_path / "runs").rglob("config.yaml") if ".multirun" not in path.parts]


def test_a_dry_run_refuses_what_a_training_would(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    (root / "masks/3.png").unlink()
    done = dry("data=folder", f"data.root={root}", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 of 12 pictures have no mask of their name" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_refuses_a_name_that_is_taken_and_writes_a_sheet_over_no_other(drawn, tmp_path, capsys):
    from unetseg.train import look

    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.yaml").write_text("seed: 0")
    options = [*TINY, f"data.root={drawn}", f"output={tmp_path}", "dry_run=true"]
    with pytest.raises(UserError, match=r"the run folder .*one exists"):
        look(compose("train", Train, [*options, "name=one"]))
    look(compose("train", Train, [*options, "name=two"]))
    assert "5 steps an epoch (batches of 4), 10 steps in all" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.augmented.png"]
    look(compose("train", Train, [*options, "name=two", "data.augment=none"]))
    look(compose("train", Train, [*options, "name=two", "data.augment=aerial"]))
    assert f"augmented pictures: {tmp_path}/two.augmented_2.png" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.augmented.png", "two.augmented_2.png"]


def test_a_dry_run_of_a_sweep_is_one_of_train(tmp_path):
    with pytest.raises(UserError, match="--multirun"):
        compose("ablate", Ablate, ["data=synthetic", "dry_run=true"])
    with pytest.raises(UserError, match="makes no run, which a call from Python"):
        unetseg.train(data="synthetic", dry_run=True, output=str(tmp_path))
