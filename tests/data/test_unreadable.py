"""Files that can't be read: the end of a run, or left out before it, out of a batch, named and counted."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from unetseg.data.dataset import read_list
from unetseg.data.masks import MaskValues, mask_size, read_raw_mask
from unetseg.data.pictures import Unreadable, image_size, read_image
from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.model.skips import Shuffled
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.train import train as run_training


def read_as_stored(path):
    return read_raw_mask(path, MaskValues(np.arange(256, dtype=np.uint8)))


@pytest.fixture
def own(drawn_set, tmp_path):
    """A copy of the drawn set: 18 pictures for training, 2 for validation, 7 for the test."""
    return shutil.copytree(drawn_set, tmp_path / "set")


def prepared(root, *overrides: str, skip: bool = True):
    """Return the ready data module."""
    pets = ("data=pets", "data.size=64", f"data.root={root}", "data.batch_size=4", "data.workers=0")
    others = [override for override in TINY if not override.startswith("data")]
    options = compose("train", Train, [*others, *pets, "model.weights=null", *overrides])
    data = make_data(options.data.model_dump(), 0, skip_unreadable=skip)
    data.setup()
    return data


def names(data, split: str) -> list[str]:
    return [example.name for example in data.collection.splits[split]]


def cut_short(path) -> None:
    """Keep the header, and little more."""
    path.write_bytes(path.read_bytes()[:700])


def all_of(batches, field: str) -> list[int]:
    return torch.cat([getattr(batch, field) for batch in batches]).tolist()


def test_what_has_no_header_is_left_out_before_training_and_told_in_a_line(own, capsys):
    first = prepared(own)
    gone = [names(first, "train")[3], names(first, "train")[5], names(first, "val")[0], names(first, "test")[1]]
    (own / f"images/{gone[0]}.jpg").write_text("no picture")
    (own / f"annotations/trimaps/{gone[1]}.png").write_bytes(b"")
    (own / f"images/{gone[2]}.jpg").unlink()
    (own / f"images/{gone[3]}.jpg").unlink()
    data = prepared(own)
    for split in ("train", "val", "test"):
        assert names(data, split) == [name for name in names(first, split) if name not in gone]
    assert capsys.readouterr().out == f"left out, unreadable: 4 pictures: {', '.join(gone[:3])}, ...\n"


def test_a_picture_left_alone_by_unreadable_ones_gets_zeros_of_a_shuffled_skip(own, tmp_path):
    cut_short(own / f"images/{names(prepared(own), 'train')[5]}.jpg")
    pets = ("data=pets", "data.size=64", f"data.root={own}", "data.batch_size=2", "data.workers=0")
    small = ("model.weights=null", "model.skip=shuffled", "trainer.max_epochs=1", "guards.unreadable_image=skip")
    others = [override for override in TINY if not override.startswith("data")]
    options = compose("train", Train, [*others, *pets, *small, f"output={tmp_path}", "name=run"])
    alone = []

    def see(module, inputs):
        if isinstance(module, Shuffled) and module.training:
            alone.append(len(inputs[0]) == 1)

    with register_module_forward_pre_hook(see):
        assert run_training(options)["unreadable_images"] == 1
    assert any(alone), "a batch had lost its other picture"


def test_one_training_picture_is_refused_with_a_shuffled_skip_whatever_is_left_out(own, tmp_path):
    (own / "annotations/trainval.txt").write_text(
        "".join((own / "annotations/trainval.txt").read_text().splitlines(True)[:2])
    )
    pets = ("data=pets", "data.size=64", f"data.root={own}", "data.workers=0", "data.validation=0.5")
    others = [override for override in TINY if not override.startswith("data")]
    given = (
        "model.weights=null",
        "model.skip=shuffled",
        "guards.unreadable_image=skip",
        f"output={tmp_path}",
        "name=run",
    )
    with pytest.raises(UserError, match="1 training picture on 1 device"):
        run_training(compose("train", Train, [*others, *pets, *given]))


def test_a_run_counts_and_records_what_it_left_out_before_training_and_in_it(own, tmp_path):
    train = names(prepared(own), "train")
    (own / f"images/{train[3]}.jpg").unlink()
    cut_short(own / f"images/{train[5]}.jpg")
    pets = ("data=pets", "data.size=64", f"data.root={own}", "data.batch_size=4", "data.workers=0")
    small = ("model.encoder=resnet18", "model.weights=null", "trainer.max_epochs=2", "guards.unreadable_image=skip")
    others = [override for override in TINY if not override.startswith("data")]
    options = compose("train", Train, [*others, *pets, *small, f"output={tmp_path}", "name=run"])
    assert run_training(options)["unreadable_images"] == 2
    table = pd.read_csv(tmp_path / "run/left_out.csv")
    assert table.name.tolist() == [train[3], train[5]], "each once, not in every epoch"
    assert set(table.reason) == {"unreadable_image"}


def test_without_skipping_it_ends_the_run_before_training(own):
    (own / f"images/{names(prepared(own), 'train')[3]}.jpg").unlink()
    with pytest.raises(UserError, match="does not exist"):
        prepared(own, skip=False)


def test_a_split_of_which_nothing_can_be_read_ends_the_run_all_the_same(own):
    for name in names(prepared(own), "val"):
        (own / f"images/{name}.jpg").unlink()
    with pytest.raises(UserError, match="does not exist"):
        prepared(own)


def test_a_mask_of_another_size_is_no_unreadable_file(own):
    data = prepared(own)
    a, b = (own / f"annotations/trimaps/{name}.png" for name in names(data, "train")[:2])
    Image.open(a).resize((9, 9)).save(b)
    with pytest.raises(UserError, match="accepted: a mask of the picture's size"):
        prepared(own)


@pytest.mark.parametrize("cache", ["none", "disk", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["images/{}.jpg", "annotations/trimaps/{}.png"])
def test_what_turns_out_unreadable_is_left_out_of_its_batch(own, workers, part, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = prepared(own, f"data.workers={workers}", f"data.cache={cache}")
    bad = own / part.format(names(data, "train")[7])
    bad.write_bytes(bad.read_bytes()[: 700 if bad.suffix == ".jpg" else 60])
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert all_of(batches, "unreadable") == [7]
        assert sorted(all_of(batches, "indices")) == [i for i in range(18) if i != 7]
        assert all(len(batch.images) == len(batch.masks) == len(batch.indices) for batch in batches)


def test_the_others_of_such_a_batch_are_what_they_were(own):
    whole = prepared(own)
    before = list(whole.train_dataloader())
    cut_short(own / f"images/{names(whole, 'train')[7]}.jpg")
    for ours, theirs in zip(prepared(own).train_dataloader(), before, strict=True):
        kept = theirs.indices != 7
        assert torch.equal(ours.indices, theirs.indices[kept])
        assert torch.equal(ours.images, theirs.images[kept])
        assert torch.equal(ours.masks, theirs.masks[kept])


@pytest.mark.parametrize("workers", [0, 2])
def test_without_skipping_it_ends_the_run_and_is_named(own, workers):
    data = prepared(own, f"data.workers={workers}", skip=False)
    bad = own / f"images/{names(data, 'train')[7]}.jpg"
    cut_short(bad)
    with pytest.raises(UserError, match=f"UserError: .*{bad.name}" if workers else bad.name):
        list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_which_nothing_can_be_read_ends_the_run_and_is_named(own, workers):
    data = prepared(own, f"data.workers={workers}")
    lost = names(data, "test")[:4]
    for name in lost:
        cut_short(own / f"images/{name}.jpg")
    with pytest.raises(UserError, match="nothing is left of a batch") as caught:
        list(data.test_dataloader())
    assert all(f"{name}.jpg can't be read" in str(caught.value) for name in lost)


def test_normally_nothing_is_unreadable(own):
    batch = next(iter(prepared(own, skip=False).train_dataloader()))
    assert batch.unreadable.tolist() == []
    assert batch.unreadable.dtype == torch.int64


def test_it_is_an_option_of_training():
    options = compose("train", Train, ["data=synthetic"])
    assert options.guards.unreadable_image == "stop"
    with pytest.raises(UserError, match="stop or skip"):
        compose("train", Train, ["data=synthetic", "guards.unreadable_image=ignore"])


@pytest.mark.parametrize("read", [image_size, mask_size, read_image, read_as_stored])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_named_at_once(tmp_path, read, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(Unreadable, match=r"is no file|does not exist|is a folder"):
        read(path)


def test_a_list_that_is_a_pipe_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "train.txt")
    with pytest.raises(UserError, match=r"train.txt is no file"):
        read_list(tmp_path / "train.txt")
