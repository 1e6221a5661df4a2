"""Folders of the Hugging Face Hub: what is saved comes back bit for bit, and as smp.Unet where it is one."""

import json

import huggingface_hub.hub_mixin
import pytest
import segmentation_models_pytorch as smp
import torch

from unetseg.errors import UserError
from unetseg.inference.export import save_pretrained
from unetseg.model import Segmenter, SkipUnet, checkpoint
from unetseg.model.encoders import MEAN, STD

IMAGES = torch.randn(2, 3, 61, 95, generator=torch.Generator().manual_seed(0))


def trained(**arguments) -> SkipUnet:
    """Return a network whose statistics of batch normalisation are not those of the start."""
    torch.manual_seed(0)
    net = SkipUnet("resnet18", weights=None, **arguments)
    net(torch.randn(4, 3, 64, 64))
    return net.eval()


SETTINGS = [
    {"skip": "concat", "classes": 3},
    {"skip": "add"},
    {"skip": "placebo", "match_parameters": True},
    {"skip": ["none", "attention", "add", "concat"], "skip_flow": ["both", "both", "forward", "backward"]},
    {"skip": ["multiply", "respath", "scse", "scse"], "match_parameters": True},
    {"skip": "channel", "skip_flow": ["both", "forward", "both", "both"]},
    {"short_skips": False, "normalisation": "none", "initialisation": "glorot"},
    {"skip": ["none", "attention", "add", "concat"], "skip_gradient": [1, 0, 0.25, 2]},
    {"skip": ["none", "attention", "add", "concat"], "skip_scale": [1, 0.5, 0.25, 2]},
    {"skip": "full", "skip_scale": "learned"},
    {"skip": "shuffled", "stem_skip": True},
    {"decoder_channels": (64, 32, 16, 16, 8), "in_channels": 3},
]


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, arguments):
    net = trained(**arguments)
    net.save_pretrained(tmp_path)
    again = SkipUnet.from_pretrained(tmp_path)
    assert not again.training
    settings = [(n.skip, n.skip_flow, n.skip_gradient, n.skip_scale) for n in (net, again)]
    assert settings[0] == settings[1]
    assert torch.equal(again(IMAGES), net(IMAGES))


@pytest.mark.parametrize("load", [smp.from_pretrained, smp.Unet.from_pretrained])
@pytest.mark.parametrize("arguments", [SETTINGS[0], SETTINGS[-1]], ids=str)
def test_a_concat_model_is_smp_unet_to_smp(tmp_path, arguments, load):
    net = trained(**arguments)
    net.save_pretrained(tmp_path)
    theirs = load(tmp_path)
    assert type(theirs) is smp.Unet
    assert torch.equal(theirs(IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    "arguments",
    [
        SETTINGS[1],
        SETTINGS[4],
        SETTINGS[6],
        {"skip": "scse"},
        {"skip_flow": "backward"},
        {"skip_gradient": 0.5},
        {"skip_scale": "kappa"},
        {"stem_skip": True},
    ],
    ids=str,
)
def test_smp_refuses_every_other_model_by_name(tmp_path, arguments):
    trained(**arguments).save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"resnet18 of unetseg\.model\.SkipUnet"):
        smp.Unet.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="SkipUnet"):
        smp.from_pretrained(tmp_path)


def test_a_folder_of_smp_is_refused_with_the_way_on(tmp_path):
    smp.Unet("resnet18", encoder_weights=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no SkipUnet\n.*\n.*load_state_dict"):
        SkipUnet.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    trained(skip="add").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["_skip_unet"]["skip"] = "none"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"don't fit the network: .*projection"):
        SkipUnet.from_pretrained(tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "width"),
    [
        ({"classes": 5}, lambda net: net.segmentation_head[0].out_channels == 5),
        ({"in_channels": 1}, lambda net: net.encoder.conv1.in_channels == 1),
        ({"skip": "none"}, lambda net: net.skip == ["none"] * 4),
        ({"encoder": "resnet34"}, lambda net: len(net.encoder.layer1) == 3),
        ({"decoder_channels": (64, 32, 16, 16, 8)}, lambda net: net.segmentation_head[0].in_channels == 8),
    ],
    ids=["classes", "in_channels", "skip", "encoder", "decoder_channels"],
)
def test_what_the_caller_gives_holds_or_is_refused(tmp_path, given, width):
    saved = trained()
    saved.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"don't fit the network: .*, which was given {next(iter(given))}"):
        SkipUnet.from_pretrained(tmp_path, **given)
    with pytest.warns(UserWarning, match="left as they were made"):
        net = SkipUnet.from_pretrained(tmp_path, strict=False, **given)
    assert width(net)
    assert torch.equal(net.encoder.layer1[0].conv1.weight, saved.encoder.layer1[0].conv1.weight)


def test_an_argument_that_changes_no_weight_holds_too(tmp_path):
    trained().save_pretrained(tmp_path)
    assert SkipUnet.from_pretrained(tmp_path, skip_flow="forward").skip_flow == ["forward"] * 4
    assert SkipUnet.from_pretrained(tmp_path, skip_gradient=0.5).skip_gradient == [0.5] * 4


def test_a_folder_that_is_older_than_an_option_loads_with_its_default(tmp_path):
    trained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["_skip_unet"]["skip_gradient"], config["_skip_unet"]["skip_scale"]
    del config["_skip_unet"]["stem_skip"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = SkipUnet.from_pretrained(tmp_path)
    assert net.skip_gradient == net.skip_scale == [1.0] * 4
    assert not net.stem_skip


def test_a_folder_that_smp_has_saved_over_ours_loads_as_what_smp_made(tmp_path):
    trained(decoder_channels=(64, 32, 16, 16, 8)).save_pretrained(tmp_path)
    theirs = smp.from_pretrained(tmp_path, classes=5, strict=False)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(SkipUnet.from_pretrained(tmp_path)(IMAGES), theirs(IMAGES))
    smp.from_pretrained(tmp_path, activation="sigmoid").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="activation='sigmoid' is nothing that a SkipUnet has"):
        SkipUnet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", "tu-hf-hub:me/model"),
        ("encoder", 3),
        ("skip", ["none"]),
        ("skip_gradient", [1, 1, 1, -1]),
        ("skip_scale", [1, 1, 1, 0]),
        ("skip_scale", "kapa"),
        ("classes", 10**9),
        ("decoder_channels", [10**9] * 5),
        ("weights", "imagenet"),
        ("hook", "x"),
    ],
)
def test_what_a_folder_says_of_its_network_is_checked_before_it_is_built(tmp_path, monkeypatch, key, value):
    trained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["_skip_unet"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(SkipUnet, "__init__", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(UserError, match="holds no SkipUnet: "):
        SkipUnet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, " " * 2**21], ids=lambda text: f"{text[:2]}{len(text)}"
)
def test_a_config_that_is_none_is_named(tmp_path, content):
    trained().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"can't be loaded|holds no SkipUnet"):
        SkipUnet.from_pretrained(tmp_path)


def test_weights_that_are_nan_are_refused(tmp_path):
    net = trained()
    net.segmentation_head[0].bias.data.fill_(float("nan"))
    net.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        SkipUnet.from_pretrained(tmp_path)


def test_the_folder_says_how_images_are_normalised_and_fetches_no_weights(tmp_path):
    Segmenter(classes=2, encoder="resnet18", weights=None).net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["_preprocessing"]["mean"], config["_preprocessing"]["std"]) == (list(MEAN), list(STD))
    assert config["encoder_weights"] is None
    assert config["_skip_unet"]["weights"] is None


def test_the_card_states_data_metrics_and_skips(tmp_path):
    net = trained(skip=["none", "concat", "add", "concat"])
    net.save_pretrained(tmp_path / "stated", dataset="Oxford-IIIT Pet", metrics={"iou": 0.91})
    card = (tmp_path / "stated/README.md").read_text()
    for text in ("| data | Oxford-IIIT Pet |", '"iou": 0.91', "none, concat, add, concat", "SkipUnet.from_pretrained"):
        assert text in card
    assert "smp" not in card
    trained().save_pretrained(tmp_path / "bare")
    card = (tmp_path / "bare/README.md").read_text()
    assert "| data | not stated |" in card
    assert "smp.from_pretrained" in card


def test_a_run_becomes_a_folder_whose_card_has_its_data_and_scores(tiny, tmp_path):
    run = tiny("trainer.max_epochs=1", "model.encoder=resnet18")
    save_pretrained(run.path, tmp_path / "hub")
    net = checkpoint.load(run.path)[0].net.to(memory_format=torch.contiguous_format)
    theirs = smp.from_pretrained(tmp_path / "hub")
    assert torch.equal(theirs(IMAGES), net(IMAGES))
    card = (tmp_path / "hub/README.md").read_text()
    assert "| data | synthetic, 64 px: background, pet |" in card
    assert f'"test/iou": {json.loads(run.summary.read_text())["test/iou"]}' in card


def test_push_to_hub_uploads_that_folder(monkeypatch):
    uploads = []

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploads.append((repo_id, sorted(p.name for p in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    trained(skip="add").push_to_hub("me/model")
    assert uploads == [("me/model", ["README.md", "config.json", "model.safetensors"])]


def test_what_is_pushed_says_what_network_it_is(monkeypatch):
    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path, **_):
            assert SkipUnet.from_pretrained(folder_path).skip == ["add"] * 4

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    SkipUnet("tu-test_resnet", skip="add", weights=None).push_to_hub("me/model")


@pytest.mark.parametrize(
    ("channels", "mean", "stated", "words"),
    [
        (3, [51.0, 102.0, 127.5], [0.2, 0.4, 0.5], "Bx3xHxW RGB, of values in 0..1 less the mean [0.2, 0.4, 0.5] over"),
        (2, [300.0, 4.0], [300, 4], "Bx2xHxW of the values that files hold less the mean [300.0, 4.0] over"),
        (2, None, None, "Bx2xHxW of the values that files hold normalised as in the training"),
    ],
)
def test_the_folder_says_how_its_own_images_are_normalised(tmp_path, channels, mean, stated, words):
    net = SkipUnet("tu-test_resnet", weights=None, in_channels=channels)
    net.save_pretrained(tmp_path, config=net.hub_config(mean, mean))
    said = json.loads((tmp_path / "config.json").read_text())["_preprocessing"]
    assert (said["mean"], said["std"]) == (stated, stated)
    assert words in (tmp_path / "README.md").read_text()


def test_a_config_that_is_no_file_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json is no file"):
        SkipUnet.from_pretrained(tmp_path)
