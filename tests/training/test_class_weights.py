"""Weights of classes and boundaries in a run: measured once, kept in its checkpoint, and used by all that follows."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from fake_engine import save_untrained
from PIL import Image

from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.model import checkpoint
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.train import options_of_resumed_run, train
from unetseg.training import build

WEIGHTED = ("loss={dice:1,focal:0.5}", "class_weights=balanced", "boundary_weight=10", "trainer.max_epochs=1")


def pixels(data) -> list[int]:
    """Return the pixels of each class in the training masks, counted apart from the package."""
    masks = [np.asarray(Image.open(example.mask)) for example in data.collection.splits["train"]]
    return [sum(int((mask == value).sum()) for mask in masks) for value in (2, 1)]  # a trimap's background, and pet


def made(drawn, *overrides: str) -> tuple[Train, object]:
    options = compose("train", Train, [*TINY, f"data.root={drawn}", *WEIGHTED, *overrides])
    return options, make_data(options.data.model_dump(), 0)


@pytest.mark.parametrize("check", ["full", "headers", "none"])
def test_the_pixels_of_each_class_are_those_of_the_training_masks(drawn, check):
    _, data = made(drawn, f"data.check={check}")
    found = data.class_pixels("train")
    background, pet = pixels(data)
    total = sum(np.asarray(Image.open(e.mask)).size for e in data.collection.splits["train"])
    assert found[0] == background
    assert found[1] == total - background >= pet


def test_a_class_that_no_mask_shows_weighs_nothing_and_is_named(drawn, capsys, monkeypatch):
    options, data = made(drawn)
    monkeypatch.setattr(data, "class_pixels", lambda split: [100, 0])
    assert build.measured_class_weights(options, data) == [1.0, 0.0]
    assert "class_weights=balanced: background 1, pet 0 (no pixel)" in capsys.readouterr().out


def test_measured_weights_are_kept_printed_and_used_again(drawn, tiny, capsys, monkeypatch):
    run = tiny(*WEIGHTED, "name=weighted")
    _, data = made(drawn)
    counts = data.class_pixels("train")
    wanted = [sum(counts) / (2 * count) for count in counts]
    known = checkpoint.read_hyper_parameters(run.best)
    assert known["class_weights"] == pytest.approx(wanted, rel=1e-12)
    assert (known["loss"], known["boundary_weight"]) == ({"dice": 1.0, "focal": 0.5}, 10.0)
    assert yaml.safe_load(run.config.read_text())["class_weights"] == "balanced"
    assert f"class_weights=balanced: background {wanted[0]:.4g}, pet {wanted[1]:.4g}" in capsys.readouterr().out

    again = evaluate(options_of([f"checkpoint={run.path}", "accelerator=cpu"]))
    assert again["test/iou"] == json.loads(run.summary.read_text())["test/iou"]

    monkeypatch.setattr(type(data), "class_pixels", lambda *_: pytest.fail("was measured again"))
    train(options_of_resumed_run([f"resume={run.path}", "trainer.max_epochs=2"]))
    assert checkpoint.read_hyper_parameters(run.last)["class_weights"] == known["class_weights"]


def test_stated_weights_reach_the_loss_and_the_checkpoint(drawn):
    options, _ = made(drawn, "class_weights=[1,3]")
    module = build.make_module(options)
    assert module.hparams["class_weights"] == [1.0, 3.0]
    assert module.loss.terms[1].weights.by_class[:2].tolist() == [1.0, 3.0]
    assert not [name for name in module.state_dict() if name.startswith("loss")]


def test_a_checkpoint_that_is_older_than_the_weights_is_read(tmp_path):
    file = save_untrained(tmp_path / "old.ckpt")
    content = torch.load(file, weights_only=True)
    for name in ("class_weights", "boundary_weight"):
        del content["hyper_parameters"][name]
    torch.save(content, file)
    assert checkpoint.load(file)[1]["loss"] == "dice"


WRONG = [
    ("loss", {}),
    ("loss", {"rm": 1.0}),
    ("loss", {"dice": "1"}),
    ("loss", {"dice": {"gamma": 1.0}}),
    ("loss", {"focal": {"gamma": float("nan")}}),
    ("class_weights", "balanced"),
    ("class_weights", [1.0]),
    ("class_weights", [1.0, float("inf")]),
    ("boundary_weight", -1.0),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_loss_in_a_checkpoint_is_checked_as_the_rest_is(tmp_path, key, value):
    file = save_untrained(tmp_path / "changed.ckpt")
    content = torch.load(file, weights_only=True)
    content["hyper_parameters"][key] = value
    torch.save(content, file)
    with pytest.raises(UserError, match=f"changed.ckpt can't be loaded: {key}="):
        checkpoint.load(file)
