"""Every encoder of smp, and timm's models with stages: smp's U-Net, with skips of any kind, and what is refused."""

import sys
from collections import ChainMap

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import ROOT
from segmentation_models_pytorch import encoders as smp_encoders

from unetseg.errors import UserError
from unetseg.evaluation.lesions import levels_to_cut
from unetseg.gradients import GradientFlow
from unetseg.model import Segmenter, SkipUnet, arguments
from unetseg.model.auxiliary import AuxiliaryHeads
from unetseg.model.encoders import MEAN, STD, check_side, make_encoder, normalisation_of
from unetseg.names import ENCODERS, FLOWS, SKIPS, is_encoder, why_not_withheld

sys.path.insert(0, str(ROOT / "scripts"))

import encoders as script

SAMPLE = (
    *("resnet18", "vgg11_bn", "efficientnet-b0", "mobilenet_v2", "timm-skresnet18", "mit_b0", "mobileone_s0"),
    *("tu-test_resnet", "tu-test_convnext", "tu-test_byobnet", "tu-test_efficientnet"),
)
"""One of each kind, small."""
NO_LEVEL_1 = ("mit_b0", "tu-test_convnext")
"""Those that begin with stride 4."""


def net_of(encoder: str, **options) -> SkipUnet:
    torch.manual_seed(0)
    return SkipUnet(encoder, weights=None, **options)


def test_the_names_are_those_of_smp():
    assert sorted(ENCODERS) == sorted(smp_encoders.encoders)
    assert len({*ENCODERS}) == len(ENCODERS)


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize("encoder", SAMPLE)
def test_with_concat_it_is_smp_unet_bit_for_bit(encoder):
    ours = net_of(encoder, classes=2)
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    images = torch.randn(2, 3, 61, 95)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(1)  # of dropped paths
        outputs.append(net.train()(images))
        outputs[-1].square().mean().backward()
    assert torch.equal(*outputs)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad), name
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_with_nested_and_no_level_1_it_is_smps_unet_plus_plus():
    ours = net_of("tu-test_convnext", skip="nested").eval()
    theirs = smp.UnetPlusPlus("tu-test_convnext", encoder_weights=None).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_with_nested_a_vgg_lacks_the_centre_that_smps_unet_plus_plus_has_and_never_calls():
    with torch.device("meta"):
        ours, theirs = net_of("vgg11", skip="nested"), smp.UnetPlusPlus("vgg11", encoder_weights=None)
        missing = theirs.state_dict().keys() - ours.state_dict().keys()
        theirs(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert missing == {name for name in theirs.state_dict() if name.startswith("decoder.center.")}
    assert all(weight.grad is None for weight in theirs.decoder.center.parameters())


KINDS = [skip for skip in SKIPS if skip != "permuted"]
"""Those that a network without features at level 1 can have."""


@pytest.mark.parametrize(
    ("skip", "flow"),
    [
        (skip, flow)
        for skip in (*KINDS, ["none", "concat", "add", "attention"])
        for flow in FLOWS
        if isinstance(skip, list) or not why_not_withheld(skip, flow)
    ],
    ids=str,
)
@pytest.mark.parametrize("encoder", NO_LEVEL_1)
def test_no_kind_of_skip_leaves_a_weight_without_a_gradient_or_warns(encoder, skip, flow):
    net = net_of(encoder, skip=skip, skip_flow=flow, decoder_channels=(16, 16, 8, 8, 4))
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None] == []
    assert all(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize("encoder", NO_LEVEL_1)
def test_levels_are_not_exchanged_where_one_has_no_features(encoder):
    with pytest.raises(UserError, match="features at every level"):
        net_of(encoder, skip="permuted")


@pytest.mark.parametrize("skip", KINDS)
def test_a_level_without_features_brings_nothing(skip):
    net = net_of("mit_b0", skip=skip).eval()
    assert not net.fusions[0].carries_features
    assert 1 not in levels_to_cut(Segmenter(classes=2, encoder="mit_b0", skip=skip, weights=None))
    with GradientFlow(net, routes=True) as flow:
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    records = flow.read()
    assert {r.block for r in records if r.kind == "skip"} == {"level2", "level3", "level4"}
    shares = [r.value for r in records if r.kind == "exit" and r.block == "encoder" and r.metric.startswith("share_")]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("encoder", "skip"),
    [*(("tu-test_convnext", skip) for skip in KINDS), *(("vgg11", skip) for skip in SKIPS)],
)
def test_every_kind_of_skip_can_have_concats_size(encoder, skip):
    with torch.device("meta"):
        nets = [net_of(encoder), net_of(encoder, skip=skip, match_parameters=True)]
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in nets]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_a_level_without_features_has_no_auxiliary_head():
    net = net_of("mit_b0")
    heads = AuxiliaryHeads(net.encoder.out_channels, classes=1)
    logits = heads(net.encoder(torch.randn(2, 3, 32, 32)), size=(32, 32))
    assert [tuple(each.shape) for each in logits] == [(2, 1, 32, 32)] * 3


def test_what_no_feature_depends_on_is_frozen_and_the_rest_is_not():
    net = net_of("efficientnet-b0")
    frozen = [name for name, weight in net.named_parameters() if not weight.requires_grad]
    assert frozen == ["encoder._conv_head.weight", "encoder._bn1.weight", "encoder._bn1.bias"]


def test_looking_at_its_features_changes_nothing_of_an_encoder():
    torch.manual_seed(0)
    theirs = smp_encoders.get_encoder("mobilenet_v2", weights=None)
    drawn = torch.rand(())
    torch.manual_seed(0)
    ours = make_encoder("mobilenet_v2", in_channels=3, weights=None)
    assert torch.equal(torch.rand(()), drawn)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert all(module.training for module in ours.modules())


def test_other_numbers_of_channels_are_taken():
    assert net_of("mit_b0", in_channels=5).eval()(torch.zeros(1, 5, 32, 32)).shape == (1, 1, 32, 32)
    assert net_of("tu-test_convnext", in_channels=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


# --- mean and standard deviation


def test_a_resnet_has_imagenets_normalisation_as_ever():
    model = Segmenter(classes=2, encoder="resnet18", weights=None)
    assert torch.equal(model.mean.flatten(), 255 * torch.tensor(MEAN))
    assert torch.equal(model.std.flatten(), 255 * torch.tensor(STD))


@pytest.mark.parametrize(
    "encoder", ["tu-resnet18", "tu-test_convnext", "tu-tf_efficientnet_b0.ap_in1k", "tu-resnetv2_50"]
)
def test_a_model_of_timm_has_the_normalisation_that_smp_reads_of_timm(encoder):
    wanted = smp_encoders.get_preprocessing_params(encoder)
    assert (wanted["input_space"], wanted["input_range"]) == ("RGB", [0, 1])
    assert [[*values] for values in normalisation_of(encoder)] == [wanted["mean"], wanted["std"]]


def test_encoders_with_another_normalisation_have_it():
    """The numbers of smp 0.3.4 and pretrainedmodels 0.7.4, in which they stand as text."""
    others = {name for name in ENCODERS if normalisation_of(name) != (MEAN, STD)}
    half = {"inceptionresnetv2", "inceptionv4", "xception", *(f"timm-tf_efficientnet_lite{size}" for size in range(5))}
    dpn = {name for name in ENCODERS if name.startswith("dpn")}
    assert others == half | dpn
    assert {normalisation_of(name) for name in half} == {((0.5,) * 3, (0.5,) * 3)}
    mean, std = normalisation_of("dpn68")
    assert mean == pytest.approx([0.486275, 0.458824, 0.407843], abs=1e-6)
    assert std == pytest.approx([0.234824] * 3, abs=1e-6)


def test_what_is_stated_of_the_channels_comes_before_the_encoders_own():
    model = Segmenter(classes=2, encoder="tu-test_convnext", weights=None, mean=[1, 2, 3], std=[4, 5, 6])
    assert (model.mean.flatten().tolist(), model.std.flatten().tolist()) == ([1, 2, 3], [4, 5, 6])


def test_the_hubs_folder_states_the_encoders_normalisation(tmp_path):
    assert net_of("tu-resnetv2_50").hub_config()["_preprocessing"]["mean"] == (0.5, 0.5, 0.5)


# --- what is refused


@pytest.mark.parametrize(
    "name", ["tu-hf-hub:user/name", "tu-hf_hub:x", "tu-local-dir:/tmp", "tu-", "tu-a/b", "tu-../x", 3]
)
def test_a_name_with_which_timm_would_fetch_or_read_something_is_refused_by_its_form(name):
    assert not is_encoder(name)
    with pytest.raises(ValueError, match="encoder="):
        arguments.check({"encoder": name, "skip": "concat", "classes": 2}, arguments.SEGMENTER)


@pytest.mark.parametrize(
    ("name", "problem", "near"),
    [
        ("tu-convnext_tinny", "unknown to timm", "tu-convnext_tiny"),
        ("tu-resnet18.bogus", "unknown to timm", "tu-resnet18"),
        ("tu-test_vit", "its features have strides of 16\\n", "tu-convnext_tiny"),
        ("tu-nest_tiny", "its features have strides of 4, 8, 16\\n", "tu-convnext_tiny"),
        ("resnet19", "unknown to smp", "resnet18"),
    ],
)
def test_what_cannot_be_an_encoder_is_told(name, problem, near):
    with pytest.raises(UserError, match=problem) as caught:
        SkipUnet(name, weights=None)
    assert f"try: model.encoder={near}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "others"), [("dpn92", "imagenet\\+5k"), ("resnext101_32x16d", "instagram, ssl, swsl")]
)
def test_weights_that_smp_does_not_have_are_told_before_anything_is_downloaded(name, others):
    with pytest.raises(UserError, match=f"smp has no such weights of {name}, but {others}"):
        SkipUnet(name, weights="imagenet")


def test_a_size_that_an_encoder_does_not_take_is_told():
    encoder = make_encoder("tu-test_maxvit", in_channels=3, weights=None)
    check_side(encoder, "tu-test_maxvit", 160)
    with pytest.raises(UserError, match="doesn't take pictures of 72x72"):
        check_side(encoder, "tu-test_maxvit", 72)


def test_glorot_is_for_resnets_and_densenets():
    with pytest.raises(ValueError, match="mit_b0 has a start of its own"):
        SkipUnet("mit_b0", weights=None, initialisation="glorot")


# --- the table


def test_the_script_measures_an_encoder_and_writes_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "_exports", lambda model, side: [{"onnx": "", "pt2": "left out"}])
    names = ("tu-test_efficientnet", "tu-test_vit")
    results = [{"encoder": name} | dict(ChainMap(*script.measure(name))) for name in names]
    assert {p: results[0][p] for p in script.PROPERTIES} == dict.fromkeys(script.PROPERTIES, "") | {"pt2": "left out"}
    assert "strides of 16" in results[1]["built"]
    page = script.table({result["encoder"]: result for result in results})
    assert "| efficientnet | 1 of " in page
    assert "| built | 1 | UserError: model.encoder=NAME can't be" in page
    assert "Not measured yet of smp: resnet18, " in page


def test_where_an_encoders_process_ends_early_what_it_was_at_says_so(monkeypatch):
    def until_it_ends(name):
        yield {"built": ""}
        script.os._exit(3)

    monkeypatch.setattr(script, "measure", until_it_ends)
    row = script.apart("resnet18", limit=60, memory=100)
    assert row["built"] == ""
    assert row["equal"] == "its process ended with status 3 (--memory 100 GB)"
    assert "trained" not in row
