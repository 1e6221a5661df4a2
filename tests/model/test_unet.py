"""SkipUnet: with concat it is smp.Unet to the last bit; every other setting builds only what it uses."""

import pytest
import segmentation_models_pytorch as smp
import torch

from unetseg.errors import UserError
from unetseg.gradients import GradientFlow
from unetseg.model import SkipUnet
from unetseg.names import DENSENETS, FLOWS, FUSED, RESNETS, SKIPS, why_not_withheld
from unetseg.options.compose import compose
from unetseg.options.schema import Train

SIZES = [(64, 64), (61, 93)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50", "densenet121"])
def test_concat_equals_smp_unet_bit_for_bit(encoder, training, size):
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=2)
    ours = SkipUnet(encoder, weights=None, classes=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, *size)
    for net in (ours, theirs):
        net.train(training)
        net(images).square().mean().backward()
    assert torch.equal(ours(images), theirs(images))
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.quick
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_scse_equals_smp_unet_with_it_bit_for_bit(encoder, training):
    ours = SkipUnet(encoder, skip="scse", weights=None, classes=2)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=2, decoder_attention_type="scse")
    left_over = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert left_over.unexpected_keys == []
    assert {key.rsplit(".", 3)[0] for key in left_over.missing_keys} == {"decoder.blocks.4.attention1.attention"}, (
        "weights of smp's that its last block, without a skip, never uses"
    )
    images = torch.randn(2, 3, 64, 96)
    for net in (ours, theirs):
        net.train(training)
        net(images).square().mean().backward()
    assert torch.equal(ours(images), theirs(images))
    gradients = dict(theirs.named_parameters())
    assert all(torch.equal(weight.grad, gradients[name].grad) for name, weight in ours.named_parameters())


def test_scse_goes_by_level_and_the_last_block_with_level_1():
    net = SkipUnet("resnet18", skip=["scse", "concat", "none", "scse"], weights=None)
    reweighed = [(bool([*b.attention1.parameters()]), bool([*b.attention2.parameters()])) for b in net.decoder.blocks]
    assert reweighed == [(True, True), (False, False), (False, False), (True, True), (False, True)]


def test_the_same_seed_gives_the_weights_of_smp_unet():
    torch.manual_seed(3)
    ours = SkipUnet("resnet18", weights=None)
    torch.manual_seed(3)
    theirs = smp.Unet("resnet18", encoder_weights=None)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_encoder_for_every_skip():
    states = []
    for skip in SKIPS:
        torch.manual_seed(1)
        states.append(SkipUnet("resnet18", skip=skip, weights=None).encoder.state_dict())
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])


MIXES = [*SKIPS, ["none", "concat", "add", "attention"], ["placebo", "attention", "none", "add"]]


MIXED_FLOW = ["both", "backward", "forward", "both"]


@pytest.mark.parametrize(
    ("encoder", "short_skips", "flow"),
    [
        *(("resnet18", True, flow) for flow in (*FLOWS, MIXED_FLOW)),
        *(("resnet50", False, MIXED_FLOW), ("densenet121", True, MIXED_FLOW)),
    ],
    ids=str,
)
@pytest.mark.parametrize("skip", MIXES, ids=str)
def test_no_setting_leaves_a_parameter_without_a_gradient(encoder, short_skips, skip, flow):
    if isinstance(skip, str) and "backward" in flow and why_not_withheld(skip, "backward"):
        flow = ["both", "forward", "both", "forward"]
    with torch.device("meta"):  # autograd's graph is that of real numbers
        net = SkipUnet(encoder, skip=skip, skip_flow=flow, short_skips=short_skips, weights=None, classes=3)
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def same_weights(skip, flow):
    """Return a net with both flows and one with `flow`, of equal weights."""
    nets = [SkipUnet("resnet18", skip=skip, skip_flow=f, weights=None).eval() for f in ("both", flow)]
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


@pytest.mark.parametrize("skip", ["concat", "add", "attention", "multiply", "respath", "scse"])
def test_forward_gives_the_outputs_of_both(skip):
    whole, cut = same_weights(skip, "forward")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(whole(images), cut(images))


def a_step(net):
    """Return the weights after one step of gradient descent on fixed images."""
    net.train()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)).square().mean().backward()
    return [w.detach() - 0.1 * w.grad for w in net.parameters()]


@pytest.mark.parametrize(("dose", "flow"), [(0, "forward"), (1, "both"), ([1, 0, 0, 1], [*"bffb"])], ids=str)
@pytest.mark.parametrize("skip", ["concat", "add", "attention"])
def test_a_dose_of_0_is_forward_and_one_of_1_is_both_to_the_last_bit(skip, dose, flow):
    flow = [{"b": "both", "f": "forward"}[letter] for letter in flow] if isinstance(flow, list) else flow
    nets = [
        SkipUnet("resnet18", skip=skip, weights=None, **arguments)
        for arguments in ({"skip_flow": flow}, {"skip_gradient": dose})
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*map(a_step, nets), strict=True))


def test_a_dose_leaves_the_outputs_alone():
    nets = [SkipUnet("resnet18", skip="add", skip_gradient=dose, weights=None).eval() for dose in (1, [0, 0.5, 2, 1])]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(*(net(images) for net in nets))


def test_the_doses_are_finest_first():
    net = SkipUnet("resnet18", skip_gradient=[0, 0.5, 2, 1], weights=None)
    assert [fusion.gradient for fusion in net.fusions] == [0, 0.5, 2, 1]


@pytest.mark.parametrize(("dose", "others", "reason"), [
    (-1, {}, "a number >= 0"), (float("nan"), {}, "a number >= 0"), ([1, 1], {}, "a list of 4"),
    (0.5, {"skip": "none"}, "level 1: with skip=none"), ([1, 1, 1, 0], {"skip": "placebo"}, "level 4: with"),
    (0.5, {"skip_flow": "backward"}, "skip_flow=backward it has to be 1"),
])  # fmt: skip
def test_a_dose_without_a_meaning_is_refused(dose, others, reason):
    with pytest.raises(ValueError, match=reason):
        SkipUnet("resnet18", skip_gradient=dose, weights=None, **others)


@pytest.mark.parametrize("skip", ["respath", "multiply", "channel"])
def test_a_kind_that_cant_withhold_its_features_refuses_the_flow_and_says_why(skip):
    with pytest.raises(ValueError, match=f"skip_flow=backward at level 2: skip={skip} doesn't have it: "):
        SkipUnet("resnet18", skip=skip, skip_flow=["both", "backward", "both", "both"], weights=None)
    with pytest.raises(UserError, match=f"at each level whose skip is {skip}"):
        compose("train", Train, ["data=synthetic", f"model.skip={skip}", "model.skip_flow=[both,backward,both,both]"])
    given, fitting = f"[none,none,none,{skip}]", "[backward,backward,backward,both]"
    if skip not in FUSED:
        given, fitting = skip, "both"
    with pytest.raises(UserError, match="model") as error:
        compose("train", Train, ["data=synthetic", f"model.skip={given}", "model.skip_flow=backward"])
    assert f"whose skip is {skip}" in str(error.value)
    assert f"model.skip_flow={fitting}" in str(error.value)


def test_backward_with_add_gives_the_outputs_of_none():
    add = SkipUnet("resnet18", skip="add", skip_flow="backward", weights=None).eval()
    none = SkipUnet("resnet18", skip="none", weights=None).eval()
    left_over = none.load_state_dict(add.state_dict(), strict=False)
    assert left_over.missing_keys == []
    assert all("projection" in key for key in left_over.unexpected_keys)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(add(images), none(images))


@pytest.mark.parametrize(("skip", "flow", "sign"), [("concat", "forward", 0), ("add", "forward", 0),
    ("attention", "forward", 0), ("add", "backward", 1), ("concat", "backward", 1), ("attention", "backward", 1),
    ("placebo", "both", 0), ("none", "both", 0)])  # fmt: skip
def test_the_skip_share_is_zero_where_no_gradient_flows(skip, flow, sign):
    torch.manual_seed(0)
    net = SkipUnet("resnet18", skip=skip, skip_flow=flow, weights=None)
    with GradientFlow(net) as reading:
        net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    records = {(r.block, r.metric): r.value for r in reading.read() if r.kind == "skip"}
    for level in ("level1", "level2", "level3", "level4"):
        assert (records[level, "skip_norm"] > 0) == (sign > 0)
        if sign == 0:
            assert records[level, "skip_share"] == 0
    if sign:
        assert records["level1", "skip_share"] > 0


def test_the_flow_of_each_level_is_its_own():
    flows = ["both", "forward", "backward", "forward"]
    net = SkipUnet("resnet18", skip_flow=flows, weights=None)
    assert [block.fusion.flow for block in reversed(net.decoder.blocks[:-1])] == flows


def test_placebo_has_the_parameters_of_concat_one_by_one():
    concat, placebo = (SkipUnet("resnet18", skip=skip, weights=None) for skip in ("concat", "placebo"))
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in (concat, placebo)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("skip", MIXES, ids=str)
@pytest.mark.parametrize(("encoder", "short_skips"), [("resnet18", True), ("resnet50", False), ("densenet161", True)])
def test_matched_networks_have_concats_parameters_within_a_per_cent(encoder, short_skips, skip):
    if (encoder, skip) == ("densenet161", "channel"):
        pytest.skip("it is out of reach: tests/model/test_channel.py")
    options = {"weights": None, "short_skips": short_skips, "classes": 3}
    with torch.device("meta"):
        nets = [SkipUnet(encoder, **options), SkipUnet(encoder, skip=skip, match_parameters=True, **options)]
    concat, matched = (sum(p.numel() for p in net.parameters()) for net in nets)
    assert matched == pytest.approx(concat, rel=0.01)


def test_concat_matched_with_itself_is_concat():
    states = []
    for match in (False, True):
        torch.manual_seed(0)
        states.append(SkipUnet("resnet18", match_parameters=match, weights=None).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_size_out_of_reach_is_told():
    with pytest.raises(ValueError, match="no decoder widths give"):
        SkipUnet("densenet161", skip="attention", match_parameters=True, decoder_channels=(2, 2, 2, 2, 2), weights=None)


@pytest.mark.parametrize("skip", ["add", "none", ["none", "concat", "add", "none"]], ids=str)
def test_any_size_gives_logits_of_that_size(skip):
    net = SkipUnet("resnet18", skip=skip, weights=None, classes=3).eval()
    assert net(torch.randn(1, 3, 61, 95)).shape == (1, 3, 61, 95)


def test_none_has_no_layer_for_the_skip_and_narrower_first_convolutions():
    concat, none = (SkipUnet("resnet18", skip=skip, weights=None) for skip in ("concat", "none"))
    widths = [block.conv1[0].in_channels for block in none.decoder.blocks]
    assert widths == [512, 256, 128, 64, 32]
    assert [block.conv1[0].in_channels for block in concat.decoder.blocks] == [768, 384, 192, 128, 32]
    assert list(none.state_dict()) == list(concat.state_dict())


def test_add_projects_without_bias_where_widths_differ_and_not_where_they_agree():
    net = SkipUnet("resnet18", skip="add", weights=None)
    projections = {name: p.shape for name, p in net.named_parameters() if "fusion" in name}
    # blocks from coarse to fine meet 512+256, 256+128, 128+64 and 64+64 channels: the finest agrees
    assert projections == {
        "decoder.blocks.0.fusion.projection.weight": (512, 256, 1, 1),
        "decoder.blocks.1.fusion.projection.weight": (256, 128, 1, 1),
        "decoder.blocks.2.fusion.projection.weight": (128, 64, 1, 1),
    }


def test_lists_are_finest_first():
    net = SkipUnet("resnet18", skip=["none", "concat", "concat", "concat"], weights=None)
    assert [block.conv1[0].in_channels for block in net.decoder.blocks] == [768, 384, 192, 64, 32]


def test_a_cut_skip_carries_nothing():
    """With none, the encoder's fine features change nothing but through the deep path."""
    net = SkipUnet("resnet18", skip="none", weights=None).eval()
    features = net.encoder(torch.randn(1, 3, 64, 64))
    noisy = [features[0], *(torch.randn_like(f) for f in features[1:-1]), features[-1]]
    assert torch.equal(net.decoder(features), net.decoder(noisy))


@pytest.mark.parametrize("encoder", RESNETS + DENSENETS)
def test_every_resnet_and_densenet_is_there(encoder):
    with torch.device("meta"):
        net = SkipUnet(encoder, skip="add", weights=None)
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("skip", ["bogus", ["concat"] * 3, ["concat", "add", "none", "bogus"]], ids=str)
def test_a_wrong_skip_is_a_value_error_that_lists_the_kinds(skip):
    with pytest.raises(ValueError, match="concat"):
        SkipUnet("resnet18", skip=skip, weights=None)
