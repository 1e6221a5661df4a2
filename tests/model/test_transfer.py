"""The first weights from a trained network: what fits is taken part by part, and the table says what and why not."""

import json

import huggingface_hub
import pytest
import torch
from fake_engine import save_untrained

import unetseg
from unetseg.errors import UserError
from unetseg.huggingface import fetch_model
from unetseg.inference.export import save_pretrained
from unetseg.model import Segmenter, SkipUnet, checkpoint
from unetseg.model.transfer import MatchedParts, fit, load_weights
from unetseg.model.weights import for_channels

CLASSES = ["background", "pet"]
DECODER = [f"decoder{level}" for level in (4, 3, 2, 1, 0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the checkpoint of a network of resnet18, two classes and concat."""
    folder = tmp_path_factory.mktemp("run")
    save_untrained(folder / "checkpoints/best.ckpt")
    return folder


@pytest.fixture(scope="module")
def source(run):
    return checkpoint.load(run)[0].net.state_dict()


def fresh(classes=2, **arguments) -> Segmenter:
    torch.manual_seed(1)
    return Segmenter(classes=classes, **{"encoder": "resnet18", "weights": None, **arguments})


def taken(model, source) -> set[str]:
    """Return the parts of a network that has every weight of the source's."""
    net, parts = model.net.state_dict(), {}
    for name in net:
        part = name.split(".")[0]
        part = f"decoder{4 - int(name.split('.')[2])}" if part == "decoder" else part.removeprefix("segmentation_")
        parts.setdefault(part, []).append(name in source and torch.equal(net[name], source[name]))
    return {part for part, equal in parts.items() if all(equal)}


def load(model, address, classes=CLASSES, **arguments) -> MatchedParts:
    found = load_weights(model, str(address), classes, **arguments)
    assert isinstance(found, MatchedParts)
    return found


def test_the_whole_network_is_taken_from_a_run_its_checkpoint_and_a_saved_folder(run, source, tmp_path):
    save_pretrained(run, tmp_path / "hub")
    for address in (run, run / "checkpoints/best.ckpt", tmp_path / "hub"):
        model = fresh()
        found = load(model, address)
        assert set(found.parts.values()) == {"matched"}
        assert list(found.parts) == ["encoder", *DECODER, "head"]
        assert found.remarks == []
        assert taken(model, source) == {*found.parts}


@pytest.mark.parametrize(
    ("encoder", "skip"),
    [*(("tu-test_resnet", skip) for skip in ("nested", "full", "channel", "permuted")), ("vgg11", "concat")],
)
def test_of_a_decoder_of_any_kind_every_weight_is_taken(encoder, skip):
    torch.manual_seed(0)
    nets = [SkipUnet(encoder, skip=skip, weights=None, skip_scale="learned") for _ in range(2)]
    fitting, parts = fit(*nets, encoder_only=False)
    assert {name: weight.shape for name, weight in fitting.items()} == {
        name: weight.shape for name, weight in nets[1].state_dict().items()
    }
    assert [*parts] == ["encoder", *(["centre"] if encoder == "vgg11" else []), *DECODER, "head"]
    assert {*parts.values()} == {"matched"}


@pytest.mark.parametrize("skip", ["nested", "full", "channel"])
def test_another_decoder_keeps_its_start_and_says_so(skip):
    nets = [SkipUnet("tu-test_resnet", skip=kind, weights=None) for kind in ("concat", skip)]
    for source, target in (nets, nets[::-1]):
        parts = fit(source, target, encoder_only=False)[1]
        assert parts["decoder4"].startswith("random: other ")
        assert (parts["encoder"], parts["head"]) == ("matched", "matched")


def test_with_the_prefix_the_encoder_alone(run, source):
    model = fresh()
    start = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = load(model, f"encoder:{run}")
    assert taken(model, source) == {"encoder"}
    rest = [name for name in start if not name.startswith("encoder.")]
    assert all(torch.equal(model.net.state_dict()[name], start[name]) for name in rest)
    assert found.parts["head"] == "random: the encoder alone is taken"


@pytest.mark.parametrize(
    ("arguments", "classes", "left", "words"),
    [
        ({"classes": 3}, ["a", "b", "c"], {"head"}, "other shape: segmentation_head.0.weight 1x16x3x3 there, 3x16x3x3"),
        ({"skip": ["none", "concat", "add", "concat"]}, CLASSES, {"decoder1", "decoder3"}, "projection.weight here"),
        ({"decoder_channels": (256, 128, 64, 32, 8)}, CLASSES, {"decoder0", "head"}, "other shape"),
    ],
    ids=["classes", "skips", "widths"],
)
def test_parts_that_do_not_fit_keep_their_random_start(run, source, arguments, classes, left, words):
    model = fresh(**arguments)
    start = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = load(model, run, classes)
    assert {part for part, word in found.parts.items() if word != "matched"} == left
    assert taken(model, source) == {*found.parts} - left
    assert words in str(found)
    for name, value in model.net.state_dict().items():
        part = f"decoder{4 - int(name.split('.')[2])}" if name.startswith("decoder") else "head"
        if not name.startswith("encoder.") and part in left:
            assert torch.equal(value, start[name]), name


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_layer_is_adapted_to_other_channels(run, source, channels):
    model = fresh(in_channels=channels, mean=[10.0] * channels, std=[2.0] * channels)
    found = load(model, run)
    assert found.parts["encoder"] == f"matched, its first layer adapted to {channels} channels"
    assert torch.equal(model.net.encoder.conv1.weight, for_channels(source["encoder.conv1.weight"], channels))
    assert f"channels: 3 there, {channels} here" in found.remarks
    assert model.mean.flatten().tolist() == [10.0] * channels, "the data's own normalisation stays"


def test_another_normalisation_and_other_classes_are_said_though_the_weights_fit(run, tmp_path):
    known = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    known["model"]["in_channels"], known["classes"] = 5, ["sky", "cloud"]
    known["data"] |= {"channels": 5, "mean": [1.0, 2, 3, 4, 5], "std": [1.0] * 5}
    state = {f"model.{name}": value for name, value in fresh(in_channels=5).state_dict().items()}
    torch.save({"hyper_parameters": known, "state_dict": state}, tmp_path / "a.ckpt")
    model = fresh(in_channels=5, mean=[1.0, 2, 3, 4, 6], std=[1.0] * 5, skip="placebo")
    found = load(model, tmp_path / "a.ckpt")
    assert set(found.parts.values()) == {"matched"}
    assert found.remarks == [
        "skip: concat there, placebo here",
        "classes: sky, cloud there, background, pet here",
        "mean of the channels: [1, 2, 3, 4, 5] there, [1, 2, 3, 4, 6] here, which is kept",
    ]
    other = fresh(in_channels=2, mean=[0.0, 0], std=[1.0, 1])
    assert load(other, tmp_path / "a.ckpt").parts["encoder"].startswith("matched, but for its first layer: random")


def test_another_encoder_is_refused_unless_that_is_meant(run):
    model = fresh(encoder="resnet34")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"(?s)is of another encoder.*encoder: resnet18 there, resnet34 here.*resnet18"):
        load(model, run)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert "120 of 216 weights matched" in load(model, run, strict=False).parts["encoder"]


def test_nothing_that_fits_is_an_error_with_advice(run):
    with pytest.raises(UserError, match=r"(?s)fits no part.*try: model.encoder=resnet18"):
        load(fresh(encoder="densenet121"), f"encoder:{run}", strict=False)


def test_what_is_drawn_afterwards_is_the_same_as_without(run):
    model = fresh()
    state = torch.get_rng_state()
    load(model, run)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"hyper_parameters": Bomb()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="can't be loaded"):
        load(fresh(), tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hub(run, tmp_path, monkeypatch):
    """The calls to the hub's download, which gives a folder of save_pretrained."""
    save_pretrained(run, tmp_path / "hub")
    calls = []

    def download(repository, revision, allow_patterns):
        calls.append((repository, revision, tuple(allow_patterns)))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_model_of_the_hub_predicts_and_starts_a_training(hub, run, source):
    model = fresh()
    load(model, "hf:me/model@v1")
    assert taken(model, source) == {"encoder", *DECODER, "head"}
    predictor = unetseg.load("hf:me/model", device="cpu")
    files = ("config.json", "model.safetensors")
    assert hub == [("me/model", "v1", files), ("me/model", None, files)]
    own = unetseg.load(run, device="cpu")
    assert (predictor.classes, predictor.view) == (own.classes, own.view)
    picture = torch.randint(0, 256, (48, 40, 3), dtype=torch.uint8).numpy()
    assert (predictor.probability(picture) == own.probability(picture)).all()


def test_without_a_network_the_address_and_the_reason_are_named(monkeypatch):
    with pytest.raises(UserError, match=r"hf:me/model can't be downloaded: HF_HUB_OFFLINE is set"):
        fetch_model("hf:me/model")
    with pytest.raises(UserError, match="is no address of a model"):
        unetseg.load("hf:model")


def test_a_folder_that_states_no_classes_gives_weights_but_no_predictor(tmp_path):
    fresh().net.save_pretrained(tmp_path)
    assert "classes: not stated there, background, pet here" in load(fresh(), tmp_path).remarks
    with pytest.raises(UserError, match=r"doesn't say what its classes are(.|\n)*from_pretrained"):
        unetseg.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", ["a"]), ("classes", "ab"), ("data", {"size": -1}), ("data", {"size": 64, "channels": 5})],
)
def test_what_a_folder_states_is_checked(run, tmp_path, key, value):
    save_pretrained(run, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["_unetseg"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="can't be loaded"):
        unetseg.load(tmp_path)
