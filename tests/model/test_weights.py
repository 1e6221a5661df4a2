"""Encoder weights from a file: what matched is said, and nothing that fits nowhere passes for loaded."""

import pytest
import torch
from conftest import SHARED
from safetensors.torch import save_file

from unetseg.errors import UserError
from unetseg.model import SkipUnet
from unetseg.model.weights import load_encoder


@pytest.fixture(scope="module")
def encoder():
    return SkipUnet("resnet18", weights=None).encoder


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_is_loaded_from_either_format(encoder, tmp_path, suffix):
    state = {**encoder.state_dict(), "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    other = SkipUnet("resnet18", weights=None).encoder
    report = load_encoder(other, path)
    assert same(encoder.state_dict(), other.state_dict())
    assert report.missing == []
    assert report.unexpected == ["fc.bias", "fc.weight"]
    assert str(report).startswith("120 matched, 0 missing, 2 unexpected\n")


def test_names_of_another_shape_count_as_missing(encoder, tmp_path):
    state = {**encoder.state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(state, tmp_path / "w.pth")
    net = SkipUnet("resnet18", weights=None)
    with pytest.raises(UserError, match=r"(?s)missing: conv1.weight.*model.strict_weights=false"):
        load_encoder(net.encoder, tmp_path / "w.pth")
    assert load_encoder(net.encoder, tmp_path / "w.pth", strict=False).missing == ["conv1.weight"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("resnet50", "resnet18"), ("resnet34", "resnet18"), ("resnet18", "resnet34")]
)
def test_weights_of_another_encoder_are_refused_unless_that_is_meant(tmp_path, theirs, ours):
    torch.save(SkipUnet(theirs, weights=None).encoder.state_dict(), tmp_path / "w.pth")
    encoder = SkipUnet(ours, weights=None).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=r"is not of this encoder: .* matched"):
        load_encoder(encoder, tmp_path / "w.pth")
    assert same(before, encoder.state_dict())
    assert load_encoder(encoder, tmp_path / "w.pth", strict=False).matched


def test_files_of_before_the_counters_of_batch_normalisation_are_whole(encoder, tmp_path):
    state = {n: value for n, value in encoder.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)  # as torchvision's files of then
    other = SkipUnet("resnet18", weights=None).encoder
    assert load_encoder(other, tmp_path / "w.pth").matched == sorted(state)
    assert same(state, other.state_dict())


WEIGHT = torch.zeros(64, 3, 7, 7)
NO_STATE_DICTS = {
    "list": [WEIGHT],
    "tensor": WEIGHT,
    "number": 5,
    "nothing": None,
    "empty": {},
    "numbers for names": {1: WEIGHT},
    "no tensor": {"conv1.weight": None},
    "sparse": {"conv1.weight": WEIGHT.to_sparse()},
    "without values": {"conv1.weight": WEIGHT.to("meta")},
    "NaN": {"conv1.weight": WEIGHT / 0},
}


@pytest.mark.parametrize("content", NO_STATE_DICTS.values(), ids=NO_STATE_DICTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_state_dict_is_refused(encoder, tmp_path, content, zipped):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="can't be read"):
        load_encoder(encoder, tmp_path / "w.pth")


def test_old_names_of_densenet_are_understood(tmp_path):
    encoder = SkipUnet("densenet121", weights=None).encoder
    state = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in encoder.state_dict().items()
    }
    assert any(".norm.1." in name for name in state)
    torch.save(state, tmp_path / "w.pth")
    assert load_encoder(SkipUnet("densenet121", weights=None).encoder, tmp_path / "w.pth").missing == []


def test_zero_matches_is_an_error(encoder, tmp_path):
    torch.save({"backbone.conv1": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="fits no parameter"):
        load_encoder(encoder, tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04broken"], ids=repr)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(encoder, tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"w{suffix} can't be read"):
        load_encoder(encoder, path)


def test_a_pickle_that_carries_code_is_refused_and_not_run(encoder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="can't be read"):
        load_encoder(encoder, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_the_real_weights_match_completely():
    path = SHARED / "weights/resnet50_imagenet.safetensors"
    if not path.exists():
        pytest.skip("the real weights are not here")
    report = load_encoder(SkipUnet("resnet50", weights=None).encoder, path)
    assert (len(report.matched), report.missing, report.unexpected) == (318, [], ["fc.bias", "fc.weight"])
