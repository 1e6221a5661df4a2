"""Doses and controls of the long skips: their scale, other pictures' features, and a skip of stride 1."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from unetseg.errors import UserError
from unetseg.evaluation.lesions import levels_to_cut
from unetseg.gradients import GradientFlow
from unetseg.model import Segmenter, SkipUnet
from unetseg.model.controls import KAPPA, Calibration
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import build

CARRYING = ("concat", "add", "attention", "nested", "full")


def net_of(skip: str | list[str] = "concat", **options) -> SkipUnet:
    torch.manual_seed(0)
    return SkipUnet("resnet18", skip=skip, weights=None, **options)


def shares(net: SkipUnet) -> dict[str, float]:
    """Return the skip share of each level on fixed pictures."""
    torch.manual_seed(1)
    with GradientFlow(net) as flow:
        net(torch.randn(3, 3, 64, 64)).square().mean().backward()
    return {record.block: record.value for record in flow.read() if record.metric == "skip_share"}


@pytest.mark.parametrize("skip", CARRYING)
def test_a_constant_scale_multiplies_the_features_wherever_the_decoder_uses_them(skip):
    scales = [1, 0.5, 0.25, 2]
    plain, scaled = net_of(skip).eval(), net_of(skip, skip_scale=scales).eval()
    features = plain.encoder(torch.randn(2, 3, 64, 64))
    by_hand = [features[0], *(f * s for f, s in zip(features[1:-1], scales, strict=True)), features[-1]]
    torch.testing.assert_close(scaled.decode(features), plain.decode(by_hand))
    assert not torch.equal(scaled.decode(features), plain.decode(features))


@pytest.mark.parametrize("skip", CARRYING)
def test_the_scale_leaves_every_weight_as_the_seed_draws_it(skip):
    plain, scaled = net_of(skip).state_dict(), net_of(skip, skip_scale="learned").state_dict()
    assert all(torch.equal(value, scaled[name]) for name, value in plain.items())
    assert all(".scale." in name for name in scaled.keys() - plain.keys())
    assert len(scaled.keys() - plain.keys()) == 4 * 4


def test_at_1_there_is_no_operation():
    fusion = net_of().fusions[0]
    features = torch.randn(1, 64, 4, 4)
    assert fusion.scale(features) is features


def test_kappa_is_a_power_by_the_level_that_leaves_the_finest_as_it_is():
    """Huang et al. 2023: kappa^(i - 1), where i = 1 is the long skip next to the input, as in their code."""
    net = net_of(skip_scale="kappa")
    assert net.skip_scale == [KAPPA**0, KAPPA**1, KAPPA**2, KAPPA**3]
    assert isinstance(net.fusions[0].scale, torch.nn.Identity)
    assert [fusion.scale.factor for fusion in net.fusions[1:]] == net.skip_scale[1:]


def test_a_learned_scale_is_the_squeeze_and_excitation_written_out():
    torch.manual_seed(0)
    scale = Calibration(32).double()
    features = torch.randn(2, 32, 5, 3, dtype=torch.float64)
    state = {name: value.tolist() for name, value in scale.state_dict().items()}
    assert (len(state["squeeze.weight"]), len(state["excite.weight"])) == (2, 32)
    expected = torch.empty_like(features)
    for b in range(2):
        means = [float(features[b, c].sum()) / 15 for c in range(32)]
        hidden = []
        for row, bias in zip(state["squeeze.weight"], state["squeeze.bias"], strict=True):
            hidden.append(max(0.0, sum(w * m for w, m in zip(row, means, strict=True)) + bias))
        for c, (row, bias) in enumerate(zip(state["excite.weight"], state["excite.bias"], strict=True)):
            logit = sum(w * h for w, h in zip(row, hidden, strict=True)) + bias
            expected[b, c] = features[b, c] / (1 + math.exp(-logit))
    torch.testing.assert_close(scale(features), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scale(features) / features, torch.full_like(features, 0.5), rtol=0.1, atol=0)


@pytest.mark.parametrize("flow", ["both", "forward"])
@pytest.mark.parametrize("skip", CARRYING)
def test_every_weight_of_a_learned_scale_gets_a_gradient(skip, flow):
    net = net_of(skip, skip_scale="learned", skip_flow=flow)
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert all(fusion.scale.excite.weight.grad.any() for fusion in net.fusions)


def test_flow_and_dose_come_before_the_scale():
    """The features are scaled, and the gradient is multiplied by dose and scale; forward lets none back."""
    net = net_of(skip_scale=0.5, skip_gradient=[0.25, 1, 1, 1], skip_flow=["both", "forward", "both", "both"])
    skip = torch.ones(1, 64, 2, 2, requires_grad=True)
    net.fusions[0](torch.zeros(1, 64, 2, 2), skip).sum().backward()
    assert skip.grad.flatten().tolist() == [0.125] * 256
    assert not net.fusions[1](torch.zeros(1, 128, 2, 2), skip).requires_grad


def test_a_smaller_scale_makes_a_smaller_skip_share():
    small, whole = shares(net_of(skip_scale=0.01)), shares(net_of())
    assert all(abs(small[level]) < abs(whole[level]) for level in whole)


@pytest.mark.parametrize("skip", CARRYING)
def test_equal_size_counts_the_learned_scale(skip):
    with torch.device("meta"):
        wanted = sum(p.numel() for p in SkipUnet("resnet50", weights=None).parameters())
        net = SkipUnet("resnet50", skip=skip, weights=None, skip_scale="learned", match_parameters=True)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("scale", "others", "reason"), [
    (0, {}, "a number above 0"), ("kapa", {}, "kappa, learned"), ([1, 1], {}, "a list of 4"),
    (float("inf"), {}, "a number above 0"), ("kappa", {"skip": "none"}, "level 2: with skip=none"),
    ("learned", {"skip": "placebo"}, "level 1: with skip=placebo"), (2, {"skip_flow": "backward"}, "no features"),
])  # fmt: skip
def test_a_scale_without_a_meaning_is_refused(scale, others, reason):
    with pytest.raises(ValueError, match=reason):
        net_of(**{"skip": "concat", "skip_scale": scale} | others)


def test_a_name_is_of_the_levels_with_features():
    net = net_of(["none", "concat", "placebo", "concat"], skip_scale="learned", skip_flow=["both"] * 3 + ["backward"])
    assert net.skip_scale == [1, "learned", 1, 1]
    assert [isinstance(fusion.scale, Calibration) for fusion in net.fusions] == [False, True, False, False]


def test_shuffled_has_concats_weights_and_in_evaluation_its_masks_whatever_the_batch():
    shuffled, concat = net_of("shuffled"), net_of("concat")
    assert all(torch.equal(value, concat.state_dict()[name]) for name, value in shuffled.state_dict().items())
    images = torch.randn(3, 3, 64, 64)
    assert torch.equal(shuffled.eval()(images), concat.eval()(images))
    torch.testing.assert_close(shuffled(images[1:2]), shuffled(images)[1:2], rtol=1e-4, atol=1e-5)


def test_the_levels_of_a_shuffled_network_draw_apart():
    net = net_of("shuffled")
    torch.manual_seed(2)
    assert len({tuple(fusion.of_another(torch.arange(9)).tolist()) for fusion in net.fusions}) > 1


@pytest.mark.parametrize("skip", ["shuffled", "permuted"])
def test_the_flow_of_the_other_controls_is_split_exactly(skip):
    """A level's share is what the decoder sends back to its features, for whichever picture and block it was."""
    found = shares(net_of(skip, skip_flow=["both", "forward", "both", "both"]))
    assert found["level2"] == 0
    assert all(found[level] != 0 for level in ("level1", "level3", "level4"))


@pytest.mark.parametrize("size", [(64, 64), (61, 95)], ids=str)
@pytest.mark.parametrize("skip", ["concat", "add", "attention", "placebo", ["add", "none", "none", "concat"]], ids=str)
def test_the_stem_skip_fuses_the_picture_itself_in_the_last_block(skip, size):
    net = net_of(skip, stem_skip=True).eval()
    features = net.encoder(torch.randn(2, 3, *size))
    assert net.decode(features).shape[-2:] == size
    before = features[-1]
    for block, own in zip(net.decoder.blocks[:-1], features[4:0:-1], strict=True):
        before = block(before, own)
    last, picture = net.decoder.blocks[-1], features[0]
    before = F.interpolate(before, size=size, mode="nearest")
    expected = last.conv2(last.conv1(net.fusion_of[0].fuse(before, picture)))
    torch.testing.assert_close(net.decoder(features), expected)
    assert type(net.fusion_of[0]) is type(net.fusion_of[1])
    other = [torch.randn_like(picture), *features[1:]]
    assert torch.equal(net.decode(other), net.decode(features)) == (skip == "placebo")


def test_the_stem_skip_concatenates_three_channels_and_changes_no_other_shape():
    with_stem, without = net_of(stem_skip=True).state_dict(), net_of().state_dict()
    different = {name for name, value in with_stem.items() if value.shape != without[name].shape}
    assert with_stem.keys() == without.keys()
    assert different == {"decoder.blocks.4.conv1.0.weight"}
    assert with_stem["decoder.blocks.4.conv1.0.weight"].shape == (16, 32 + 3, 3, 3)
    assert 0 not in net_of().fusion_of


@pytest.mark.parametrize("flow", ["both", "forward", "backward"])
@pytest.mark.parametrize("skip", ["concat", "add", "attention", "placebo", "shuffled"])
def test_a_stem_skip_leaves_no_parameter_without_a_gradient(skip, flow):
    with torch.device("meta"):
        net = net_of(skip, stem_skip=True, skip_flow=flow)
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_a_picture_of_one_channel_has_an_attention_gate():
    net = net_of("attention", stem_skip=True, in_channels=1).eval()
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_level_0_is_cut_like_any_other_and_has_the_flow_of_level_1():
    model = Segmenter(classes=2, encoder="resnet18", weights=None, stem_skip=True)
    assert levels_to_cut(model) == [0, 1, 2, 3, 4]
    flow = ["backward", "both", "both", "both"]
    assert levels_to_cut(Segmenter(classes=2, encoder="resnet18", weights=None, stem_skip=True, skip_flow=flow)) == [
        2,
        3,
        4,
    ]


def test_no_gradient_comes_back_by_the_stem_skip():
    assert [*shares(net_of(stem_skip=True))] == ["level1", "level2", "level3", "level4"]


@pytest.mark.parametrize("skip", ["add", "placebo", "attention"])
def test_equal_size_is_that_of_concat_with_the_same_stem_skip(skip):
    with torch.device("meta"):
        concat, net = (net_of(kind, stem_skip=True, match_parameters=True) for kind in ("concat", skip))
    sizes = [sum(p.numel() for p in own.parameters()) for own in (concat, net)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize("skip", ["none", "nested", "full", "permuted", ["none", "add", "add", "add"]], ids=str)
def test_a_stem_skip_of_no_kind_is_refused(skip):
    with pytest.raises(ValueError, match="stem_skip with skip="):
        net_of(skip, stem_skip=True)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("model.skip=[add,none,none,none]", "model.skip=[none,none,none,none]"),
        ("model.skip_flow=[forward,both,both,both]", "model.skip_flow=[both,both,both,both]"),
    ],
)
def test_a_kind_at_a_level_without_features_alone_is_refused(given, instead):
    options = ["data=synthetic", "data.size=32", "model.weights=null", "model.encoder=tu-test_convnext"]
    with pytest.raises(UserError, match="tu-test_convnext has no features at level 1") as caught:
        build.make_module(compose("train", Train, [*options, given]))
    assert f"try: {instead}" in str(caught.value)
    for same in ("model.skip=[none,concat,concat,concat]", "model.skip=[concat,none,concat,concat]"):
        build.make_module(compose("train", Train, [*options, same]))


@pytest.mark.parametrize("given", ["model.skip_scale=[0.5,1,1,1]", "model.skip_gradient=[0.5,1,1,1]"])
def test_a_number_for_a_level_without_features_is_refused(given):
    options = ["data=synthetic", "data.size=32", "model.weights=null", "model.encoder=tu-test_convnext", given]
    with pytest.raises(UserError, match="tu-test_convnext has no features at level 1") as caught:
        build.make_module(compose("train", Train, options))
    assert f"try: {given.replace('0.5', '1')}" in str(caught.value)
    build.make_module(compose("train", Train, [*options[:-1], "model.skip_scale=0.5"]))


@pytest.mark.parametrize(
    "given",
    [
        ["model.encoder=tu-test_convnext", "model.skip_scale=learned"],  # which has no features at level 1
        ["model.encoder=resnet18", "model.skip_scale=kappa"],  # 1 at level 1
    ],
)
def test_a_scale_that_changes_no_level_is_refused(given):
    options = ["data=synthetic", "data.size=32", "model.weights=null", "model.skip=[concat,none,none,none]", *given]
    with pytest.raises(UserError, match="changes nothing: no level that it would scale has a skip with features"):
        build.make_module(compose("train", Train, options))
    build.make_module(compose("train", Train, [*options, "model.skip=[concat,concat,none,none]"]))


@pytest.mark.parametrize("encoder", ["vgg11_bn", "tu-vgg11"])
def test_a_stem_skip_is_refused_where_the_first_features_are_no_picture(encoder):
    with pytest.raises(UserError, match=f"stem_skip with encoder={encoder}, whose first features are its own"):
        SkipUnet(encoder, weights=None, stem_skip=True, in_channels=64)  # as many as its first features have


def test_crops_of_one_picture_exchange_no_features():
    options = ["data=synthetic", "data.crop=32", "model.skip=[concat,shuffled,none,none]"]
    with pytest.raises(UserError, match="several crops of a picture"):
        compose("train", Train, options)
    assert compose("train", Train, [*options, "data.crops=1"]).data.crops == 1


def test_a_global_batch_leaves_shuffled_two_pictures_a_device():
    options = compose("train", Train, ["data=synthetic", "model.skip=shuffled", "data.global_batch_size=4"])
    data, module = SimpleNamespace(), SimpleNamespace()
    several = SimpleNamespace(world_size=4, accumulate_grad_batches=1, is_global_zero=False)
    with pytest.raises(UserError, match="one picture at a time") as caught:
        build.set_batch_size_and_learning_rate(options, several, data, module)
    assert "try: data.global_batch_size=8" in str(caught.value)
    several.world_size = 2
    assert build.set_batch_size_and_learning_rate(options, several, data, module)["batch_size"] == 2


@pytest.mark.parametrize("given", ["model.skip_gradient=[0.5,1,1,1]", "model.auxiliary=true"])
def test_what_is_about_the_encoders_gradient_is_refused_where_it_is_frozen(given):
    with pytest.raises(UserError, match="with freeze_encoder=true"):
        compose("train", Train, ["data=synthetic", "model.freeze_encoder=true", given])
    compose("train", Train, ["data=synthetic", "model.freeze_encoder=2", given])
