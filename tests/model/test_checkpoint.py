"""A checkpoint is read as data, whole, and checked before a model is built of it."""

import io
import re
import resource
import zipfile

import pytest
import torch
from fake_engine import save_untrained
from torch import nn

from unetseg.errors import UserError
from unetseg.model import Segmenter, archive, checkpoint


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("model") / "model.ckpt")


@pytest.fixture
def changed(file, tmp_path):
    """Return a function that lets a change be made to a checkpoint's content, and returns the new file."""

    def change(alter):
        content = torch.load(file, weights_only=True)
        alter(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return change


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


WRONG = [
    ("model", "encoder", "tu-hf-hub:me/model"),
    ("model", "encoder", None),
    ("model", "skip", 5),
    ("model", "skip", ["none"]),
    ("model", "skip_flow", "sideways"),
    ("model", "skip_gradient", -1),
    ("model", "skip_gradient", float("nan")),
    ("model", "skip_gradient", True),
    ("model", "skip_scale", 0),
    ("model", "stem_skip", 1),
    ("model", "skip_scale", ["learned"] * 4),
    ("model", "classes", 10**9),
    ("model", "classes", 2.0),
    ("model", "classes", True),
    ("model", "short_skips", "no"),
    ("model", "normalisation", "layer"),
    ("model", "weights", "imagenet"),
    ("model", "in_channels", 10**9),
    ("model", "decoder_channels", [10**9] * 5),
    (None, "model", None),
    (None, "classes", ["one"]),
    (None, "classes", "ab"),
    (None, "classes", [1, 2]),
    (None, "data", None),
    ("data", "size", 10**9),
    ("data", "size", "64"),
    ("data", "name", None),
    ("data", "range", [1, float("nan")]),
    (None, "loss", "rm"),
    (None, "seed", -1),
]


@pytest.mark.parametrize(("section", "key", "value"), WRONG, ids=str)
def test_hyper_parameters_are_checked_before_a_model_is_built(changed, monkeypatch, section, key, value):
    def alter(content):
        known = content["hyper_parameters"]
        (known[section] if section else known)[key] = value

    monkeypatch.setattr(Segmenter, "__init__", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(UserError, match=r"changed\.ckpt can't be loaded: "):
        checkpoint.load(changed(alter))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(changed, weight):
    name = "model.net.segmentation_head.0.bias"
    with pytest.raises(UserError, match=re.escape("net.segmentation_head.0.bias holds NaN or infinity")):
        checkpoint.load(changed(lambda content: content["state_dict"][name].fill_(weight)))


@pytest.mark.parametrize("state", [None, {}, {"model.net": 3}, {1: torch.zeros(1)}], ids=str)
def test_weights_that_are_none_are_refused(changed, state):
    with pytest.raises(UserError, match="can't be loaded"):
        checkpoint.load(changed(lambda content: content.update(state_dict=state)))


def test_flipped_bytes_are_noticed(file, tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        checkpoint.load(damaged)


def rewritten(file, path, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """Write an archive again, its records changed."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path


def test_compressed_records_are_refused_before_they_are_inflated(file, tmp_path):
    bomb = rewritten(
        file, tmp_path / "bomb.ckpt", lambda n, c: bytes(2**29) if n.endswith("data/0") else c, zipfile.ZIP_DEFLATED
    )
    before = peak()
    with pytest.raises(UserError, match="compressed"):
        checkpoint.load(bomb)
    assert peak() - before < 100


def test_what_takes_memory_without_bytes_in_the_file_is_refused(file, tmp_path):
    def grow(name, content):
        more = b"cbuiltins\nbytearray\n\x8a\x08" + (2**33).to_bytes(8, "little") + b"\x85R0"
        return content[:2] + more + content[2:] if name.endswith("data.pkl") else content

    with pytest.raises(UserError, match="it calls 'builtins bytearray'"):
        checkpoint.load(rewritten(file, tmp_path / "grown.ckpt", grow))


def test_an_archive_that_holds_two_is_read_as_the_one_that_was_checked(file, tmp_path):
    other = io.BytesIO()
    torch.save({"hidden": torch.zeros(3)}, other)
    path = tmp_path / "two.ckpt"
    path.write_bytes(other.getvalue() + file.read_bytes())
    assert "hidden" not in archive.load(path)


def test_a_file_beyond_any_of_ours_is_refused_unread(tmp_path):
    with (tmp_path / "large.ckpt").open("wb") as sparse:
        sparse.truncate(archive.LARGEST + 1)
    with pytest.raises(UserError, match="larger than 4 GiB"):
        checkpoint.load(tmp_path / "large.ckpt")


def test_a_run_folder_without_its_best_gives_its_last_with_a_word(file, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(file.read_bytes())
    assert checkpoint.load(tmp_path)[1] == checkpoint.load(file)[1]
    assert "its last.ckpt is taken" in capsys.readouterr().err


def test_no_random_weights_are_drawn_that_a_checkpoint_replaces(file):
    before = torch.get_rng_state()
    model, _ = checkpoint.load(file)
    assert torch.equal(torch.get_rng_state(), before)
    stored = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(weight, stored[f"model.{name}"]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-0.1, 0.3), (2.0, 3.0)], ids=str)
def test_a_layer_that_draws_until_its_values_fit_is_built_whatever_lies_in_memory(bounds):
    with checkpoint._Undrawn():
        drawn = nn.init.trunc_normal_(torch.full((64, 16), 1e9), 0.0, 1.0, *bounds)  # which may draw again for ever
    assert ((drawn >= bounds[0]) & (drawn <= bounds[1])).all()
